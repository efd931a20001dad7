"""Training and evaluation: Detectron2's trainer with what OneNet needs besides."""

from .trainer import Trainer, build_evaluator, check_limits, launch_workers, setup

__all__ = ["Trainer", "build_evaluator", "check_limits", "launch_workers", "setup"]
