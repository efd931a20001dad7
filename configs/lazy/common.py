"""Shared by the lazy configs: data, optimiser and schedule of configs/Base-OneNet.yaml."""

import detectron2.data.transforms as T
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine.solver import clipped_adamw
from onenet.evaluation import UncachedCOCOEvaluator

train = model_zoo.get_config("common/train.py").train
train.max_iter = 270000
train.eval_period = 10000
train.checkpointer.period = 10000
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[210000, 250000], num_updates=270000
    ),
    warmup_length=1000 / 270000,
    warmup_factor=0.01,
)

adamw = L(torch.optim.AdamW)(params=L(get_default_optimizer_params)(), lr=5e-5, weight_decay=1e-4)
fpn_adamw = L(clipped_adamw)(
    params=L(get_default_optimizer_params)(), lr=4e-5, weight_decay=1e-4, max_norm=1.0
)


def coco_dataloader(min_sizes, max_size, test_min_size, test_max_size, batch_size):
    """COCO with the paper's crop and sizes."""
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    dataloader.train.dataset.filter_empty = False
    dataloader.train.total_batch_size = batch_size
    crop = L(T.AugmentationList)(
        augs=[
            L(T.ResizeShortestEdge)(short_edge_length=(400, 500, 600), sample_style="choice"),
            L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
        ]
    )
    dataloader.train.mapper = L(OneNetDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomApply)(tfm_or_aug=crop, prob=0.5),
            L(T.ResizeShortestEdge)(
                short_edge_length=min_sizes, max_size=max_size, sample_style="choice"
            ),
            L(T.RandomFlip)(),
        ],
        image_format="RGB",
    )
    dataloader.test.mapper = L(OneNetDatasetMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(short_edge_length=test_min_size, max_size=test_max_size)
        ],
        image_format="RGB",
    )
    dataloader.evaluator = L(UncachedCOCOEvaluator)(
        dataset_name="${..test.dataset.names}", tasks=("bbox",), output_dir="${...train.output_dir}"
    )
    return dataloader


def resnet(depth, norm, freeze_at, out_features):
    """ResNet with the stride in the 3x3 convolution, as torchvision's."""
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm=norm),
        stages=L(ResNet.make_default_stages)(depth=depth, stride_in_1x1=False, norm=norm),
        out_features=out_features,
        freeze_at=freeze_at,
    )


resnet50_fpn = L(FPN)(
    bottom_up=resnet(50, "FrozenBN", 2, ["res3", "res4", "res5"]),
    in_features=["res3", "res4", "res5"],
    out_channels=256,
    top_block=L(LastLevelP6P7)(in_channels=2048, out_channels=256),
)
fpn_features = ["p3", "p4", "p5", "p6", "p7"]
fpn_shapes = [L(ShapeSpec)(channels=256, stride=stride) for stride in (8, 16, 32, 64, 128)]
fpn_sizes = tuple(range(640, 897, 32))
