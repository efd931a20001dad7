"""The config keys that OneNet adds to Detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["JSON_KEYS", "add_onenet_config"]

JSON_KEYS = ("TRAIN_JSON", "TRAIN_IMAGE_ROOT", "TEST_JSON", "TEST_IMAGE_ROOT")
"""The keys of DATASETS that name datasets in COCO format."""


def add_onenet_config(cfg: CfgNode) -> None:
    """Adds OneNet's keys, with the paper's values, to a config from ``get_cfg()``."""
    _add_model(cfg)
    _add_matcher(cfg)
    _add_rescoring_and_losses(cfg)
    _add_baseline(cfg)
    _add_solver(cfg)
    _add_data_and_evaluation(cfg)
    # Writers of the metrics beside the terminal, metrics.json and TensorBoard: "wandb" (Weights &
    # Biases) and "mlflow", if installed. Their own environment variables set project and server.
    cfg.WRITERS = ()


def _add_model(cfg: CfgNode) -> None:
    """Head, neck and backbones."""
    cfg.MODEL.ONENET = CfgNode()
    # Number of classes; 0 takes it from the first training dataset.
    cfg.MODEL.ONENET.NUM_CLASSES = 0
    # Names of the backbone's feature maps for the head, finest first.
    cfg.MODEL.ONENET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # A name in ONENET_HEAD_REGISTRY: PointHead, FCOSHead, or RetinaNetHead, which uses the anchors
    # of MODEL.ANCHOR_GENERATOR.
    cfg.MODEL.ONENET.HEAD = CfgNode()
    cfg.MODEL.ONENET.HEAD.NAME = "FCOSHead"
    # Number of convolutions in each of the two towers (FCOS and RetinaNet head).
    cfg.MODEL.ONENET.HEAD.NUM_CONVS = 4
    # Channels of the towers, or of the point head's shared convolution.
    cfg.MODEL.ONENET.HEAD.CONV_DIM = 256
    # Normalisation in the towers: "GN" (published for the FCOS head), "" for none (published for
    # the RetinaNet head), "BN", "SyncBN", ...
    cfg.MODEL.ONENET.HEAD.NORM = "GN"
    # Whether the towers' convolutions have a bias, as in torchvision's FCOS and Detectron2's
    # RetinaNet.
    cfg.MODEL.ONENET.HEAD.CONV_BIAS = False
    # FCOS head: position of a location in its stride cell, in strides: 0.5 for the centre; 0.0 for
    # the top left corner, as in torchvision's FCOS.
    cfg.MODEL.ONENET.HEAD.OFFSET = 0.5
    # Initial score of every sample and class.
    cfg.MODEL.ONENET.HEAD.PRIOR_PROB = 0.01
    # Standard deviation of the initial weights of towers and predictors: 0.01 in RetinaNet and
    # FCOS; 0 for Xavier's (published). The RetinaNet head's predictors always have 0.01.
    cfg.MODEL.ONENET.HEAD.INIT_STD = 0.0
    # The neck of build_resnet_deconv_backbone and build_timm_deconv_backbone.
    cfg.MODEL.ONENET.DECONV = CfgNode()
    # Channels of the three up-sampling stages.
    cfg.MODEL.ONENET.DECONV.CHANNELS = [256, 128, 64]
    # Whether the 3x3 convolutions are deformable (DCNv2).
    cfg.MODEL.ONENET.DECONV.DEFORM = True
    cfg.MODEL.ONENET.DECONV.NORM = "BN"

    # The network of the build_..timm.. backbones. Its feature maps are named by stride, as a
    # ResNet's: res2 (4), res3 (8), res4 (16), res5 (32). MODEL.BACKBONE.FREEZE_AT must be 0.
    cfg.MODEL.TIMM = CfgNode()
    # A name in timm.list_models() with feature maps of these strides, with or without ".tag".
    cfg.MODEL.TIMM.NAME = "resnet10t"
    # Whether to start from timm's weights if MODEL.WEIGHTS is empty.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Feature maps to return; stages beyond the coarsest are not built.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def _add_matcher(cfg: CfgNode) -> None:
    """Matching."""
    # A name in ONENET_MATCHER_REGISTRY: MinCostMatcher or HungarianMatcher.
    cfg.MODEL.ONENET.MATCHER = CfgNode()
    cfg.MODEL.ONENET.MATCHER.NAME = "MinCostMatcher"
    # A name in ONENET_COST_REGISTRY. MatchingCost uses the predicted boxes (the paper's method);
    # AnchorCost (RetinaNet head) and PointCost (FCOS and point head) use a predefined location, for
    # ablations.
    cfg.MODEL.ONENET.MATCHER.COST = "MatchingCost"
    # Weights of the cost terms (paper, equation 1); CLASS_WEIGHT 0 drops the classification cost.
    cfg.MODEL.ONENET.MATCHER.CLASS_WEIGHT = 2.0
    cfg.MODEL.ONENET.MATCHER.L1_WEIGHT = 5.0
    cfg.MODEL.ONENET.MATCHER.GIOU_WEIGHT = 2.0

    # Candidate samples of an object: "" for all, "box" for those whose location is inside its box.
    cfg.MODEL.ONENET.MATCHER.PRIOR = ""


def _add_rescoring_and_losses(cfg: CfgNode) -> None:
    """Memory and speed, rescoring, losses, NMS."""
    # Whether to recompute the activations of ResNet blocks and towers in the backward pass: less
    # memory, more time, the same results.
    cfg.MODEL.ONENET.ACTIVATION_CHECKPOINTING = False
    # Whether weights and activations are channels-last in memory: the same results up to rounding;
    # see docs/benchmark.md for the speed. Not for a ResNet with Detectron2's deformable
    # convolutions.
    cfg.MODEL.ONENET.CHANNELS_LAST = False

    # Rescoring: a learned module (three weights) that refines the top logits using overlapping
    # boxes.
    cfg.MODEL.ONENET.RESCORING = CfgNode()
    # Number of logits per image that are rescored, at least TEST.DETECTIONS_PER_IMAGE; 0 for no
    # rescoring.
    cfg.MODEL.ONENET.RESCORING.CANDIDATES = 0
    # Initial weights: "voting" (a soft NMS with votes) or, for ablations, "soft_nms" or "zero" (no
    # effect).
    cfg.MODEL.ONENET.RESCORING.INIT = "voting"

    # One-to-many training of the head; rescoring is still trained one-to-one. Above 0, an object's
    # positives are all samples within this many strides of its centre, on the levels of its size
    # (FCOS's center sampling). 0: one-to-one.
    cfg.MODEL.ONENET.ONE_TO_MANY = CfgNode()
    cfg.MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS = 0.0

    # Weights of the losses.
    cfg.MODEL.ONENET.LOSS = CfgNode()
    cfg.MODEL.ONENET.LOSS.CLASS_WEIGHT = 2.0
    cfg.MODEL.ONENET.LOSS.L1_WEIGHT = 5.0
    cfg.MODEL.ONENET.LOSS.GIOU_WEIGHT = 2.0
    # Whether to lower the weight of negatives near a positive by CenterNet's Gaussian. With
    # PointCost and MATCHER.CLASS_WEIGHT 0 these are CenterNet's targets (ablation).
    cfg.MODEL.ONENET.LOSS.SOFT_NEGATIVES = False

    # Focal loss and classification cost.
    cfg.MODEL.ONENET.FOCAL_ALPHA = 0.25
    cfg.MODEL.ONENET.FOCAL_GAMMA = 2.0

    # Whether to apply class-wise NMS after the top-k (TEST.DETECTIONS_PER_IMAGE), for comparisons.
    cfg.MODEL.ONENET.NMS_TEST = False
    cfg.MODEL.ONENET.NMS_THRESH_TEST = 0.6


def _add_baseline(cfg: CfgNode) -> None:
    """Detectron2's FCOS."""
    # META_ARCHITECTURE "FCOSBaseline": Detectron2's FCOS.
    cfg.MODEL.FCOS = CfgNode()
    # Number of classes; 0 takes it from the first training dataset.
    cfg.MODEL.FCOS.NUM_CLASSES = 0
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of convolutions in each of the two towers, and their normalisation.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Positives are the locations within this many strides of an object's centre.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Inference: score threshold, candidates before NMS, IoU threshold of NMS.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


def _add_solver(cfg: CfgNode) -> None:
    # The batch size that BASE_LR is meant for; 0 for no scaling. load_config multiplies BASE_LR by
    # the square root of IMS_PER_BATCH / REFERENCE_BATCH (for Adam: arXiv 2205.10287) and sets this
    # to IMS_PER_BATCH. With IMS_PER_BATCH 0, setup takes the largest of this batch, half of it, a
    # quarter, ... that fits into memory, and scales MAX_ITER, STEPS, WARMUP_ITERS, EVAL_PERIOD and
    # CHECKPOINT_PERIOD, so that as many images are seen.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Factor of the learning rate of the backbone without its FPN or neck.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Decay of the exponential moving average of the weights; the average is evaluated and saved as
    # the model. 0 for none.
    cfg.SOLVER.EMA_DECAY = 0.0
    # Number of pieces in which a batch goes through the model, for batches that do not fit into
    # memory. The batch size and the number of iterations do not change.
    cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS = 1
    # Length of the training in passes through the training images, in place of MAX_ITER; STEPS are
    # scaled with it. 0 for MAX_ITER.
    cfg.SOLVER.EPOCHS = 0
    # Number of evaluations without a new maximum of TEST.BEST_METRIC after which the training ends;
    # 0 for none.
    cfg.SOLVER.PATIENCE = 0
    # Whether a run may go on with another number of workers than it had, in the same batches of
    # images but with other rounding, random numbers and shares of batch norm.
    cfg.SOLVER.ELASTIC = False
    # "AdamW" or "SGD".
    cfg.SOLVER.OPTIMIZER = "AdamW"


def _add_data_and_evaluation(cfg: CfgNode) -> None:
    """Input, evaluation, datasets."""
    # With INPUT.CROP.ENABLED: the probability that the shorter side is resized to one of MIN_SIZES,
    # and a window of INPUT.CROP.TYPE and SIZE cropped, before the usual augmentation.
    cfg.INPUT.CROP.PROB = 0.5
    cfg.INPUT.CROP.MIN_SIZES = (400, 500, 600)

    # Random brightness, contrast and saturation in training: each is multiplied by a number from
    # 1 - x to 1 + x; 0 for none.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0

    # For images that do not decode, or differ in size from their annotation: "fail" ends the run;
    # "skip" continues and lists them at the end. In training another image takes the place of a
    # skipped one; in evaluation it counts as an image without detections.
    cfg.INPUT.ON_BAD_IMAGE = "fail"

    # Measures duplicates, score gap and NMS gap beside COCO's AP (docs/end_to_end.md). A detector
    # with NMS is evaluated a second time without it.
    cfg.TEST.END_TO_END = CfgNode()
    cfg.TEST.END_TO_END.ENABLED = True
    # IoU threshold of the NMS for the NMS gap.
    cfg.TEST.END_TO_END.NMS_THRESH = 0.6
    # Least IoU at which a detection lies on an object of its class.
    cfg.TEST.END_TO_END.IOU_THRESH = 0.5
    # A metric of the results, such as "bbox/AP": after each evaluation with a new maximum of it,
    # model_best.pth is saved. "" for none.
    cfg.TEST.BEST_METRIC = ""
    # Passes through the training images between evaluations, in place of EVAL_PERIOD; 0 for
    # EVAL_PERIOD.
    cfg.TEST.EVAL_EPOCHS = 0
    # Limits of the results; the program exits with code 1 if one is broken. Entries are [task,
    # metric, "max" or "min", value], such as ["end_to_end", "NMS_gap", "max", 1.0]. Checked for
    # each dataset of DATASETS.TEST, after --eval-only and at the end of a training.
    cfg.TEST.LIMITS = []

    # Datasets in COCO format: an annotation file, and the folder that its file names are relative
    # to. They replace DATASETS.TRAIN and DATASETS.TEST.
    for key in JSON_KEYS:
        cfg.DATASETS[key] = ""
    # Or a folder of images and annotations in COCO's, YOLO's or Pascal VOC's format
    # (docs/own_data.md). It replaces DATASETS.TRAIN, and DATASETS.TEST by EVAL_SPLIT.
    cfg.DATASETS.FOLDER = ""
    # The split of FOLDER to evaluate on: "val", "test" or "train".
    cfg.DATASETS.EVAL_SPLIT = "val"
    # "coco", "yolo" or "voc"; "" to recognise it.
    cfg.DATASETS.FORMAT = ""
    # Share of the training images that is held back for validation if FOLDER has no validation
    # split; 0 for no evaluation.
    cfg.DATASETS.VAL_SHARE = 0.2
