"""A tiny data set, and finished runs made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onenet import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "onenet": str(ROOT / "configs" / "digits" / "onenet_fcos_R18_FPN.yaml"),
    "fcos": str(ROOT / "configs" / "digits" / "baseline_fcos_R18_FPN.yaml"),
}
BINS = ("none", "under_0.3", "0.3_to_0.5", "over_0.5")


@pytest.fixture
def data_opts(tmp_path: Path) -> list[str]:
    """Four noisy images, of 1 to 4 bright squares, in COCO format: overrides that name them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for i in range(1, 5):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        for j in range(i):
            x, y = 2 + 31 * (j % 2), 2 + 31 * (j // 2)
            pixels[y : y + 24, x : x + 24] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 3 + i % 2,
                    "bbox": [x, y, 24, 24],
                    "area": 24 * 24,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
    categories = [{"id": 3, "name": "odd"}, {"id": 4, "name": "even"}]
    path = tmp_path / "set.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return [
        *("DATASETS.TRAIN_JSON", str(path), "DATASETS.TRAIN_IMAGE_ROOT", str(folder)),
        *("DATASETS.TEST_JSON", str(path), "DATASETS.TEST_IMAGE_ROOT", str(folder)),
    ]


def evaluation(dataset: str, ap: float | None) -> dict[str, Any]:
    """The content of an end_to_end.json in which all follows from the AP."""
    metrics = {
        "AP": ap,
        "recall": 90.0,
        "AP_after_NMS": None if ap is None else ap + 1,
        "NMS_gap": None if ap is None else 1.0,
        "duplicates@0.1": 3.0,
        "duplicates@0.3": 2.0,
        "duplicates@0.5": 0.0,
        "score_gap": None if ap is None else 0.5,
    }
    gap50 = None if ap is None else 0.0
    scores = [round(0.05 * i, 2) for i in range(1, 20)]
    return {
        "dataset": dataset,
        "num_images": 4,
        "num_objects": 10,
        "nms_thresh": 0.6,
        "iou_thresh": 0.5,
        "results": {**metrics, "AP50": ap, "AP50_after_NMS": ap, "NMS_gap50": gap50},
        "curves": {
            "score": scores,
            "duplicates_per_image": [max(0, 9 - i) for i in range(19)],
            "claims_per_image": [2.0] * 19,
            "recall": [i / 100 for i in range(101)],
            "precision": [None if ap is None else 1 - i / 200 for i in range(101)],
            "precision_after_nms": [1 - i / 200 for i in range(101)],
        },
        "crowding": [{"name": name, "num_objects": 5, **metrics} for name in BINS],
    }


def write_results(folder: Path, content: dict[str, Any], detections: list[dict]) -> None:
    """An ``inference`` folder."""
    folder.mkdir(parents=True)
    (folder / "end_to_end.json").write_text(json.dumps(content))
    (folder / "coco_instances_results.json").write_text(json.dumps(detections))


@pytest.fixture
def make_run(tmp_path: Path, data_opts: list[str]) -> Callable[..., str]:
    """``make_run(name, kind="onenet", ap=50.0)``: a folder as train_net.py leaves it.

    Its detections on image 4, of category 3: the first object twice, and a box on none.
    """

    def make(name: str, kind: str = "onenet", ap: float | None = 50.0, opts: tuple = ()) -> str:
        folder = tmp_path / "finished" / name
        folder.mkdir(parents=True)
        cfg = load_config(CONFIGS[kind], [*data_opts, "SEED", "1", *opts])
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / "model_final.pth").write_bytes(b"weights")
        lines = [json.dumps({"iteration": i, "total_loss": 9 / (i + 1)}) for i in range(30)]
        results = {"AP": 60.0, "AP50": 80.0, "NMS_gap": 1.0, "NMS_gap50": 0.0}
        results = {f"end_to_end/{key}": value for key, value in results.items()}
        lines += [json.dumps({"iteration": 29, **results}), '{"iteration": 30, "tot']
        (folder / "metrics.json").write_text("\n".join(lines))
        detections = [
            {"image_id": 4, "category_id": 3, "bbox": box, "score": score}
            for box, score in (
                ([2, 2, 24, 24], 0.9),
                ([3, 3, 24, 24], 0.8),
                ([20, 20, 24, 24], 0.7),
                ([2, 2, 24, 24], 0.01),
            )
        ]
        content = evaluation(cfg.DATASETS.TEST[0], ap)
        content["nms_thresh"] = cfg.TEST.END_TO_END.NMS_THRESH
        content["iou_thresh"] = cfg.TEST.END_TO_END.IOU_THRESH
        write_results(folder / "inference", content, detections)
        if kind == "fcos":
            write_results(folder / "inference" / "nms_off", content, detections)
        return str(folder)

    return make
