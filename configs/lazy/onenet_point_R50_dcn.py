"""Twin of configs/coco/onenet_point_R50_dcn.yaml."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from onenet import Criterion, MinCostMatcher, OneNet, PointHead, ResNetDeconv

from .common import adamw, coco_dataloader, lr_multiplier, resnet, train

model = L(OneNet)(
    backbone=L(ResNetDeconv)(bottom_up=resnet(50, "BN", 0, ["res2", "res3", "res4", "res5"])),
    head=L(PointHead)(input_shape=[L(ShapeSpec)(channels=64, stride=4)], num_classes=80),
    criterion=L(Criterion)(matcher=L(MinCostMatcher)()),
)
dataloader = coco_dataloader((416, 448, 480, 512), 853, 512, 853, batch_size=64)
optimizer = adamw
