"""Twin of configs/coco/onenet_fcos_R50_FPN.yaml."""

from detectron2.config import LazyCall as L

from onenet import Criterion, FCOSHead, MinCostMatcher, OneNet

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
    head=L(FCOSHead)(input_shape=fpn_shapes, num_classes=80),
    head_in_features=fpn_features,
    criterion=L(Criterion)(matcher=L(MinCostMatcher)()),
)
dataloader = coco_dataloader(fpn_sizes, 1500, 800, 1333, batch_size=16)
optimizer = fpn_adamw
