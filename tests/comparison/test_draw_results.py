"""tools/draw_results.py: the same images under several results files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def draw(data: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "tools/draw_results.py", "--dataset", "kangaroo_val"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data)}
    return subprocess.run(
        [*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_found_and_duplicate_objects(real_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data))
    records = DatasetCatalog.get("kangaroo_val")
    results = []
    for record in records:
        for annotation in record["annotations"]:
            mode = annotation["bbox_mode"]
            bbox = BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYWH_ABS)
            box = {"bbox": bbox, "category_id": 1}
            results += [{"image_id": record["image_id"], "score": s, **box} for s in (0.9, 0.8, 0)]
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(results))
    out = tmp_path / "out.png"
    words = (f"twice={tmp_path}", "--images", "3", "--columns", "2", "--output", str(out))
    best = draw(real_data, *words)  # as many as there are objects: all of score 0.9
    done = draw(real_data, *words, "--score", "0.7")
    assert done.returncode == 0, done.stderr
    truth, twice = done.stdout.splitlines()[:2]
    count = int(truth.removeprefix("ground truth: ").split()[0])
    assert count >= 3 and twice == f"twice: {count} found, {count} duplicate, 0 other"
    # Two and one image, ground truth and detections of each: four rows
    assert Image.open(out).height == 4 * (150 + 22 + 8)

    assert f"twice: {count} found, 0 duplicate, 0 other" in best.stdout

    missing = draw(real_data, f"none={ROOT}", "--output", str(out))
    assert missing.returncode != 0 and "has no coco_instances_results.json" in missing.stderr
