"""Reading of configs with yaml's safe loader, and checks of the keys that OneNet adds."""

from __future__ import annotations

import ast
import difflib
import functools
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from ..utils.errors import ConfigError
from ..utils.files import parse_yaml, read_yaml
from .defaults import add_onenet_config

__all__ = ["OWN_DATA", "check_keys", "read_config", "scale_to_batch"]

logger = logging.getLogger(__name__)

OWN_DATA = Path(__file__).resolve().parents[1] / "configs" / "own_data"

_KINDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text",
    tuple: "a tuple", list: "a list",
}  # fmt: skip
MAX_BASES = 100  # files reached through _BASE_

_LOWEST = {  # values below end in an error later, or in a run without a result
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.REFERENCE_BATCH": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.MOMENTUM": 0,
    "SOLVER.BACKBONE_LR_FACTOR": 0,
    "SOLVER.EPOCHS": 0,
    "SOLVER.PATIENCE": 0,
    "TEST.EVAL_EPOCHS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TEST": 1,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "VIS_PERIOD": 0,
}
_CHOICES = {  # what Detectron2 looks up, or compares with, in the middle of a run
    "INPUT.ON_BAD_IMAGE": ("fail", "skip"),
    "DATASETS.EVAL_SPLIT": ("train", "val", "test"),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    # The others need keys that Detectron2's config does not have
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "TEST.AUG.ENABLED": (False,),  # of R-CNN alone
}  # fmt: skip
_RESNET_DEPTHS = (18, 34, 50, 101, 152)


def read_config(
    config_file: str, opts: list[str] | None = None, text: str | None = None
) -> CfgNode:
    """Reads a yaml config with yaml's safe loader and applies overrides.

    Args:
        config_file: path of a yaml file.
        opts: overrides, ``["KEY", "value", ...]``.
        text: yaml from within the file ``config_file``, which is then not read.

    Returns:
        The config, not frozen and not checked.

    Raises:
        ConfigError: the file is missing or invalid, or an override is wrong.
    """
    cfg = get_cfg()
    add_onenet_config(cfg)
    if text is None:
        _merge_file(cfg, config_file)
    else:
        _merge_text(cfg, config_file, text)
    opts = opts or []
    if len(opts) % 2:
        raise ConfigError(
            f"Override on the command line: {opts[-1]} has no value; give KEY value pairs."
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _override(cfg, key, value)
    return cfg


def _override(cfg: CfgNode, key: str, value: Any) -> None:
    """Sets a key; an int becomes the float, and a number the tuple, that the key has."""
    where = "Override on the command line"
    try:
        present = _value(cfg, key)
    except AttributeError as error:
        close = difflib.get_close_matches(key, _keys(cfg), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise ConfigError(f"{where}: there is no key {key}{hint}") from error
    try:
        new = ast.literal_eval(value) if isinstance(value, str) else value
        if type(present) is float and type(new) is int:
            value = float(new)
        elif isinstance(present, (tuple, list)) and type(new) in (int, float):
            value = type(present)([new])
    except (ValueError, SyntaxError):
        pass  # a text
    except (RecursionError, MemoryError) as error:
        raise ConfigError(f"{where}: {key} cannot be read ({_reason(error)}).") from error
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        kind = _KINDS.get(type(present), type(present).__name__)
        raise ConfigError(
            f"{where}: {key} is {value!r}; give {kind}, as {present!r} is."
        ) from error
    except (KeyError, AssertionError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{where}: {_reason(error)}") from error


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    """All keys, with dots."""
    found = []
    for name, value in node.items():
        inner = isinstance(value, CfgNode)
        found += _keys(value, f"{prefix}{name}.") if inner else [prefix + name]
    return found


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    if not config_file:
        raise ConfigError("Name a config with --config-file; configs/ has many.")
    if not os.path.isfile(config_file):
        raise ConfigError(f"Config or checkpoint: there is no file '{config_file}'.")
    _check_yaml(config_file, [])
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except Exception as error:  # fvcore and yacs raise errors of many types
        raise ConfigError(f"{config_file} is no valid config: {_reason(error)}") from error


def _merge_text(cfg: CfgNode, path: str, text: str) -> None:
    content = parse_yaml(text, f"The config in {path}")
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except Exception as error:  # see above
        raise ConfigError(
            f"The config in {path} is none of this version of onenet: {_reason(error)}; use the"
            " version that trained it, or name a config of this one with --config-file."
        ) from error


def check_keys(cfg: CfgNode) -> None:
    """Checks the keys that no constructor checks.

    Raises:
        ConfigError: a value is wrong.
    """
    for key, choices in _CHOICES.items():
        if (value := _value(cfg, key)) not in choices:
            raise ConfigError(f"{key} is '{value}'; choose one of {', '.join(map(str, choices))}.")
    for key, lowest in _LOWEST.items():
        if not (value := _value(cfg, key)) >= lowest:  # nan, too
            raise ConfigError(f"{key} is {value}; give {lowest} or more.")
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if not sizes or not all(map(_is_finite, sizes)) or min(sizes) < 1:
        raise ConfigError(f"INPUT.MIN_SIZE_TRAIN is {sizes}; give sizes in pixels, as (640, 800).")
    if sampling == "range" and len(sizes) != 2:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; give two sizes, the ends of the range, for"
            " INPUT.MIN_SIZE_TRAIN_SAMPLING range."
        )
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ConfigError(
            f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}', which torch does not know; give cuda or cpu."
        ) from error
    _check_pixels(cfg)
    _check_resnet(cfg)
    _check_limits(cfg)
    _check_jitter(cfg)
    _check_thresholds(cfg)
    _check_solver(cfg)


def _check_yaml(path: str, visited: list[str]) -> None:
    """Checks that a config and its _BASE_ files can be read safely."""
    visited.append(path)
    if len(visited) > MAX_BASES:
        raise ConfigError(
            f"_BASE_ leads from {visited[0]} to more than {MAX_BASES} files, the last is {path};"
            " does one lead back to itself?"
        )
    content = read_yaml(path)
    bases = content.get("_BASE_", []) if isinstance(content, dict) else []
    for base in bases if isinstance(bases, list) else [bases]:
        base = os.path.join(os.path.dirname(path), os.path.expanduser(str(base)))
        if os.path.isfile(base):
            _check_yaml(base, visited)


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def _check_pixels(cfg: CfgNode) -> None:
    """Checks the normalisation of the input."""
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        values = list(cfg.MODEL[key])
        are_numbers = len(values) == 3 and all(map(_is_finite, values))
        if not are_numbers or (key == "PIXEL_STD" and min(values) <= 0):
            raise ConfigError(f"MODEL.{key} is {values}; give three numbers, PIXEL_STD's above 0.")


def _check_resnet(cfg: CfgNode) -> None:
    """Checks what Detectron2's ResNets and their FPN only look up or assert."""
    depth, channels = cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    if depth not in _RESNET_DEPTHS:
        known = ", ".join(map(str, _RESNET_DEPTHS))
        raise ConfigError(f"MODEL.RESNETS.DEPTH is {depth}; choose one of {known}.")
    if depth < 50 and channels != 64:
        raise ConfigError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {channels}; set it to 64 for MODEL.RESNETS.DEPTH"
            f" {depth}."
        )
    names, known = list(cfg.MODEL.FPN.IN_FEATURES), cfg.MODEL.RESNETS.OUT_FEATURES
    uses_fpn = "resnet_fpn" in cfg.MODEL.BACKBONE.NAME
    if uses_fpn and not (names and set(names) <= set(known)):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {names}; name feature maps of MODEL.RESNETS.OUT_FEATURES,"
            f" which are {known}."
        )


def _check_solver(cfg: CfgNode) -> None:
    """Checks the solver's keys."""
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH == 0 and (solver.REFERENCE_BATCH < 1 or solver.REFERENCE_WORLD_SIZE):
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH is 0: for a batch that fits into memory set"
            f" SOLVER.REFERENCE_BATCH ({solver.REFERENCE_BATCH}) to the batch that BASE_LR and"
            f" MAX_ITER are meant for, and SOLVER.REFERENCE_WORLD_SIZE"
            f" ({solver.REFERENCE_WORLD_SIZE}) to 0; else give SOLVER.IMS_PER_BATCH."
        )
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise ConfigError(
            f"SOLVER.EMA_DECAY is {cfg.SOLVER.EMA_DECAY}; give a number between 0 and 1, or 0 for"
            " no average."
        )
    if not cfg.SOLVER.BASE_LR > 0:
        raise ConfigError(f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR}; give a number above 0.")
    steps = list(cfg.SOLVER.STEPS)
    if not all(map(_is_finite, steps)) or steps != sorted(steps):
        raise ConfigError(f"SOLVER.STEPS is {steps}; give the iterations in rising order.")
    if cfg.SOLVER.PATIENCE > 0 and not cfg.TEST.BEST_METRIC:
        raise ConfigError(
            f"SOLVER.PATIENCE is {cfg.SOLVER.PATIENCE}, but TEST.BEST_METRIC names no metric; set"
            " it, for instance to bbox/AP."
        )
    if cfg.SOLVER.EMA_DECAY > 0 and cfg.TEST.PRECISE_BN.ENABLED:
        raise ConfigError(
            "TEST.PRECISE_BN.ENABLED does not reach the average of SOLVER.EMA_DECAY, which is what"
            " is evaluated; set one of the two to False or 0."
        )


def scale_to_batch(cfg: CfgNode) -> None:
    """With SOLVER.REFERENCE_BATCH, makes BASE_LR that for IMS_PER_BATCH.

    Args:
        cfg: changed in place; IMS_PER_BATCH is not 0.
    """
    solver = cfg.SOLVER
    if solver.REFERENCE_BATCH > 0:
        solver.BASE_LR *= math.sqrt(solver.IMS_PER_BATCH / solver.REFERENCE_BATCH)
        solver.REFERENCE_BATCH = solver.IMS_PER_BATCH


def _check_limits(cfg: CfgNode) -> None:
    """Checks the form of TEST.LIMITS; its names are checked with the results."""
    for entry in cfg.TEST.LIMITS:
        match entry:
            case [str(task), str(), "max" | "min", limit] if _is_finite(limit):
                if task.startswith("end_to_end") and not cfg.TEST.END_TO_END.ENABLED:
                    raise ConfigError(
                        f"TEST.LIMITS limits '{task}', which TEST.END_TO_END.ENABLED False switches"
                        " off; set that to True."
                    )
            case _:
                raise ConfigError(
                    f"TEST.LIMITS has the entry {entry!r}; write [task, metric, 'max' or 'min',"
                    " number] such as ['end_to_end', 'NMS_gap', 'max', 1.0]."
                )
    if cfg.TEST.LIMITS and not cfg.DATASETS.TEST:
        raise ConfigError("TEST.LIMITS has nothing to limit: DATASETS.TEST is empty.")


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_jitter(cfg: CfgNode) -> None:
    for name, strength in cfg.INPUT.COLOR_JITTER.items():
        if not 0 <= strength <= 1:
            raise ConfigError(
                f"INPUT.COLOR_JITTER.{name} is {strength}; give a number from 0 to 1."
            )


def _check_thresholds(cfg: CfgNode) -> None:
    """Checks that the evaluator's thresholds are IoUs."""
    end_to_end = cfg.TEST.END_TO_END
    if not 0 < end_to_end.IOU_THRESH <= 1:
        raise ConfigError(
            f"TEST.END_TO_END.IOU_THRESH is {end_to_end.IOU_THRESH}; give an IoU above 0, up to 1."
        )
    if not 0 <= end_to_end.NMS_THRESH <= 1:
        raise ConfigError(
            f"TEST.END_TO_END.NMS_THRESH is {end_to_end.NMS_THRESH}; give an IoU from 0 to 1."
        )


def _reason(error: Exception) -> str:
    # str(KeyError) is the repr of its message, in quotes
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())
