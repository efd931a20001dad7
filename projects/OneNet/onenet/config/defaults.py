"""The config keys that OneNet adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_onenet_config"]


def add_onenet_config(cfg: CfgNode) -> None:
    """Adds the keys below, with the paper's values, to a config from ``get_cfg()``."""
    _add_model(cfg)
    _add_matcher(cfg)
    _add_rescoring_and_losses(cfg)
    _add_baseline(cfg)
    _add_solver_and_data(cfg)


def _add_model(cfg: CfgNode) -> None:
    """Head, neck and backbones."""
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

    # The network of build_timm_backbone, and of those that put a pyramid ("..._fpn_") or the neck
    # above ("..._deconv_") on top. Its maps are named as a ResNet's, by stride: res2 (4), res3 (8),
    # res4 (16), res5 (32). MODEL.BACKBONE.FREEZE_AT has to be 0 with it.
    cfg.MODEL.TIMM = CfgNode()
    # Any of timm.list_models() that gives feature maps of these strides, with or without ".tag".
    cfg.MODEL.TIMM.NAME = "resnet10t"
    # Whether a model without MODEL.WEIGHTS starts from timm's weights of that name.
    cfg.MODEL.TIMM.PRETRAINED = False
    # What lies behind the coarsest of these is not built.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def _add_matcher(cfg: CfgNode) -> None:
    """Assignment."""
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


def _add_rescoring_and_losses(cfg: CfgNode) -> None:
    """Memory and speed, rescoring, losses, NMS."""
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
    # What it starts as: "voting" (a soft NMS with votes) or, for ablations, "soft_nms", or "zero"
    # for no effect.
    cfg.MODEL.ONENET.RESCORING.INIT = "voting"

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


def _add_baseline(cfg: CfgNode) -> None:
    """Detectron2's FCOS."""
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


def _add_solver_and_data(cfg: CfgNode) -> None:
    """Solver, input, datasets, evaluation."""
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
