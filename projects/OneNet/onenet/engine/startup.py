"""Start of a run: weights and output folder are checked, loggers started."""

from __future__ import annotations

import argparse
import logging
import os
import re
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint import OneNetCheckpointer, stored_config
from ..checkpoint.convert import pip_weights, torchvision_url
from ..modeling.backbone.features import without_pretrained
from ..utils.errors import ConfigError
from ..utils.files import parse_yaml, write_whole
from .batch_size import choose_batch
from .class_names import check_class_names, trained_class_names
from .config_loading import is_checkpoint, load_config, with_batch
from .elastic import goes_on, note_job
from .evaluators import check_evaluator, dataset_identity, noted_dataset, results_folder
from .faults import naming_faults, tell_once_of_lost_logs
from .tracking import tracker_classes

__all__ = ["last_checkpoint", "load_for_evaluation", "setup"]

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Loads the config of the command line, creates OUTPUT_DIR and starts the loggers.

    Args:
        args: from :func:`onenet.engine.argument_parser`; ``resume`` is set where torchrun has
            restarted the run.

    Returns:
        The frozen config, with a batch that fits memory in place of SOLVER.IMS_PER_BATCH 0; for a
        resumed run with the run's batch, and without pre-trained weights to download.

    Raises:
        ConfigError, DataError: see :func:`onenet.engine.load_config`; or MODEL.WEIGHTS or the
            checkpoint to resume from is missing; or OUTPUT_DIR cannot be made, or has results that
            this run would overwrite.
    """
    # Log to the terminal until the config names the folder of the log file
    setup_logger(distributed_rank=comm.get_rank(), name="onenet")
    cfg = load_config(args.config_file, args.opts, eval_only=args.eval_only)
    if not (args.resume or args.eval_only) and goes_on(cfg.OUTPUT_DIR):
        args.resume = True
        logger.info(f"torchrun has started this job before: goes on in {cfg.OUTPUT_DIR}.")
    _check_weights(cfg, args.resume, args.eval_only)
    _check_output_dir(cfg, args.resume, args.eval_only)
    for name in cfg.DATASETS.TEST:
        check_evaluator(name)
    if not args.eval_only:
        tracker_classes(cfg)  # raises if one is not installed
    _make_folder(cfg.OUTPUT_DIR)
    reference, chosen = cfg.SOLVER.REFERENCE_BATCH, 0
    if cfg.SOLVER.IMS_PER_BATCH == 0 and not args.eval_only:
        chosen = (_batch_of_run(cfg) if args.resume else 0) or choose_batch(cfg)
        cfg = with_batch(cfg, chosen)
    kept = _config_of_training(cfg) if args.eval_only else None
    # tell_once_of_lost_logs reports log files that cannot be written
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with naming_faults(cfg.OUTPUT_DIR):
            if not args.eval_only:
                note_job(cfg.OUTPUT_DIR)
            default_setup(cfg, _with_readable_config(args))
            if kept is not None and comm.is_main_process():
                write_whole(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), kept)
            setup_logger(
                cfg.OUTPUT_DIR,
                distributed_rank=comm.get_rank(),
                name="onenet",
                configure_stdout=False,
            )
    finally:
        logging.raiseExceptions = before
    tell_once_of_lost_logs()
    if not torch.cuda.is_available():
        logger.info("There is no GPU: running on the CPU.")
    if chosen:
        logger.info(
            f"SOLVER.IMS_PER_BATCH 0 is replaced by {chosen} (SOLVER.REFERENCE_BATCH is"
            f" {reference}): SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}, SOLVER.BASE_LR"
            f" {cfg.SOLVER.BASE_LR:.3g}."
        )
    if not args.eval_only:
        _warn_of_warm_up(cfg)
    return without_pretrained(cfg) if args.resume and last_checkpoint(cfg) else cfg


def _warn_of_warm_up(cfg: CfgNode) -> None:
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        logger.warning(
            f"SOLVER.WARMUP_ITERS is {cfg.SOLVER.WARMUP_ITERS} and SOLVER.MAX_ITER"
            f" {cfg.SOLVER.MAX_ITER}: the training ends before the learning rate reaches"
            " SOLVER.BASE_LR."
        )


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR: the folder '{path}' cannot be made ({error.strerror}); name another one,"
            " or see to what is in its way."
        ) from error


def _with_readable_config(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments without a checkpoint as config_file, which Detectron2 would log as text."""
    if not is_checkpoint(args.config_file):
        return args
    return argparse.Namespace(**{**vars(args), "config_file": ""})


def last_checkpoint(cfg: CfgNode) -> str:
    """Path of the checkpoint that --resume loads; "" if there is none."""
    note = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not os.path.isfile(note):
        return ""
    with open(note, encoding="utf-8", errors="replace") as file:
        return os.path.join(cfg.OUTPUT_DIR, file.read().strip())


def _batch_of_run(cfg: CfgNode) -> int:
    """The batch of the run that --resume continues; 0 if there is none that tells."""
    last = last_checkpoint(cfg)
    text = stored_config(last) if last else None
    return parse_yaml(text, last)["SOLVER"]["IMS_PER_BATCH"] if text else 0


def load_for_evaluation(cfg: CfgNode, model: nn.Module, resume: bool = False) -> None:
    """Loads MODEL.WEIGHTS, which must fit the model and the test datasets' classes exactly.

    Args:
        cfg: from :func:`setup`.
        model: of the config, to fill.
        resume: whether to load OUTPUT_DIR's last checkpoint instead, if there is one.

    Raises:
        ConfigError: the weights do not fit, or are of other classes.
    """
    weights = (last_checkpoint(cfg) if resume else "") or cfg.MODEL.WEIGHTS
    if weights != cfg.MODEL.WEIGHTS:
        logger.warning(f"--resume: this evaluates {weights}, not MODEL.WEIGHTS.")
    checkpointer = OneNetCheckpointer(model, exact=True, input_format=cfg.INPUT.FORMAT)
    checkpointer.load(weights, checkpointables=[])
    names = trained_class_names(cfg, weights, checkpointer.loaded_class_names)
    check_class_names(cfg, weights, names)


def _check_output_dir(cfg: CfgNode, resume: bool, eval_only: bool) -> None:
    """Raises if OUTPUT_DIR has results that this run would overwrite, or the photos."""
    folder = cfg.OUTPUT_DIR
    if cfg.DATASETS.FOLDER and os.path.realpath(cfg.DATASETS.FOLDER) == os.path.realpath(folder):
        raise ConfigError(
            f"OUTPUT_DIR is '{folder}', the folder of the photos, and the results would be read as"
            " photos and annotations; name another one, which may be in it."
        )
    files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    checkpoints = [f for f in files if re.fullmatch(r"model_(final|best|\d{7})\.pth", f)]
    if checkpoints and not (resume or eval_only):
        raise ConfigError(
            f"OUTPUT_DIR '{folder}' has the result of another run ({checkpoints[-1]}); name another"
            " OUTPUT_DIR, delete this one, or go on with that run by --resume."
        )
    # A single one, and no note of it, is what a kill while the first was saved leaves
    if len(checkpoints) > 1 and resume and not eval_only and not last_checkpoint(cfg):
        raise ConfigError(
            f"--resume: OUTPUT_DIR '{folder}' has checkpoints, but no file last_checkpoint, so that"
            " the run would start anew and overwrite them; write the name of one into that file, or"
            " name another OUTPUT_DIR."
        )
    for name in cfg.DATASETS.TEST:
        before = noted_dataset(cfg, name)
        if before not in (None, dataset_identity(cfg, name)):
            raise ConfigError(
                f"{results_folder(cfg, name)} has the evaluation on '{before}', which that on"
                f" '{name}' would overwrite; move that folder, or name another OUTPUT_DIR."
            )


def _config_of_training(cfg: CfgNode) -> bytes | None:
    """OUTPUT_DIR's ``config.yaml``, which tells what was trained; None if there is none."""
    try:
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "rb") as file:
            return file.read()
    except OSError:
        return None


def _check_weights(cfg: CfgNode, resume: bool, eval_only: bool = False) -> None:
    weights = cfg.MODEL.WEIGHTS
    if resume and (last := last_checkpoint(cfg)):
        if not os.path.isfile(last):
            raise ConfigError(
                f"--resume: {os.path.join(cfg.OUTPUT_DIR, 'last_checkpoint')} names '{last}', and"
                " there is no such file; write the name of another checkpoint into it, or start"
                " anew in another OUTPUT_DIR."
            )
        return  # MODEL.WEIGHTS is not used
    if weights.startswith("torchvision://"):
        torchvision_url(weights)  # raises for unknown names
    if weights.startswith("pip://"):
        pip_weights(weights)  # raises if not installed
    if weights and not urlparse(weights).scheme and not os.path.isfile(weights):
        raise ConfigError(
            f"MODEL.WEIGHTS: there is no file '{weights}'; give a checkpoint's path, or '' to"
            " start from random weights."
        )
    if eval_only and not weights:
        raise ConfigError(
            "--eval-only: MODEL.WEIGHTS is empty, so random weights would be evaluated; name a"
            " checkpoint."
        )
