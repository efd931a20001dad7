"""The fast forms of costs and losses, and activation checkpointing."""
