#!/usr/bin/env python
"""Trains and evaluates torchvision's FCOS or RetinaNet, as train_net.py does other detectors.

python benchmarks/torchvision_detectors.py --config-file configs/photos/baseline_fcos.yaml \
    MODEL.META_ARCHITECTURE TorchvisionFCOS DATASETS.TRAIN "('voc2007_train',)" ...

Data, backbone, FPN, schedule, evaluation and RetinaNet's anchors are the config's. Heads, losses,
matching and NMS are torchvision's, with its defaults but for the score threshold (0.001) and the
limit of detections (TEST.DETECTIONS_PER_IMAGE).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from onenet.engine import argument_parser, launch_workers, main

SCORE_THRESH = 0.001


class _Adapter:
    """Between Detectron2's inputs and outputs and a torchvision detector, its other base class."""

    def __init__(self, cfg: CfgNode, names: list[str], anchors: AnchorGenerator) -> None:
        """
        Args:
            cfg: the config.
            names: of the backbone's feature maps, finest first.
            anchors: of these maps.
        """
        backbone = build_backbone(cfg)
        backbone.out_channels = backbone.output_shape()[names[0]].channels
        backbone.register_forward_hook(lambda _, __, maps: {name: maps[name] for name in names})
        super().__init__(
            backbone,
            num_classes=len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes),
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            image_mean=cfg.MODEL.PIXEL_MEAN,
            image_std=cfg.MODEL.PIXEL_STD,
            anchor_generator=anchors,
            score_thresh=SCORE_THRESH,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
            _skip_resize=True,  # in training; the loader has resized
        )
        # What the loading of pretrained weights checks
        self.pixel_mean = torch.tensor(cfg.MODEL.PIXEL_MEAN)
        self.pixel_std = torch.tensor(cfg.MODEL.PIXEL_STD)
        if cfg.MODEL.ONENET.CHANNELS_LAST:
            self.to(memory_format=torch.channels_last)

    @property
    def test_nms_thresh(self) -> float:
        """The name by which an evaluation switches NMS off."""
        return self.nms_thresh

    @test_nms_thresh.setter
    def test_nms_thresh(self, value: float) -> None:
        self.nms_thresh = value

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """The losses, or {"instances": Instances} for each image."""
        device = next(self.parameters()).device
        images = [inputs["image"].to(device).float() for inputs in batched_inputs]
        if self.training:
            truth = [inputs["instances"].to(device) for inputs in batched_inputs]
            targets = [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes} for t in truth]
            return super().forward(images, targets)
        pairs = zip(batched_inputs, super().forward(images), strict=True)
        return [{"instances": _instances(inputs, found)} for inputs, found in pairs]


def _instances(inputs: dict[str, Any], found: dict[str, Tensor]) -> Instances:
    """An image's detections, in pixels of the original image."""
    size = tuple(inputs["image"].shape[-2:])
    instances = Instances(
        size,
        pred_boxes=Boxes(found["boxes"]),
        scores=found["scores"],
        pred_classes=found["labels"],
    )
    return detector_postprocess(
        instances, inputs.get("height", size[0]), inputs.get("width", size[1])
    )


def _anchors(sizes: list[list[float]], ratios: list[float]) -> AnchorGenerator:
    return AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))


@META_ARCH_REGISTRY.register()
class TorchvisionFCOS(_Adapter, FCOS):
    """torchvision's FCOS; its anchors are the strides, as by default."""

    def __init__(self, cfg: CfgNode) -> None:
        names = cfg.MODEL.FCOS.IN_FEATURES
        strides = [[2 ** int(name.removeprefix("p"))] for name in names]
        super().__init__(cfg, names, _anchors(strides, [1.0]))


@META_ARCH_REGISTRY.register()
class TorchvisionRetinaNet(_Adapter, RetinaNet):
    """torchvision's RetinaNet with the anchors of ``cfg.MODEL.ANCHOR_GENERATOR``."""

    def __init__(self, cfg: CfgNode) -> None:
        anchors, names = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RETINANET.IN_FEATURES
        super().__init__(cfg, names, _anchors(anchors.SIZES, anchors.ASPECT_RATIOS[0]))


if __name__ == "__main__":
    launch_workers(main, argument_parser().parse_args())
