"""The end-to-end evaluation of detectors of any framework, from their COCO results files."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ..data.image_names import check_images_exist
from ..evaluation.measure import measure
from ..evaluation.results_files import Annotations, Results, read_annotations, read_results
from ..evaluation.thresholds import FILE_NAME
from ..utils.errors import ConfigError
from ..utils.files import write_json, write_whole
from .page import html_page
from .pictures import Picture, draw_matched, draw_truth, most_crowded
from .results import AS_CONFIGURED, NMS_OFF, describe_machine, over_seeds, variant_name

__all__ = ["audit"]

_NMS_SUFFIX = "-nms"
_NUM_PICTURES = 6
_IOU_THRESH = 0.5  # at which a detection lies on an object, as by default in an evaluation


def audit(
    annotations: str | os.PathLike[str],
    detections: Mapping[str, str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] | None = None,
    image_root: str | os.PathLike[str] | None = None,
    nms_thresh: float = 0.6,
    max_dets_per_image: int = 100,
    min_score: float | None = None,
    command: str = "onenet.comparison.audit",
) -> dict[str, Any]:
    """Measures how much detectors need NMS, from their detections.

    Metrics are those of :class:`onenet.evaluation.EndToEndEvaluator`, and equal its results for the
    file that Detectron2 writes.

    Args:
        annotations: a json in COCO format.
        detections: COCO results files by name. Those of ``name`` and ``name-nms`` are one detector
            without and with its own NMS.
        output: folder for ``audit.html``, ``audit.json``, and ``<name>/end_to_end.json`` and
            ``<name>/thresholds.json`` of each file; None to write nothing.
        image_root: folder that the images' ``file_name`` is relative to, for pictures on the page.
        nms_thresh: IoU threshold of the NMS for the NMS gap.
        max_dets_per_image: COCOeval's limit per class and image.
        min_score: of pictured boxes; None for as many of an image's best boxes as it has objects.
        command: the command line, for the page.

    Returns:
        The content of ``audit.json``. For each of "detectors": "name", "has_nms" (None if unknown),
        "files", "aggregate" and "crowding" (metrics by variant), "thresholds" (by variant), and
        "seeds", one, with the whole "evaluations" by variant.

    Raises:
        DataError: a file cannot be used; the message names the file, the entry and the fix.
        ConfigError: a name or a number cannot be used, or the output cannot be written.
    """
    settings = {
        "nms_thresh": nms_thresh,
        "iou_thresh": _IOU_THRESH,
        "max_dets_per_image": max_dets_per_image,
    }
    _check(detections, settings, min_score)
    truth = read_annotations(annotations)
    records = _pictured(truth, image_root) if image_root is not None else []
    columns = [[draw_truth(record) for record in records]]
    detectors = []
    notes: dict[str, list[str]] = {}  # the files by note
    for name, variants in _by_detector(detections).items():
        found = {v: read_results(detections[file], truth) for v, file in variants.items()}
        detector = {
            "name": name,
            "has_nms": True if len(variants) > 1 else None,
            "files": {v: os.fspath(detections[file]) for v, file in variants.items()},
            **_evaluated(found, truth, settings),
        }
        detectors.append(detector)
        for variant, results in found.items():
            label = variant_name(detector, variant)
            columns.append(_pictures(records, truth, results, label, min_score))
            for note in results.notes:
                notes.setdefault(note, []).append(variants[variant])
    audited = {
        "title": f"Audit on {Path(truth.path).name}",
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "command": command,
        "machine": describe_machine(),
        "options": {"min_score": min_score},
        "not_equal": [],
        "notes": [f"{', '.join(files)}: {note}." for note, files in notes.items()],
        "detectors": detectors,
    }
    if output is not None:
        note = "" if records else "None: the folder of the images was not given."
        page = html_page(audited, list(zip(*columns, strict=True)), note)
        try:
            _write(Path(output), audited, _by_detector(detections), page)
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be written ({error.strerror}); make room, or choose"
                " another output folder."
            ) from error
    return audited


def _evaluated(
    found: Mapping[str, Results], truth: Annotations, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A detector's evaluations and thresholds, by variant."""
    evaluations, thresholds = {}, {}
    for variant, results in found.items():
        evaluations[variant], thresholds[variant] = measure(
            truth.scenes(results), truth.path, list(truth.class_names.values()), **settings
        )
    return {
        "thresholds": thresholds,
        "seeds": [{"seed": None, "evaluations": evaluations}],
        **over_seeds([evaluations]),
    }


def _write(
    folder: Path, audited: dict[str, Any], files: Mapping[str, Mapping[str, str]], page: str
) -> None:
    for detector in audited["detectors"]:
        (seed,) = detector["seeds"]
        for variant, name in files[detector["name"]].items():
            write_json(str(folder / name / "end_to_end.json"), seed["evaluations"][variant])
            write_json(str(folder / name / FILE_NAME), detector["thresholds"][variant])
    write_json(str(folder / "audit.json"), audited)
    write_whole(str(folder / "audit.html"), page.encode())


def _check(
    detections: Mapping[str, Any], settings: dict[str, Any], min_score: float | None
) -> None:
    if not detections:
        raise ConfigError("There are no detections to audit; give a results file.")
    for name in detections:
        # Also the name of a folder
        if not re.fullmatch(r"\w[\w .+-]*", name):
            raise ConfigError(
                f"The name '{name}' of detections has to begin with a letter, digit or underscore,"
                " and to have only these, spaces, dots, plus and minus."
            )
    in_range = {"NMS threshold": settings["nms_thresh"], "least score": min_score or 0.0}
    for what, value in in_range.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"The {what} is {value}; give one from 0 to 1.")
    if settings["max_dets_per_image"] < 1:
        raise ConfigError(
            f"The limit of detections an image is {settings['max_dets_per_image']}; give 1 or more."
        )


def _by_detector(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The files' names by detector and variant; alone, a file is the detector as configured."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        without = name.removesuffix(_NMS_SUFFIX)
        if {without, without + _NMS_SUFFIX} <= set(names):
            found[without] = {AS_CONFIGURED: without + _NMS_SUFFIX, NMS_OFF: without}
        else:
            found[name] = {AS_CONFIGURED: name}
    return found


def _pictured(truth: Annotations, image_root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The images with the most objects, in Detectron2's format; checks that they exist."""
    objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in truth.images}
    for annotation in truth.content["annotations"]:
        objects[annotation["image_id"]].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": truth.classes[annotation["category_id"]],
                "iscrowd": annotation.get("iscrowd") or 0,
            }
        )
    root = os.fspath(image_root)
    records = [
        {"image_id": image_id, "file_name": image["file_name"], "annotations": objects[image_id]}
        for image_id, image in truth.images.items()
    ]
    records = most_crowded(records, _NUM_PICTURES)
    check_images_exist(truth.path, root, [record["file_name"] for record in records])
    return [{**record, "file_name": os.path.join(root, record["file_name"])} for record in records]


def _pictures(
    records: Sequence[dict[str, Any]],
    truth: Annotations,
    results: Results,
    label: str,
    min_score: float | None,
) -> list[Picture]:
    indices = {image_id: index for index, image_id in enumerate(truth.images)}
    pictures = []
    for record in records:
        own = results.images == indices[record["image_id"]]
        found = (results.boxes[own], results.scores[own], results.classes[own])
        pictures.append(draw_matched(record, found, label, min_score, _IOU_THRESH))
    return pictures
