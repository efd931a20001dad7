"""Training and evaluation, based on Detectron2's trainer."""

from .config_loading import load_config
from .evaluators import build_evaluator, check_limits
from .launch import argument_parser, launch_workers
from .run import main, path_value, run_arguments, train_or_evaluate
from .startup import load_for_evaluation, setup
from .trainer import Trainer

__all__ = [
    "Trainer",
    "argument_parser",
    "build_evaluator",
    "check_limits",
    "launch_workers",
    "load_config",
    "load_for_evaluation",
    "main",
    "path_value",
    "run_arguments",
    "setup",
    "train_or_evaluate",
]
