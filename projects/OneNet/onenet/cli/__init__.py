"""The console command ``onenet``."""

from .main import main

__all__ = ["main"]
