"""Metadata in exported files."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .. import __version__
from ..evaluation import weights_digest
from ..modeling.meta_arch import OneNet
from ..utils.errors import ConfigError

__all__ = ["FORMAT", "Metadata"]

FORMAT = 1  # increase with every change that readers of the file must know


@dataclass(frozen=True)
class Metadata:
    """Metadata of an exported model.

    Attributes:
        class_names: of the K classes.
        category_ids: the dataset's id of each class; None if the dataset is not available, or does
            not have the classes.
        thresholds: score of best F1 for each class; None if not calibrated.
        input_format: "RGB" or "BGR", the images' channel order.
        min_size: pixels to which the images' shorter side is resized; 0 for no resizing.
        max_size: limit of the longer side in pixels.
        size_divisibility: height and width of a batch are multiples of this.
        max_detections: k.
        config_digest: SHA-256 of the config's nodes MODEL and INPUT, without device and weights.
        weights_digest: see :func:`onenet.evaluation.weights_digest`.
        precision: "float32", "float16" or "int8", of backbone and head.
        onenet_version: version of the exporter.
        onenet_format: :data:`FORMAT`.
    """

    class_names: list[str]
    category_ids: list[int] | None
    thresholds: list[float] | None
    input_format: str
    min_size: int
    max_size: int
    size_divisibility: int
    max_detections: int
    config_digest: str
    weights_digest: str
    precision: str
    onenet_version: str = __version__
    onenet_format: int = FORMAT

    @classmethod
    def from_model(
        cls,
        cfg: CfgNode,
        model: OneNet,
        class_names: list[str],
        thresholds: list[float] | None,
        precision: str = "float32",
    ) -> Metadata:
        """Collects the metadata of a model.

        Args:
            cfg: of the model.
            model: built from ``cfg``.
            class_names: of the K classes.
            thresholds: one score per class, or None.
            precision: see the class.

        Raises:
            ConfigError: the number of names is not K.
        """
        num_classes = model.head.num_classes
        if len(class_names) != num_classes:
            raise ConfigError(
                f"The model has {num_classes} classes, the dataset {len(class_names)}: name in"
                " DATASETS.TEST the one that it was trained for."
            )
        return cls(
            class_names=class_names,
            category_ids=_category_ids(cfg, class_names),
            thresholds=thresholds,
            input_format=cfg.INPUT.FORMAT,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            size_divisibility=max(model.backbone.size_divisibility, 1),
            max_detections=model.max_detections_per_image,
            config_digest=_config_digest(cfg),
            weights_digest=weights_digest(model),
            precision=precision,
        )

    def entries(self) -> dict[str, object]:
        """The entries that are not None, which are json values."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def _config_digest(cfg: CfgNode) -> str:
    model = cfg.MODEL.clone()
    model.defrost()
    del model["DEVICE"], model["WEIGHTS"]
    return hashlib.sha256(f"{model.dump()}{cfg.INPUT.dump()}".encode()).hexdigest()


def _category_ids(cfg: CfgNode, class_names: list[str]) -> list[int] | None:
    """The ids, by name, in the config's first test or training dataset that has them."""
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(dataset)
        if metadata.get("thing_dataset_id_to_contiguous_id") is None:
            with contextlib.suppress(OSError, ValueError):  # absent
                DatasetCatalog.get(dataset)  # loading completes the metadata of COCO datasets
        by_id = metadata.get("thing_dataset_id_to_contiguous_id")
        if by_id is not None:
            ids = {metadata.thing_classes[index]: i for i, index in by_id.items()}
            if all(name in ids for name in class_names):
                return [ids[name] for name in class_names]
    return None
