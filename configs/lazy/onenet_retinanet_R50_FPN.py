"""Twin of configs/coco/onenet_retinanet_R50_FPN.yaml."""

from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from onenet import Criterion, MinCostMatcher, OneNet, RetinaNetHead

from .common import (
    coco_dataloader,
    fpn_adamw,
    fpn_features,
    fpn_shapes,
    fpn_sizes,
    lr_multiplier,
    resnet50_fpn,
    train,
)

model = L(OneNet)(
    backbone=resnet50_fpn,
    head=L(RetinaNetHead)(
        input_shape=fpn_shapes,
        num_classes=80,
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[
                [32, 40.3175, 50.7968],
                [64, 80.6349, 101.5937],
                [128, 161.2699, 203.1873],
                [256, 322.5398, 406.3747],
                [512, 645.0796, 812.7493],
            ],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            offset=0.0,
        ),
    ),
    head_in_features=fpn_features,
    criterion=L(Criterion)(matcher=L(MinCostMatcher)()),
)
dataloader = coco_dataloader(fpn_sizes, 1500, 800, 1333, batch_size=16)
optimizer = fpn_adamw
