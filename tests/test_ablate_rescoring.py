"""tools/ablate_rescoring.py on a tiny run of random weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from onenet.engine import load_config
from onenet.modeling.rescoring import STARTS, UNITS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "digits"


def make_run(folder: Path, config: str, tiny_set: list[str]) -> Path:
    folder.mkdir()
    small = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"]
    cfg = load_config(str(CONFIGS / f"{config}.yaml"), [*tiny_set, *small])
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def ablate(monkeypatch):
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools" / "ablate_rescoring.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["ablate_rescoring.py", *words])
        tool.main()

    return run


def test_variants_of_one_head(ablate, tiny_set: list[str], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "recommended_R18_FPN", tiny_set)
    path = run / "model_final.pth"
    content = torch.load(path, weights_only=True)
    ablate(str(run), "--output", str(tmp_path / "start.json"))
    content["model"]["rescoring.weights"] = torch.tensor((9.0, 0.0, 0.0)) / torch.tensor(UNITS)
    torch.save(content, path)
    ablate(str(run), "--output", str(tmp_path / "other.json"))
    start, other = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("start", "other")
    )
    assert start["learnt"] == [pytest.approx(STARTS["voting"])]
    assert other["learnt"] == [pytest.approx((9.0, 0.0, 0.0))]
    # A model that was not trained is at its start; only "as trained" depends on the checkpoint's
    assert start["variants"]["as trained"] == start["variants"]["at its start"]
    names = set(start["variants"]) - {"as trained"}
    assert all(other["variants"][name] == start["variants"][name] for name in names)
    detections = [
        json.loads((folder / "inference" / "coco_instances_results.json").read_text())
        for folder in (
            run / "rescoring" / name
            for name in ("as_trained", "at_its_start", "NMS_at_0.6_in_its_place")
        )
    ]
    assert detections[0] != detections[1]
    per_image = [sum(d["image_id"] == i for d in detections[2]) for i in (1, 2)]
    assert 0 < max(per_image) <= 100


def test_a_run_without_rescoring(ablate, tiny_set: list[str], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "onenet_fcos_R18_FPN", tiny_set)
    with pytest.raises(SystemExit, match="is no run with rescoring"):
        ablate(str(run), "--output", str(tmp_path / "a.json"))
