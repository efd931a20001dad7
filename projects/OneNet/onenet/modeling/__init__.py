"""OneNet's meta-architecture and all that it is made of."""
