"""What a user of an exported file has to know besides its weights, kept in the file itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .. import __version__
from ..evaluation import weights_digest
from ..modeling.meta_arch import OneNet
from ..utils.errors import ConfigError

__all__ = ["FORMAT", "Metadata"]

FORMAT = 1  # raise it with every change that a reader of the file has to know


@dataclass(frozen=True)
class Metadata:
    """Facts about an exported model.

    Attributes:
        class_names: of the K classes.
        category_ids: the dataset's id of each class; None where the dataset is not at hand.
        thresholds: score of best F1 for each class; None where not calibrated.
        input_format: "RGB" or "BGR", the images' channel order.
        min_size: length in pixels that the images' shorter side is resized to; 0 for no resizing.
        max_size: that the longer side does not exceed then.
        size_divisibility: what height and width of a batch are multiples of.
        max_detections: k.
        config_digest: SHA-256 of the config's nodes MODEL and INPUT, without device and weights.
        weights_digest: of the weights; see :func:`onenet.evaluation.weights_digest`.
        precision: "float32" or "float16", of backbone and head.
        onenet_version: of the exporter.
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
        half: bool,
    ) -> Metadata:
        """The facts about a model.

        Args:
            cfg: of the model.
            model: built from it.
            class_names: of the K classes.
            thresholds: one score a class, or None.
            half: whether it is exported in float16.

        Raises:
            ConfigError: there are not K names.
        """
        num_classes = model.head.num_classes
        if len(class_names) != num_classes:
            raise ConfigError(
                f"The model has {num_classes} classes, the dataset {len(class_names)}: name in"
                " DATASETS.TEST the one that it was trained for."
            )
        return cls(
            class_names=class_names,
            category_ids=_category_ids(cfg),
            thresholds=thresholds,
            input_format=cfg.INPUT.FORMAT,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            size_divisibility=max(model.backbone.size_divisibility, 1),
            max_detections=model.max_detections_per_image,
            config_digest=_config_digest(cfg),
            weights_digest=weights_digest(model),
            precision="float16" if half else "float32",
        )

    def entries(self) -> dict[str, str]:
        """Key and value, as json, of each fact that is known."""
        return {key: json.dumps(value) for key, value in self._known().items()}

    def to_json(self) -> str:
        """The facts that are known, as one json object."""
        return json.dumps(self._known())

    def _known(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def _config_digest(cfg: CfgNode) -> str:
    model = cfg.MODEL.clone()
    model.defrost()
    del model["DEVICE"], model["WEIGHTS"]
    return hashlib.sha256(f"{model.dump()}{cfg.INPUT.dump()}".encode()).hexdigest()


def _category_ids(cfg: CfgNode) -> list[int] | None:
    """The ids that the config's test (or training) set gives its classes, if it is at hand."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_dataset_id_to_contiguous_id") is None:
            with contextlib.suppress(OSError, ValueError):  # absent
                DatasetCatalog.get(name)  # loading a set in COCO's format completes its metadata
        by_id = metadata.get("thing_dataset_id_to_contiguous_id")
        if by_id is not None:
            return sorted(by_id, key=by_id.__getitem__)
    return None
