"""What all other packages may use: errors, whole files, registry look-up, tracing."""
