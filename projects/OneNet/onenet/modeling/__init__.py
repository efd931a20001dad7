"""OneNet's meta-architecture and its modules."""
