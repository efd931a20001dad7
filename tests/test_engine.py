"""Training end to end on a tiny set: from the command line, resumed, evaluated; and its errors."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "digits" / "onenet_fcos_R18_FPN.yaml")
TINY = [
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "4",
    "SOLVER.WARMUP_ITERS", "2",
    "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64",
    "SEED", "7",
]  # fmt: skip


@pytest.fixture
def coco_set(tmp_path: Path) -> tuple[Path, Path]:
    """Four noisy images with a bright square each, in COCO format: (json, folder)."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for i in range(1, 5):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y, side = (int(v) for v in rng.integers(4, 28, size=3))
        pixels[y : y + side, x : x + side] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        annotations.append(
            {
                "id": i,
                "image_id": i,
                "category_id": 3 + i % 2,
                "bbox": [x, y, side, side],
                "area": side * side,
                "iscrowd": 0,
            }
        )
    categories = [{"id": 3, "name": "odd"}, {"id": 4, "name": "even"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    return path, folder


@pytest.fixture
def data_opts(coco_set: tuple[Path, Path]) -> list[str]:
    path, folder = coco_set
    return [
        "DATASETS.TRAIN_JSON", str(path), "DATASETS.TRAIN_IMAGE_ROOT", str(folder),
        "DATASETS.TEST_JSON", str(path), "DATASETS.TEST_IMAGE_ROOT", str(folder),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def train_net() -> Callable[..., None]:
    """``main`` of train_net.py, called with command-line words."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words: str) -> None:
        module.main(default_argument_parser().parse_args(list(words)))

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_unseen_json_trains_and_evaluates(train_net, data_opts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_net(
        "--config-file", CONFIG, *data_opts, *TINY, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", str(out)
    )
    metrics = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert "bbox/AP" in metrics[-1]
    state = weights(out)
    assert state["head.cls_score.weight"].shape[0] == 2  # classes counted in the json
    dumped = (out / "config.yaml").read_text()
    assert "NUM_CLASSES: 2" in dumped

    detections = out / "inference" / "coco_instances_results.json"
    detections.unlink()
    train_net(
        "--config-file", CONFIG, "--eval-only", *data_opts[4:], *TINY,
        "MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(out),
    )  # fmt: skip
    # Written back in the json's own category ids
    assert {d["category_id"] for d in json.loads(detections.read_text())} <= {3, 4}


def test_resume_continues_the_same_run(train_net, data_opts, tmp_path: Path) -> None:
    """Stopped at 4 of 8 and resumed: the weights of an undisturbed run.

    Each batch is the whole set, so that the order of the images does not matter.
    """
    common = ["--config-file", CONFIG, *data_opts, *TINY, "SOLVER.CHECKPOINT_PERIOD", "4"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_net(*common, "SOLVER.MAX_ITER", "8", "OUTPUT_DIR", str(whole))
    # What a run looks like that was killed after iteration 4
    for name in ("model_0000003.pth", "last_checkpoint"):
        stopped.mkdir(exist_ok=True)
        (stopped / name).write_bytes((whole / name).read_bytes())
    (stopped / "last_checkpoint").write_text("model_0000003.pth")
    resume = ["--resume", *common, "SOLVER.MAX_ITER", "8", "OUTPUT_DIR", str(stopped)]
    train_net(*resume)

    assert "Starting training from iteration 4" in (stopped / "log.txt").read_text()
    expected, found = weights(whole), weights(stopped)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    last = [
        torch.load(folder / "model_final.pth", weights_only=True)["trainer"]
        for folder in (whole, stopped)
    ]
    assert last[0]["iteration"] == last[1]["iteration"] == 7
    train_net(*resume)  # a finished run only evaluates


def test_a_run_without_evaluation(train_net, data_opts, tmp_path: Path) -> None:
    train_only = [*data_opts[:4], "OUTPUT_DIR", str(tmp_path / "out")]
    train_net("--config-file", CONFIG, *train_only, *TINY, "SOLVER.MAX_ITER", "1")


def sentence(train_net, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        train_net("--config-file", CONFIG, *words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_errors_are_one_sentence(train_net, data_opts, coco_set, tmp_path: Path, capsys) -> None:
    out = ["OUTPUT_DIR", str(tmp_path / "out")]
    message = sentence(train_net, *data_opts, *out, "MODEL.WEIGHTS", "no/such.pth")
    assert "there is no file 'no/such.pth'" in message

    for key, registry in (("HEAD", "PointHead"), ("MATCHER", "HungarianMatcher")):
        message = sentence(train_net, *data_opts, *out, f"MODEL.ONENET.{key}.NAME", "Best")
        assert f"MODEL.ONENET.{key}.NAME is 'Best'" in message and registry in message

    path, folder = coco_set
    content = json.loads(path.read_text())
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**content, "categories": []}))
    opts = ["DATASETS.TRAIN_JSON", str(broken), "DATASETS.TRAIN_IMAGE_ROOT", str(folder)]
    message = sentence(train_net, *opts, *out)
    assert "broken.json" in message and "categories" in message

    message = sentence(train_net, *data_opts, *out, "MODEL.ONENET.NUM_CLASSES", "80")
    assert "is 80" in message and "2 classes" in message

    message = sentence(train_net, "DATASETS.TRAIN_JSON", "gone.json", *data_opts[2:], *out)
    assert "gone.json" in message

    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for workers in ("0", "1"):
        message = sentence(train_net, *data_opts, *TINY, *out, "DATALOADER.NUM_WORKERS", workers)
        assert "3.png cannot be read" in message
        assert "Traceback" not in capsys.readouterr().out
        log = (tmp_path / "out" / "log.txt").read_text()
        assert "3.png cannot be read" in log and "Traceback" not in log


def test_missing_dataset_names_file_and_variable(train_net, tmp_path: Path, monkeypatch) -> None:
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances("lost_set", {}, "lost/set.json", "lost")
    message = sentence(
        train_net, "DATASETS.TRAIN", "('lost_set',)", "DATASETS.TEST", "()",
        "MODEL.ONENET.NUM_CLASSES", "2", "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    assert "lost/set.json is missing" in message and "DETECTRON2_DATASETS" in message


def run(*words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_two_workers_train_evaluate_and_report_errors(data_opts, tmp_path: Path) -> None:
    common = [
        "train_net.py", "--config-file", CONFIG, "--num-gpus", "2", "--dist-url", "auto",
        *data_opts, *TINY, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "out"),
        "MODEL.DEVICE", "cpu",
    ]  # fmt: skip
    env = {"CUDA_VISIBLE_DEVICES": ""}
    done = run(*common, **env)
    assert done.returncode == 0, done.stderr
    assert "copypaste" in done.stdout
    failed = run(*common, "MODEL.ONENET.HEAD.NAME", "Best", **env)
    assert failed.returncode == 1
    assert "error: MODEL.ONENET.HEAD.NAME is 'Best'" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture(scope="module")
def few_coco_images(real_data: Path, tmp_path_factory) -> Path:
    """A DETECTRON2_DATASETS with the first images of COCO, however many the real one has."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / "coco" / split).symlink_to(real_data / "coco" / split)
        name = f"coco/annotations/instances_{split}.json"
        content = json.loads((real_data / name).read_text())
        content["images"] = content["images"][:4]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (root / name).write_text(json.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "coco").glob("*.yaml")), ids=lambda p: p.stem
)
def test_real_coco_images(path: Path, few_coco_images: Path, tmp_path: Path) -> None:
    done = run(
        "train_net.py", "--config-file", str(path), "OUTPUT_DIR", str(tmp_path),
        "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
        "INPUT.MAX_SIZE_TRAIN", "160", "INPUT.MAX_SIZE_TEST", "160",
        DETECTRON2_DATASETS=str(few_coco_images),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "copypaste: AP,AP50" in done.stdout


@pytest.mark.slow
def test_bccd_trains(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "BCCD").is_dir():
        pytest.skip(f"no BCCD under {real_data}")
    done = run(
        "train_net.py", "--config-file", "configs/bccd/onenet_fcos_R18_FPN.yaml",
        "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2",
        DETECTRON2_DATASETS=str(real_data),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "copypaste: AP,AP50" in done.stdout
    assert re.search(r"\| Platelets +\| [0-9.]+ ", done.stdout)  # the table of AP by class


@pytest.mark.slow
def test_lazy_config_trains(coco_set, tmp_path: Path) -> None:
    path, folder = coco_set
    register = tmp_path / "sitecustomize.py"
    register.write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        f"register_coco_instances('tiny', {{}}, {str(path)!r}, {str(folder)!r})\n"
    )
    done = run(
        "tools/lazyconfig_train_net.py", "--config-file", "configs/lazy/onenet_fcos_R50_FPN.py",
        "train.max_iter=1", "train.init_checkpoint=''", f"train.output_dir={tmp_path / 'out'}",
        "model.head.num_classes=2", "dataloader.train.dataset.names=tiny",
        "dataloader.test.dataset.names=tiny", "dataloader.train.total_batch_size=1",
        "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.1.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model_final.pth").is_file()
