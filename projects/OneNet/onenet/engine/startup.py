"""Config loading and checks, loggers and the output folder."""

from __future__ import annotations

import argparse
import difflib
import logging
import math
import os
import re
from collections.abc import Sequence
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint import OneNetCheckpointer
from ..checkpoint.convert import pip_weights, torchvision_url
from ..config.load import check_keys, read_config
from ..data.coco_json import check_same_classes, register_coco_json
from ..data.formats import register_folder
from ..data.loaders import load_records
from ..modeling.backbone.features import without_pretrained
from ..modeling.criterion import Criterion
from ..modeling.heads import ONENET_HEAD_REGISTRY
from ..modeling.matcher import ONENET_MATCHER_REGISTRY
from ..modeling.rescoring import build_rescoring
from ..utils.errors import ConfigError
from ..utils.files import write_whole
from ..utils.registry import get_registered, num_classes_node
from .class_names import check_class_names, dataset_class_names, trained_class_names
from .evaluators import check_evaluator, dataset_identity, noted_dataset, results_folder
from .faults import naming_faults, tell_once_of_lost_logs

logger = logging.getLogger(__name__)

__all__ = ["last_checkpoint", "load_config", "load_for_evaluation", "setup"]


def load_config(
    config_file: str, opts: list[str] | None = None, eval_only: bool = False
) -> CfgNode:
    """Loads a yaml config with yaml's safe loader, applies overrides, and checks it.

    Registers the config's folder or COCO-format datasets, replaces a NUM_CLASSES of 0 by that of
    the data and MAX_ITER and EVAL_PERIOD by what EPOCHS and EVAL_EPOCHS ask for, and uses the CPU
    if there is no GPU.

    Args:
        config_file: path of a yaml file.
        opts: overrides, ``["KEY", "value", ...]``.
        eval_only: whether to ignore the training datasets.

    Returns:
        The frozen config.

    Raises:
        ConfigError: the file, a key or a value is wrong.
        DataError: a dataset is missing, broken or contradicts the config.
    """
    cfg = read_config(config_file, opts)
    # An evaluation does not need the training data
    keys = ("TEST",) if eval_only else ("TRAIN", "TEST")
    _register_folder(cfg)
    for key in keys:
        _register_json_dataset(cfg, key)
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON and not eval_only:
        cfg.DATASETS.TEST = ()
    for key in keys:
        _check_registered(cfg, key)
    if eval_only and not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only has nothing to evaluate: DATASETS.TEST is empty.")
    if not eval_only:
        _resolve_epochs(cfg)
    check_keys(cfg)
    get_registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    get_registered(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    _check_parts(cfg)
    _resolve_num_classes(cfg, keys)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if not cfg.MODEL.DEVICE.startswith("cuda") and cfg.SOLVER.AMP.ENABLED and not eval_only:
        raise ConfigError("SOLVER.AMP.ENABLED needs a GPU in Detectron2; set it to False.")
    cfg.freeze()
    return cfg


def _resolve_epochs(cfg: CfgNode) -> None:
    """Replaces MAX_ITER, STEPS and EVAL_PERIOD if their number of epochs is given."""
    epochs, eval_epochs, batch = cfg.SOLVER.EPOCHS, cfg.TEST.EVAL_EPOCHS, cfg.SOLVER.IMS_PER_BATCH
    if (epochs <= 0 and eval_epochs <= 0) or batch < 1 or not cfg.DATASETS.TRAIN:
        return
    per_epoch = len(load_records(cfg)) / batch
    if epochs > 0:
        before, cfg.SOLVER.MAX_ITER = cfg.SOLVER.MAX_ITER, math.ceil(epochs * per_epoch)
        scale = cfg.SOLVER.MAX_ITER / max(before, 1)
        cfg.SOLVER.STEPS = tuple(round(step * scale) for step in cfg.SOLVER.STEPS)
    if eval_epochs > 0:
        cfg.TEST.EVAL_PERIOD = max(round(eval_epochs * per_epoch), 1)
    logger.info(
        f"An epoch has {per_epoch:.1f} batches of {batch}: SOLVER.MAX_ITER is"
        f" {cfg.SOLVER.MAX_ITER}, TEST.EVAL_PERIOD {cfg.TEST.EVAL_PERIOD}."
    )


def _resolve_num_classes(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Replaces a NUM_CLASSES of 0 by that of the data; checks that all datasets agree with it."""
    names = [name for key in keys for name in cfg.DATASETS[key]]
    # All are registered, but not all have class names
    datasets = [name for name in names if dataset_class_names([name])]
    for name in datasets:
        check_same_classes(datasets[0], name)
    node = num_classes_node(cfg)
    if node is None:
        return
    given = cfg.MODEL[node].NUM_CLASSES
    count = len(MetadataCatalog.get(datasets[0]).thing_classes) if datasets else given
    if count < 1:
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {given}, and the datasets {names} do not tell the number"
            " of classes; set it."
        )
    if given not in (0, count):
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {given}, but dataset '{datasets[0]}' has {count} classes;"
            f" set it to {count}, or to 0 to take it from the data."
        )
    cfg.MODEL[node].NUM_CLASSES = count


def _check_registered(cfg: CfgNode, key: str) -> None:
    for name in cfg.DATASETS[key]:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ConfigError(
                f"DATASETS.{key} names '{name}', which is not registered{hint}; for a set in COCO"
                f" format give DATASETS.{key}_JSON and DATASETS.{key}_IMAGE_ROOT instead, for a"
                " folder in any format DATASETS.FOLDER."
            )


def _check_parts(cfg: CfgNode) -> None:
    """Checks that OneNet's head, matcher, cost and rescoring are registered and compatible."""
    if cfg.MODEL.META_ARCHITECTURE != "OneNet":
        return
    onenet = cfg.MODEL.ONENET
    get_registered(ONENET_HEAD_REGISTRY, onenet.HEAD.NAME, "MODEL.ONENET.HEAD.NAME")
    get_registered(ONENET_MATCHER_REGISTRY, onenet.MATCHER.NAME, "MODEL.ONENET.MATCHER.NAME")
    Criterion(cfg)  # builds the matcher and its cost, too
    build_rescoring(cfg)


def _register_folder(cfg: CfgNode) -> None:
    """Registers the dataset of DATASETS.FOLDER, if set."""
    datasets = cfg.DATASETS
    if not datasets.FOLDER:
        return
    for key in ("TRAIN_JSON", "TRAIN_IMAGE_ROOT", "TEST_JSON", "TEST_IMAGE_ROOT"):
        if datasets[key]:
            raise ConfigError(
                f"DATASETS.FOLDER is '{datasets.FOLDER}' and DATASETS.{key} is '{datasets[key]}';"
                " give the folder or the json files, and set the other to ''."
            )
    names = register_folder(datasets.FOLDER, datasets.FORMAT, datasets.VAL_SHARE)
    datasets.TRAIN = (names["train"],)
    datasets.TEST = (names["val"],) if "val" in names else ()


def _register_json_dataset(cfg: CfgNode, key: str) -> None:
    """Registers the COCO-format dataset of DATASETS.<key>_JSON, if set."""
    json_file, image_root = cfg.DATASETS[f"{key}_JSON"], cfg.DATASETS[f"{key}_IMAGE_ROOT"]
    if bool(json_file) != bool(image_root):
        raise ConfigError(
            f"DATASETS.{key}_JSON is '{json_file}' and DATASETS.{key}_IMAGE_ROOT is"
            f" '{image_root}'; a COCO-format dataset needs both."
        )
    if json_file:
        cfg.DATASETS[key] = (register_coco_json(json_file, image_root),)


def setup(args: argparse.Namespace) -> CfgNode:
    """Loads the config of the command line, creates OUTPUT_DIR and starts the loggers.

    Args:
        args: from ``detectron2.engine.default_argument_parser``.

    Returns:
        The frozen config; for a resumed run, without pre-trained weights to download.

    Raises:
        ConfigError, DataError: see :func:`onenet.engine.load_config`; or MODEL.WEIGHTS or the
            checkpoint to resume from is missing; or OUTPUT_DIR cannot be made, or has results that
            this run would overwrite.
    """
    # Log to the terminal until the config names the folder of the log file
    setup_logger(distributed_rank=comm.get_rank(), name="onenet")
    cfg = load_config(args.config_file, args.opts, eval_only=args.eval_only)
    _check_weights(cfg, args.resume, args.eval_only)
    _check_output_dir(cfg, args.resume, args.eval_only)
    for name in cfg.DATASETS.TEST:
        check_evaluator(name)
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR: the folder '{cfg.OUTPUT_DIR}' cannot be made ({error.strerror}); name"
            " another one, or see to what is in its way."
        ) from error
    kept = _config_of_training(cfg) if args.eval_only else None
    # tell_once_of_lost_logs reports log files that cannot be written
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with naming_faults(cfg.OUTPUT_DIR):
            default_setup(cfg, args)
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
        logging.getLogger(__name__).info("There is no GPU: running on the CPU.")
    return without_pretrained(cfg) if args.resume and last_checkpoint(cfg) else cfg


def last_checkpoint(cfg: CfgNode) -> str:
    """Path of the checkpoint that --resume loads; "" if there is none."""
    note = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not os.path.isfile(note):
        return ""
    with open(note, encoding="utf-8", errors="replace") as file:
        return os.path.join(cfg.OUTPUT_DIR, file.read().strip())


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
    """Raises if OUTPUT_DIR has results that this run would overwrite."""
    folder = cfg.OUTPUT_DIR
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
