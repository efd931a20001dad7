"""GPU kernels of costs and losses, and activation checkpointing."""
