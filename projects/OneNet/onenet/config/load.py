"""The config keys that OneNet adds to Detectron2's, and how a config is loaded."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from ..data.coco_json import check_same_classes, register_coco_json
from ..modeling.criterion import Criterion
from ..modeling.heads import ONENET_HEAD_REGISTRY
from ..modeling.matcher import ONENET_MATCHER_REGISTRY
from ..modeling.rescoring import build_rescoring
from ..utils.errors import ConfigError
from ..utils.files import read_yaml
from ..utils.registry import get_registered, num_classes_node

__all__ = ["add_onenet_config", "load_config", "resolve_num_classes"]

MAX_BASES = 100  # files that _BASE_ may lead to


def add_onenet_config(cfg: CfgNode) -> None:
    """Adds the keys below, with the paper's values, to a config from ``get_cfg()``."""
    cfg.MODEL.ONENET = CfgNode()
    # Number of classes. 0: as many as the (first) training dataset has.
    cfg.MODEL.ONENET.NUM_CLASSES = 0
    # Names of the backbone's feature maps that the head takes, finest first.
    cfg.MODEL.ONENET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # The head: a name in ONENET_HEAD_REGISTRY (PointHead, FCOSHead, RetinaNetHead). The RetinaNet
    # head takes its anchors from MODEL.ANCHOR_GENERATOR.
    cfg.MODEL.ONENET.HEAD = CfgNode()
    cfg.MODEL.ONENET.HEAD.NAME = "FCOSHead"
    # Convolutions in each of the two towers (FCOS and RetinaNet head).
    cfg.MODEL.ONENET.HEAD.NUM_CONVS = 4
    # Channels of the towers, or of the point head's shared convolution.
    cfg.MODEL.ONENET.HEAD.CONV_DIM = 256
    # Normalisation in the towers: "GN" (published with the FCOS head), "" for none (published with
    # the RetinaNet head), "BN", "SyncBN", ...
    cfg.MODEL.ONENET.HEAD.NORM = "GN"
    # Score of every sample and class before training.
    cfg.MODEL.ONENET.HEAD.PRIOR_PROB = 0.01
    # Standard deviation of the initial weights of towers and predictors: 0.01 in RetinaNet, FCOS;
    # 0 for Xavier's, which is published. (The RetinaNet head's predictors have 0.01 in any case.)
    cfg.MODEL.ONENET.HEAD.INIT_STD = 0.0
    # The neck of build_resnet_deconv_backbone and of other networks' "..._deconv_".
    cfg.MODEL.ONENET.DECONV = CfgNode()
    # Channels of its three up-sampling stages.
    cfg.MODEL.ONENET.DECONV.CHANNELS = [256, 128, 64]
    # Whether its 3x3 convolutions are deformable (DCNv2).
    cfg.MODEL.ONENET.DECONV.DEFORM = True
    cfg.MODEL.ONENET.DECONV.NORM = "BN"

    # The networks of build_mobilenetv3_backbone and build_timm_backbone, and of those that put a
    # pyramid ("..._fpn_") or the neck above ("..._deconv_") on top. Their maps are named as a
    # ResNet's, by stride: res2 (4), res3 (8), res4 (16), res5 (32). MODEL.BACKBONE.FREEZE_AT has to
    # be 0 with them.
    cfg.MODEL.MOBILENET = CfgNode()
    # "mobilenet_v3_large" or "mobilenet_v3_small".
    cfg.MODEL.MOBILENET.NAME = "mobilenet_v3_large"
    # Whether a model without MODEL.WEIGHTS starts from torchvision's ImageNet weights.
    cfg.MODEL.MOBILENET.PRETRAINED = False
    # What lies behind the coarsest of these is not built.
    cfg.MODEL.MOBILENET.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # The package timm has to be installed.
    cfg.MODEL.TIMM = CfgNode()
    # Any of timm.list_models() that gives feature maps of these strides, with or without ".tag".
    cfg.MODEL.TIMM.NAME = "resnet10t"
    # Whether a model without MODEL.WEIGHTS starts from timm's weights of that name.
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]

    # The matcher: a name in ONENET_MATCHER_REGISTRY (MinCostMatcher, HungarianMatcher).
    cfg.MODEL.ONENET.MATCHER = CfgNode()
    cfg.MODEL.ONENET.MATCHER.NAME = "MinCostMatcher"
    # Its cost: a name in ONENET_COST_REGISTRY. MatchingCost, of the predicted boxes, is the
    # method; AnchorCost (RetinaNet head) and PointCost (FCOS and point head) take a predefined
    # location in their place, for the ablation. The weights are those of the cost's parts (paper,
    # equation 1); CLASS_WEIGHT 0 leaves the classification cost out.
    cfg.MODEL.ONENET.MATCHER.COST = "MatchingCost"
    cfg.MODEL.ONENET.MATCHER.CLASS_WEIGHT = 2.0
    cfg.MODEL.ONENET.MATCHER.L1_WEIGHT = 5.0
    cfg.MODEL.ONENET.MATCHER.GIOU_WEIGHT = 2.0

    # Which samples an object may have: "" for all, "box" for those whose location lies inside its
    # box.
    cfg.MODEL.ONENET.MATCHER.PRIOR = ""

    # Whether ResNet's blocks and the towers keep only their inputs in training, and are computed
    # again in backward: less memory, more time, the same results.
    cfg.MODEL.ONENET.ACTIVATION_CHECKPOINTING = False
    # Whether weights and activations lie in memory with the channels innermost: the same results,
    # but for rounding, and faster where docs/benchmark.md measures it. Not for a ResNet that has
    # Detectron2's own deformable convolutions.
    cfg.MODEL.ONENET.CHANNELS_LAST = False

    # Rescoring: behind the top-k lowers the scores of duplicates, and raises those that candidates
    # agree on, by three learned weights.
    cfg.MODEL.ONENET.RESCORING = CfgNode()
    # How many of an image's best logits, over all classes, it sees; 0 for no rescoring. Where it is
    # below TEST.DETECTIONS_PER_IMAGE, that many are taken.
    cfg.MODEL.ONENET.RESCORING.CANDIDATES = 0
    # What it starts as: "voting" (a soft NMS with votes), "soft_nms", or "zero" for no effect.
    # FROZEN: it stays that. (Ablations.)
    cfg.MODEL.ONENET.RESCORING.INIT = "voting"
    cfg.MODEL.ONENET.RESCORING.FROZEN = False

    # One-to-many training of the head's own logits and boxes, which leaves one-to-one training to
    # rescoring. Above 0: an object's positives are all samples within so many strides of its
    # centre, on the levels that serve its size (FCOS's center sampling). 0: one-to-one.
    cfg.MODEL.ONENET.ONE_TO_MANY = CfgNode()
    cfg.MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS = 0.0

    # The weights of the losses.
    cfg.MODEL.ONENET.LOSS = CfgNode()
    cfg.MODEL.ONENET.LOSS.CLASS_WEIGHT = 2.0
    cfg.MODEL.ONENET.LOSS.L1_WEIGHT = 5.0
    cfg.MODEL.ONENET.LOSS.GIOU_WEIGHT = 2.0
    # Whether negatives near an object's positive weigh less, by CenterNet's Gaussian (ablation:
    # CenterNet's targets are this, PointCost, and CLASS_WEIGHT 0 in the matcher).
    cfg.MODEL.ONENET.LOSS.SOFT_NEGATIVES = False

    # Focal loss, and the classification cost that mirrors it.
    cfg.MODEL.ONENET.FOCAL_ALPHA = 0.25
    cfg.MODEL.ONENET.FOCAL_GAMMA = 2.0

    # Whether class-wise NMS follows the top-k (TEST.DETECTIONS_PER_IMAGE). OneNet needs none: the
    # switch is there to see what NMS changes.
    cfg.MODEL.ONENET.NMS_TEST = False
    cfg.MODEL.ONENET.NMS_THRESH_TEST = 0.6

    # The FCOS baseline (META_ARCHITECTURE "FCOSBaseline", Detectron2's FCOS).
    cfg.MODEL.FCOS = CfgNode()
    # Number of classes. 0: as many as the (first) training dataset has.
    cfg.MODEL.FCOS.NUM_CLASSES = 0
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions in each of the two towers, and their normalisation.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Locations within this many strides of an object's centre are its positives.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Inference: lowest score, candidates before NMS, IoU threshold of NMS.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6

    # The batch size that BASE_LR is meant for; 0 for any. Where IMS_PER_BATCH differs, load_config
    # multiplies BASE_LR by the square root of their ratio (for Adam: arXiv 2205.10287) and sets
    # this to IMS_PER_BATCH.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # What the learning rate of the backbone is multiplied by, without the pyramid or neck on top.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Decay of the exponential moving average of the weights, which is then what is evaluated and
    # saved as the model; 0 for none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # In how many pieces a batch goes through the model, one after the other, before a step: for
    # batches that do not fit into memory. Their size and all that counts iterations stay.
    cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS = 1
    # "AdamW" or "SGD"; the other keys of SOLVER hold for both where they apply.
    cfg.SOLVER.OPTIMIZER = "AdamW"

    # INPUT.CROP.ENABLED: with this probability the short side is first resized to one of
    # MIN_SIZES and a window cropped as INPUT.CROP.TYPE and SIZE say.
    cfg.INPUT.CROP.PROB = 0.5
    cfg.INPUT.CROP.MIN_SIZES = (400, 500, 600)

    # What an image does that does not decode, or has another size than its annotation says: "fail"
    # ends the run, naming it; "skip" goes on, and tells names and count at the end. In training
    # another image takes its place; in evaluation nothing is found in it.
    cfg.INPUT.ON_BAD_IMAGE = "fail"

    # Duplicates, score gap and what NMS would change, measured beside COCO's AP
    # (onenet.evaluation). A detector that carries NMS is evaluated a second time without it.
    cfg.TEST.END_TO_END = CfgNode()
    cfg.TEST.END_TO_END.ENABLED = True
    # IoU above which the NMS that is tried out removes the lower score.
    cfg.TEST.END_TO_END.NMS_THRESH = 0.6
    # IoU with an object of its class from which on a detection lies on it.
    cfg.TEST.END_TO_END.IOU_THRESH = 0.5
    # What the results must keep to, else the program ends with exit code 1: entries
    # [task, metric, "max" or "min", value], such as ["end_to_end", "NMS_gap", "max", 1.0]. They
    # hold for each dataset of DATASETS.TEST, after --eval-only and at the end of a training.
    cfg.TEST.LIMITS = []

    # Any dataset in COCO format, without writing Python: an annotation file and the folder that
    # its file names are relative to. They take the place of DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGE_ROOT = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGE_ROOT = ""


def load_config(
    config_file: str, opts: list[str] | None = None, eval_only: bool = False
) -> CfgNode:
    """Loads a yaml config with yaml's safe loader, applies overrides, and checks it.

    Registers the COCO-format datasets that the config names, fills in a class count of 0 from the
    data, and replaces the device by the CPU where it is a GPU and there is none.

    Args:
        config_file: path of a yaml file.
        opts: overrides, ``["KEY", "value", ...]``.
        eval_only: whether only DATASETS.TEST matters.

    Returns:
        The config, frozen.

    Raises:
        ConfigError: the file, a key or a value is wrong.
        DataError: a dataset that the config names is missing, broken or contradicts the config.
    """
    cfg = get_cfg()
    add_onenet_config(cfg)
    if not config_file:
        raise ConfigError("Name a config with --config-file; configs/ has many.")
    if not os.path.isfile(config_file):
        raise ConfigError(f"--config-file: there is no file '{config_file}'.")
    _check_yaml(config_file, [])
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except Exception as error:  # fvcore and yacs raise anything, by what is wrong
        raise ConfigError(f"{config_file} is no valid config: {_reason(error)}") from error
    try:
        cfg.merge_from_list(opts or [])
    except (KeyError, ValueError, AssertionError, RecursionError, MemoryError) as error:
        raise ConfigError(f"Override on the command line: {_reason(error)}") from error
    # For an evaluation the training data need not be there, nor agree.
    keys = ("TEST",) if eval_only else ("TRAIN", "TEST")
    for key in keys:
        _register_json_dataset(cfg, key)
    if cfg.DATASETS.TRAIN_JSON and not cfg.DATASETS.TEST_JSON and not eval_only:
        cfg.DATASETS.TEST = ()
    for key in keys:
        _check_registered(cfg, key)
    if eval_only and not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only has nothing to evaluate: DATASETS.TEST is empty.")
    if cfg.INPUT.ON_BAD_IMAGE not in ("fail", "skip"):
        raise ConfigError(
            f"INPUT.ON_BAD_IMAGE is '{cfg.INPUT.ON_BAD_IMAGE}'; give 'fail' or 'skip'."
        )
    _check_limits(cfg)
    _check_thresholds(cfg)
    get_registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    get_registered(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    _check_parts(cfg)
    cfg = resolve_num_classes(cfg, keys)
    _check_num_classes(cfg, keys)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if not cfg.MODEL.DEVICE.startswith("cuda") and cfg.SOLVER.AMP.ENABLED and not eval_only:
        raise ConfigError("SOLVER.AMP.ENABLED needs a GPU in Detectron2; set it to False.")
    _check_solver(cfg)
    cfg.freeze()
    return cfg


def _check_yaml(path: str, visited: list[str]) -> None:
    """Raises where a config, or a file that its _BASE_ leads to, is not to be read."""
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


def _check_solver(cfg: CfgNode) -> None:
    """Checks what OneNet adds, and adapts BASE_LR to the batch where REFERENCE_BATCH is given."""
    reference, batch = cfg.SOLVER.REFERENCE_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference < 0:
        raise ConfigError(f"SOLVER.REFERENCE_BATCH is {reference}; give a batch size, or 0.")
    if batch < 1:
        raise ConfigError(f"SOLVER.IMS_PER_BATCH is {batch}; give 1 or more.")
    if cfg.SOLVER.BACKBONE_LR_FACTOR < 0:
        raise ConfigError(
            f"SOLVER.BACKBONE_LR_FACTOR is {cfg.SOLVER.BACKBONE_LR_FACTOR}; give 0 or more."
        )
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise ConfigError(
            f"SOLVER.EMA_DECAY is {cfg.SOLVER.EMA_DECAY}; give a number between 0 and 1, or 0 for"
            " no average."
        )
    if cfg.SOLVER.EMA_DECAY > 0 and cfg.TEST.PRECISE_BN.ENABLED:
        raise ConfigError(
            "TEST.PRECISE_BN.ENABLED does not reach the average of SOLVER.EMA_DECAY, which is what"
            " is evaluated; set one of the two to False or 0."
        )
    if reference > 0:
        cfg.SOLVER.BASE_LR *= math.sqrt(batch / reference)
        cfg.SOLVER.REFERENCE_BATCH = batch


def resolve_num_classes(cfg: CfgNode, keys: Sequence[str] = ("TRAIN", "TEST")) -> CfgNode:
    """Returns a copy of a config in which a class count of 0 is replaced by that of the data.

    Args:
        cfg: its NUM_CLASSES may be 0.
        keys: of DATASETS, in this order; the first dataset that is known tells the number.

    Raises:
        ConfigError: the count is 0, and no dataset tells it.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = num_classes_node(cfg)
    if node is None or cfg.MODEL[node].NUM_CLASSES > 0:
        return cfg
    datasets = _datasets_with_classes(cfg, keys)
    if not datasets:
        names = [name for key in keys for name in cfg.DATASETS[key]]
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {cfg.MODEL[node].NUM_CLASSES}, and the datasets {names}"
            " do not tell the number of classes; set it."
        )
    cfg.MODEL[node].NUM_CLASSES = len(MetadataCatalog.get(datasets[0]).thing_classes)
    return cfg


def _datasets_with_classes(cfg: CfgNode, keys: Sequence[str]) -> list[str]:
    """Those of the config's datasets that are registered with their class names."""
    names = [name for key in keys for name in cfg.DATASETS[key]]
    return [n for n in names if n in DatasetCatalog and MetadataCatalog.get(n).get("thing_classes")]


def _check_num_classes(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Raises where datasets have different classes, or not as many as the config says."""
    datasets = _datasets_with_classes(cfg, keys)
    for name in datasets:
        check_same_classes(datasets[0], name)
    node = num_classes_node(cfg)
    if node is None or not datasets:
        return
    count = len(MetadataCatalog.get(datasets[0]).thing_classes)
    if cfg.MODEL[node].NUM_CLASSES != count:
        raise ConfigError(
            f"MODEL.{node}.NUM_CLASSES is {cfg.MODEL[node].NUM_CLASSES}, but dataset"
            f" '{datasets[0]}' has {count} classes; set it to {count}, or to 0 to take it from the"
            " data."
        )


def _check_registered(cfg: CfgNode, key: str) -> None:
    for name in cfg.DATASETS[key]:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ConfigError(
                f"DATASETS.{key} names '{name}', which is not registered{hint}; for a set in COCO"
                f" format give DATASETS.{key}_JSON and DATASETS.{key}_IMAGE_ROOT instead."
            )


def _check_limits(cfg: CfgNode) -> None:
    """Raises where TEST.LIMITS is malformed; its names are known only with the results."""
    for entry in cfg.TEST.LIMITS:
        if not _is_limit(entry):
            raise ConfigError(
                f"TEST.LIMITS has the entry {entry!r}; write [task, metric, 'max' or 'min', number]"
                " such as ['end_to_end', 'NMS_gap', 'max', 1.0]."
            )
        if entry[0].startswith("end_to_end") and not cfg.TEST.END_TO_END.ENABLED:
            raise ConfigError(
                f"TEST.LIMITS limits '{entry[0]}', which TEST.END_TO_END.ENABLED False switches"
                " off; set that to True."
            )
    if cfg.TEST.LIMITS and not cfg.DATASETS.TEST:
        raise ConfigError("TEST.LIMITS has nothing to limit: DATASETS.TEST is empty.")


def _check_thresholds(cfg: CfgNode) -> None:
    """Raises where the evaluator's thresholds are no IoUs."""
    end_to_end = cfg.TEST.END_TO_END
    if not 0 < end_to_end.IOU_THRESH <= 1:
        raise ConfigError(
            f"TEST.END_TO_END.IOU_THRESH is {end_to_end.IOU_THRESH}; give an IoU above 0, up to 1."
        )
    if not 0 <= end_to_end.NMS_THRESH <= 1:
        raise ConfigError(
            f"TEST.END_TO_END.NMS_THRESH is {end_to_end.NMS_THRESH}; give an IoU from 0 to 1."
        )


def _check_parts(cfg: CfgNode) -> None:
    """Raises where a part that OneNet would be built of is not registered, or does not fit."""
    if cfg.MODEL.META_ARCHITECTURE != "OneNet":
        return
    onenet = cfg.MODEL.ONENET
    get_registered(ONENET_HEAD_REGISTRY, onenet.HEAD.NAME, "MODEL.ONENET.HEAD.NAME")
    get_registered(ONENET_MATCHER_REGISTRY, onenet.MATCHER.NAME, "MODEL.ONENET.MATCHER.NAME")
    Criterion(cfg)  # builds the matcher and its cost, too
    build_rescoring(cfg)


def _is_limit(entry: object) -> bool:
    if not isinstance(entry, (list, tuple)) or len(entry) != 4:
        return False
    task, metric, direction, value = entry
    return (
        isinstance(task, str)
        and isinstance(metric, str)
        and direction in ("max", "min")
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _register_json_dataset(cfg: CfgNode, key: str) -> None:
    """Registers the COCO-format dataset of DATASETS.<key>_JSON, if there is one."""
    json_file, image_root = cfg.DATASETS[f"{key}_JSON"], cfg.DATASETS[f"{key}_IMAGE_ROOT"]
    if bool(json_file) != bool(image_root):
        raise ConfigError(
            f"DATASETS.{key}_JSON is '{json_file}' and DATASETS.{key}_IMAGE_ROOT is"
            f" '{image_root}'; a COCO-format dataset needs both."
        )
    if json_file:
        cfg.DATASETS[key] = (register_coco_json(json_file, image_root),)


def _reason(error: Exception) -> str:
    # str(KeyError) is the repr of its message, in quotes
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())
