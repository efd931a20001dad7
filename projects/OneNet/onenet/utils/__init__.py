"""Shared utilities: errors, atomic file writing, registry look-up, tracing, drawing."""
