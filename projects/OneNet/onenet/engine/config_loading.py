"""Config loading: datasets are registered, and all is checked before a model is built."""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..checkpoint import stored_config
from ..config.defaults import JSON_KEYS
from ..config.load import check_keys, read_config, scale_to_batch
from ..data.coco_json import check_same_classes, register_coco_json
from ..data.formats import register_folder
from ..data.loaders import load_records
from ..modeling.criterion import Criterion
from ..modeling.heads import ONENET_HEAD_REGISTRY
from ..modeling.matcher import ONENET_MATCHER_REGISTRY
from ..modeling.rescoring import build_rescoring
from ..utils.errors import ConfigError, DataError
from ..utils.registry import get_registered, num_classes_node
from .class_names import dataset_class_names

__all__ = ["config_to_store", "is_checkpoint", "load_config", "with_batch"]

logger = logging.getLogger(__name__)


def load_config(
    config_file: str, opts: list[str] | None = None, eval_only: bool = False
) -> CfgNode:
    """Loads a yaml config with yaml's safe loader, applies overrides, and checks it.

    Registers the config's folder or COCO-format datasets, replaces a NUM_CLASSES of 0 by that of
    the data and MAX_ITER and EVAL_PERIOD by what EPOCHS and EVAL_EPOCHS ask for, scales BASE_LR to
    the batch, and uses the CPU if there is no GPU. What depends on the batch stays as it is where
    IMS_PER_BATCH is 0 (:func:`with_batch`).

    Args:
        config_file: path of a yaml file; or of a checkpoint (.pth, .pt), for the config in it, else
            for the ``config.yaml`` beside it, with the checkpoint as MODEL.WEIGHTS.
        opts: overrides, ``["KEY", "value", ...]``.
        eval_only: whether to ignore the training datasets.

    Returns:
        The frozen config.

    Raises:
        ConfigError: the file, a key or a value is wrong.
        DataError: a dataset is missing, broken or contradicts the config.
    """
    cfg = _read_config(config_file, opts or [])
    # An evaluation does not need the training data
    keys = ("TEST",) if eval_only else ("TRAIN", "TEST")
    _register_folder(cfg, opts or [], eval_only)
    for key in keys:
        _register_json_dataset(cfg, key)
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON and not eval_only:
        cfg.DATASETS.TEST = ()
    for key in keys:
        _check_registered(cfg, key)
    if eval_only and not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only has nothing to evaluate: DATASETS.TEST is empty.")
    check_keys(cfg)
    if cfg.SOLVER.PATIENCE > 0 and not cfg.DATASETS.TEST:
        raise ConfigError(
            f"SOLVER.PATIENCE is {cfg.SOLVER.PATIENCE}, but DATASETS.TEST is empty, so that nothing"
            " is evaluated; give validation images, or set PATIENCE to 0."
        )
    get_registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    get_registered(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    _check_parts(cfg)
    _resolve_num_classes(cfg, keys)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if not cfg.MODEL.DEVICE.startswith("cuda") and cfg.SOLVER.AMP.ENABLED and not eval_only:
        raise ConfigError("SOLVER.AMP.ENABLED needs a GPU in Detectron2; set it to False.")
    if cfg.SOLVER.IMS_PER_BATCH > 0:
        if not eval_only:
            _resolve_epochs(cfg)
        scale_to_batch(cfg)
    cfg.freeze()
    return cfg


def with_batch(cfg: CfgNode, batch: int) -> CfgNode:
    """Sets the batch of a config with SOLVER.IMS_PER_BATCH 0; as many images are seen as before.

    As where Detectron2 scales a config to its workers, iterations and periods are scaled, too.

    Args:
        cfg: from :func:`load_config`; its iterations are meant for SOLVER.REFERENCE_BATCH.
        batch: SOLVER.IMS_PER_BATCH.

    Returns:
        The frozen config.
    """
    cfg = cfg.clone()
    cfg.defrost()
    solver, scale = cfg.SOLVER, cfg.SOLVER.REFERENCE_BATCH / batch
    solver.IMS_PER_BATCH = batch
    for node, keys in (
        (solver, ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")),
        (cfg.TEST, ("EVAL_PERIOD",)),
    ):
        for key in keys:
            node[key] = round(node[key] * scale)
    solver.STEPS = tuple(round(step * scale) for step in solver.STEPS)
    _resolve_epochs(cfg)
    scale_to_batch(cfg)
    cfg.freeze()
    return cfg


def config_to_store(cfg: CfgNode) -> str:
    """The config as yaml text for checkpoints, without MODEL.WEIGHTS and OUTPUT_DIR."""
    stored = cfg.clone()
    stored.defrost()
    stored.MODEL.WEIGHTS, stored.OUTPUT_DIR = "", get_cfg().OUTPUT_DIR
    return stored.dump()


def is_checkpoint(config_file: str) -> bool:
    """Whether a path given as a config is a checkpoint's, by its ending."""
    return config_file.endswith((".pth", ".pt"))


def _read_config(config_file: str, opts: list[str]) -> CfgNode:
    """Reads a yaml file, or the config of a checkpoint."""
    if not is_checkpoint(config_file):
        return read_config(config_file, opts)
    if not os.path.isfile(config_file):
        raise ConfigError(f"Weights: there is no file '{config_file}'.")
    opts = ["MODEL.WEIGHTS", config_file, *opts]
    text = stored_config(config_file)
    if text is not None:
        return read_config(config_file, opts, text)
    beside = os.path.join(os.path.dirname(config_file), "config.yaml")
    if not os.path.isfile(beside):
        raise ConfigError(
            f"The checkpoint {config_file} has no config in it, and no config.yaml lies beside it;"
            " name the config of its training with --config-file."
        )
    return read_config(beside, opts)


def _resolve_epochs(cfg: CfgNode) -> None:
    """Replaces MAX_ITER, STEPS and EVAL_PERIOD if their number of epochs is given."""
    epochs, eval_epochs, batch = cfg.SOLVER.EPOCHS, cfg.TEST.EVAL_EPOCHS, cfg.SOLVER.IMS_PER_BATCH
    if (epochs <= 0 and eval_epochs <= 0) or not cfg.DATASETS.TRAIN:
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


def _register_folder(cfg: CfgNode, opts: Sequence[str], eval_only: bool) -> None:
    """Registers the dataset of DATASETS.FOLDER, if set."""
    datasets = cfg.DATASETS
    if not datasets.FOLDER:
        return
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        if key in opts[::2]:
            raise ConfigError(
                f"DATASETS.FOLDER is '{datasets.FOLDER}', which replaces {key}: leave {key} out;"
                " DATASETS.EVAL_SPLIT chooses the split to evaluate on."
            )
    for key in JSON_KEYS:
        if datasets[key]:
            raise ConfigError(
                f"DATASETS.FOLDER is '{datasets.FOLDER}' and DATASETS.{key} is '{datasets[key]}';"
                " give the folder or the json files, and set the other to ''."
            )
    names = register_folder(datasets.FOLDER, datasets.FORMAT, datasets.VAL_SHARE)
    if "train" not in names and not eval_only:
        raise DataError(
            f"DATASETS.FOLDER: {datasets.FOLDER} has images for {' and '.join(names)}, and none to"
            " train on: add a folder or list named train"
        )
    datasets.TRAIN = (names["train"],) if "train" in names else ()
    if datasets.EVAL_SPLIT != "val" and datasets.EVAL_SPLIT not in names:
        raise ConfigError(
            f"DATASETS.EVAL_SPLIT is '{datasets.EVAL_SPLIT}', and {datasets.FOLDER} has only"
            f" {' and '.join(names)}; choose one of these."
        )
    datasets.TEST = (names[datasets.EVAL_SPLIT],) if datasets.EVAL_SPLIT in names else ()


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
