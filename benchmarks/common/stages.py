"""A detector in two stages, as tensors between them: the network, and what makes detections."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from onenet.checkpoint import load_weights
from onenet.data.sample_images import load_sample_images
from onenet.modeling.heads.dense_head import DenseHead
from onenet.modeling.meta_arch import OneNet
from onenet.predictor import load_predictor_config
from onenet.utils.errors import ConfigError

__all__ = [
    "Detector",
    "Network",
    "Postprocess",
    "build_detector",
    "count_candidates",
    "load_batches",
    "without_threshold",
]


@dataclass(frozen=True)
class Detector:
    """One of the detectors that are compared.

    Attributes:
        name: in the tables.
        config: path of its config.
        cfg: the config.
        model: in evaluation mode, without parts that only training uses.
        network: the first stage, on the same weights.
        weights: path of the checkpoint; "" for random weights.
    """

    name: str
    config: str
    cfg: CfgNode
    model: nn.Module
    network: Network
    weights: str = ""

    @property
    def has_nms(self) -> bool:
        """Whether it is one of Detectron2's detectors with NMS."""
        return not isinstance(self.model, OneNet)


def build_detector(
    name: str,
    config: str,
    weights: str = "",
    opts: Sequence[str] = (),
    device: str = "cpu",
    half: bool = False,
) -> Detector:
    """Builds the model of a config, whose datasets need not be there.

    Args:
        name: in the tables.
        config: path of a yaml file, of a OneNet, FCOSBaseline or RetinaNet.
        weights: path of a checkpoint of this model; "" for random weights.
        opts: overrides, ``["KEY", "value", ...]``.
        device: "cpu" or "cuda".
        half: whether backbone and head compute in float16.

    Raises:
        ConfigError: config or weights are wrong, or the detector is another one.
    """
    cfg = load_predictor_config(config, [*opts, "MODEL.DEVICE", device, "MODEL.WEIGHTS", ""])
    model = build_model(cfg).eval()
    if not isinstance(model, (OneNet, FCOS, RetinaNet)):
        raise ConfigError(
            f"{config} has MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}; this can time"
            " OneNet, FCOSBaseline and RetinaNet."
        )
    if weights:
        load_weights(model, weights)
    return Detector(name, config, cfg, model, Network(model, half), weights)


class Network(nn.Module):
    """Normalisation, backbone and head, up to the raw outputs of the last convolutions."""

    def __init__(self, model: nn.Module, half: bool = False) -> None:
        """
        Args:
            model: of a :class:`Detector`; with ``half`` its backbone and head become float16.
            half: whether these two compute in float16.
        """
        super().__init__()
        self.dtype = torch.float16 if half else torch.float32
        self.register_buffer("mean", model.pixel_mean)
        self.register_buffer("std", model.pixel_std)
        self.backbone = model.backbone.to(self.dtype)
        self.head = model.head.to(self.dtype)
        self.in_features = model.head_in_features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) uint8; H and W are multiples of the backbone's size_divisibility.

        Returns:
            float32 (N, C, H', W'): class logits of every level, then boxes of every level, then
            centre-ness of every level (FCOS).
        """
        pixels = ((images.float() - self.mean) / self.std).to(self.dtype)
        features = self.backbone(pixels)
        outputs = _raw_outputs(self.head, [features[name] for name in self.in_features])
        return tuple(level.float() for levels in outputs for level in levels)


def _raw_outputs(head: nn.Module, features: list[Tensor]) -> Sequence[list[Tensor]]:
    if not isinstance(head, DenseHead):
        return head(features)  # Detectron2's heads decode nothing
    cls_features, box_features = head.towers(features)
    logits = [head.cls_score(x) for x in cls_features]
    return logits, [head.bbox_pred(x) for x in box_features]


class Postprocess:
    """From the outputs of :class:`Network` to Instances, with the model's own code.

    OneNet: top-k, decoding of what that keeps, rescoring where the model has it. FCOS and
    RetinaNet: Detectron2's forward_inference, that is, on each level scores above the threshold and
    the best 1,000 of them, their boxes, then class-wise NMS over all levels. Coordinates are those
    of the network's input.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        """
        Args:
            model: of a :class:`Detector`.
            size: height and width of the images in pixels.
        """
        self.model, self.size = model, size

    def __call__(self, outputs: Sequence[Tensor]) -> list[Instances]:
        """
        Args:
            outputs: see :meth:`Network.forward`; not to be used again, since Detectron2 computes
                some scores in place.

        Returns:
            The detections of each image, best first.
        """
        model = self.model
        levels = len(model.head_in_features)
        groups = [list(outputs[i : i + levels]) for i in range(0, len(outputs), levels)]
        # Of the images the sizes alone are looked at, and of the features too.
        images = ImageList(outputs[0], [self.size] * len(outputs[0]))
        predictions: Any = groups
        if isinstance(model, OneNet):
            predictions = model.head.flatten(*groups)
        return model.forward_inference(images, groups[0], predictions)


def without_threshold(model: nn.Module) -> nn.Module:
    """FCOS or RetinaNet on the same weights, but with a score threshold of 0."""
    model = copy.copy(model)
    model.test_score_thresh = 0.0
    return model


@torch.inference_mode()
def count_candidates(
    detector: Detector, batches: Sequence[Tensor], every_candidate: bool = False
) -> list[int]:
    """How many boxes enter NMS, for each image.

    Args:
        detector: one with NMS; is run on all batches.
        batches: (N, 3, H, W) uint8 each, of one size, on the detector's device.
        every_candidate: whether to count without the score threshold.
    """
    model = without_threshold(detector.model) if every_candidate else detector.model
    counts: list[int] = []
    with _observed_candidates(model, counts):
        postprocess = Postprocess(model, tuple(batches[0].shape[2:]))
        for batch in batches:
            postprocess(detector.network(batch))
    return counts


@contextmanager
def _observed_candidates(model: nn.Module, counts: list[int]) -> Iterator[None]:
    decode = model._decode_multi_level_predictions

    def observed(*args: Any) -> Instances:
        candidates = decode(*args)
        counts.append(len(candidates))
        return candidates

    with mock.patch.object(model, "_decode_multi_level_predictions", observed):
        yield


def load_batches(
    cfg: CfgNode, folder: str | None, size: tuple[int, int], batch: int, count: int = 4
) -> list[Tensor]:
    """Batches of real images, stretched to one size; with too few images they repeat.

    Args:
        cfg: whose DATASETS.TEST and INPUT.FORMAT are taken.
        folder: with images, in place of DATASETS.TEST; None for the latter.
        size: height and width in pixels.
        batch: images a batch.
        count: of batches.

    Returns:
        (batch, 3, H, W) uint8 each, on the CPU.

    Raises:
        ConfigError: there is no such folder.
        DataError: there is no image, or one cannot be read.
    """
    resize = T.Resize(size)
    images = []
    for image in load_sample_images(cfg, folder, batch * count):
        resized = resize.get_transform(image).apply_image(image)
        images.append(torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))))
    endless = itertools.cycle(images)
    return [torch.stack(list(itertools.islice(endless, batch))) for _ in range(count)]
