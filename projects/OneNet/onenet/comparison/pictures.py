"""Images with each detector's boxes, coloured as found objects, duplicates or others."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from ..data.images import read_image
from ..evaluation import Status, match_detections
from ..utils.files import read_json

__all__ = [
    "COLORS",
    "Picture",
    "draw",
    "draw_detections",
    "draw_matched",
    "draw_truth",
    "most_crowded",
    "pick_records",
]

# Colour, line width in pixels, legend. Duplicates are thick, to be told apart without colour
TRUTH, FOUND, DUPLICATE, OTHER = "ground truth", "found", "duplicate", "other"
COLORS = {
    TRUTH: ((30, 144, 255), 2, "blue: object (ground truth)"),
    FOUND: ((0, 190, 90), 2, "green: finds an object"),
    DUPLICATE: ((230, 0, 30), 5, "red, thick: duplicate of a found object"),
    OTHER: ((255, 165, 0), 2, "orange: on no object of its class"),
}
_LONG_SIDE = 360  # pixels


@dataclass(frozen=True)
class Picture:
    """An image with boxes, and their counts."""

    label: str  # of the detector
    counts: dict[str, int]  # of boxes, by kind
    jpeg: bytes

    @property
    def words(self) -> str:
        """The counts, such as "9 found, 2 duplicate, 0 other"."""
        return ", ".join(f"{n} {kind}" for kind, n in self.counts.items())

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


def pick_records(dataset: str, count: int) -> list[dict[str, Any]]:
    """The images of a registered dataset with the most objects; ties: the first.

    Returns:
        At most ``count`` records in Detectron2's format.
    """
    return most_crowded(get_detection_dataset_dicts([dataset], filter_empty=False), count)


def most_crowded(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The ``count`` records with the most objects; ties: the first."""
    return sorted(records, key=lambda record: -len(_objects(record)))[:count]


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Annotations that are no crowd regions."""
    return [a for a in record.get("annotations", []) if not a.get("iscrowd", 0)]


def draw_truth(record: dict[str, Any]) -> Picture:
    """Draws an image with its ground-truth boxes."""
    boxes, _ = _truth(record)
    return draw(record, "ground truth", boxes, [TRUTH] * len(boxes), [TRUTH])


def draw_detections(
    records: Sequence[dict[str, Any]],
    dataset: str,
    folder: Path,
    label: str,
    min_score: float | None,
    iou_thresh: float,
) -> list[Picture]:
    """Draws images with a detector's boxes, coloured as found objects, duplicates or others.

    Args:
        records: of the images, in Detectron2's format.
        dataset: registered; its metadata maps the category ids.
        folder: with ``coco_instances_results.json``; if that is missing, nothing is drawn.
        label: of the detector.
        min_score: least score of a box; None to draw as many of an image's best boxes as it has
            objects.
        iou_thresh: least IoU at which a box lies on an object.
    """
    path = folder / "coco_instances_results.json"
    if not path.is_file():
        return []
    by_image: dict[Any, list[dict[str, Any]]] = {record["image_id"]: [] for record in records}
    for detection in read_json(path):
        if detection["image_id"] in by_image:
            by_image[detection["image_id"]].append(detection)
    contiguous = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id")
    pictures = []
    for record in records:
        detections = by_image[record["image_id"]]
        boxes = np.array([d["bbox"] for d in detections], dtype=float).reshape(-1, 4)
        scores = np.array([d["score"] for d in detections], dtype=float)
        classes = [d["category_id"] for d in detections]
        classes = np.array([contiguous[c] if contiguous else c for c in classes], dtype=np.int64)
        found = (boxes, scores, classes)
        pictures.append(draw_matched(record, found, label, min_score, iou_thresh))
    return pictures


def draw_matched(
    record: dict[str, Any],
    detections: tuple[np.ndarray, np.ndarray, np.ndarray],
    label: str,
    min_score: float | None,
    iou_thresh: float,
) -> Picture:
    """Draws an image with a detector's boxes; see :func:`draw_detections`.

    Args:
        record: of the image, in Detectron2's format.
        detections: boxes (D, 4) as x, y, width, height in pixels, scores (D,) and classes (D,).
        label: of the detector.
        min_score: see :func:`draw_detections`.
        iou_thresh: see :func:`draw_detections`.
    """
    boxes, scores, classes = detections
    boxes = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    status, _ = match_detections(boxes, scores, classes, *_truth(record), iou_thresh)
    kind_of = {Status.CLAIM: FOUND, Status.DUPLICATE: DUPLICATE}
    kinds = [kind_of.get(Status(s), OTHER) for s in status]
    # Boxes of lower scores do not affect the matching of those shown
    if min_score is None:
        shown = np.argsort(-scores, kind="stable")[: len(_objects(record))]
    else:
        shown = np.flatnonzero(scores >= min_score)
    return draw(record, label, boxes[shown], [kinds[i] for i in shown], [FOUND, DUPLICATE, OTHER])


def _truth(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 4) as corners in pixels, and classes (G,), of the objects."""
    objects = _objects(record)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    classes = np.array([a["category_id"] for a in objects], dtype=np.int64)
    return np.array(boxes, dtype=float).reshape(-1, 4), classes


def draw(
    record: dict[str, Any], label: str, boxes: np.ndarray, kinds: list[str], order: list[str]
) -> Picture:
    """Draws boxes on an image, resized to a fixed longer side.

    Args:
        record: of the image, in Detectron2's format.
        label: of the detector.
        boxes: (n, 4) corners in pixels of the image.
        kinds: of each box, a key of ``COLORS``.
        order: kinds in the order of counting and drawing; duplicates are drawn last.
    """
    image = Image.fromarray(read_image(record["file_name"]))
    scale = _LONG_SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    corners = np.nan_to_num(boxes * scale, posinf=0, neginf=0).tolist()
    for kind in sorted(order, key=lambda kind: kind == DUPLICATE):
        color, width, _ = COLORS[kind]
        for (x0, y0, x1, y1), box_kind in zip(corners, kinds, strict=True):
            if box_kind == kind:
                corner = (max(x0, x1), max(y0, y1))
                canvas.rectangle(((x0, y0), corner), outline=color, width=width)
    buffer = io.BytesIO()
    # No chroma subsampling, which would fade thin red lines
    image.save(buffer, "JPEG", quality=80, subsampling=0)
    return Picture(label, {kind: kinds.count(kind) for kind in order}, buffer.getvalue())
