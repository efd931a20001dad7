"""Checkpoints of this and other projects, read without running code in them."""

from .checkpointer import OneNetCheckpointer, load_weights, read_checkpoint, stored_config

__all__ = ["OneNetCheckpointer", "load_weights", "read_checkpoint", "stored_config"]
