"""Weights: those of this project, and those of others, renamed; read without running code."""

from .checkpointer import OneNetCheckpointer, load_weights, read_checkpoint

__all__ = ["OneNetCheckpointer", "load_weights", "read_checkpoint"]
