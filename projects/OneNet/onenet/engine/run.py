"""A run from its command line: training with evaluation, or evaluation alone."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..utils.errors import exit_with_one_sentence
from .evaluators import check_limits
from .launch import argument_parser
from .startup import last_checkpoint, load_for_evaluation, setup
from .trainer import Trainer

__all__ = ["main", "path_value", "run_arguments", "train_or_evaluate"]

logger = logging.getLogger(__name__)


def path_value(path: str) -> str:
    """A path as the value of a config key; yacs would read the path "2024" as a number."""
    return os.path.join(os.curdir, path)


def run_arguments(config_file: str, opts: Sequence[str], **flags: bool | int) -> argparse.Namespace:
    """The arguments of :func:`train_or_evaluate`, with their defaults.

    Args:
        config_file: see :func:`onenet.engine.load_config`.
        opts: overrides, ``["KEY", "value", ...]``.
        **flags: such as ``eval_only=True``.
    """
    args = argument_parser().parse_args(["--config-file", config_file])
    return argparse.Namespace(**{**vars(args), "opts": list(opts), **flags})


def train_or_evaluate(args: argparse.Namespace) -> CfgNode:
    """Trains, or with ``args.eval_only`` evaluates; every worker calls this.

    Args:
        args: from :func:`onenet.engine.argument_parser`; ``resume`` is set where torchrun has
            restarted the run.

    Returns:
        The run's config.

    Raises:
        ConfigError, DataError: see :func:`onenet.engine.setup`.
        LimitError, TrainingError: see :meth:`onenet.engine.Trainer.train`.
    """
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        try:
            trainer.train()
        except KeyboardInterrupt:
            if last := last_checkpoint(cfg):
                logger.info(f"--resume goes on from {last}.")
            raise
        return cfg
    model = Trainer.build_model(cfg)
    load_for_evaluation(cfg, model, args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    check_limits(cfg, results)
    return cfg


def main(args: argparse.Namespace) -> None:
    """What every worker of train_net.py runs; ends with one sentence on an error."""
    with exit_with_one_sentence():
        train_or_evaluate(args)
