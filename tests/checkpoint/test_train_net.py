"""Trainings and evaluations by train_net.py that start from other projects' checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from random_models import CONFIGS, NO_DATA, ROOT, SMALLEST, State, config

from onenet.engine import Trainer
from onenet.utils.errors import ConfigError


class TrainerWithoutData(Trainer):
    @classmethod
    def build_train_loader(cls, cfg) -> list:
        return []


def test_trainer_starts_from_converted_weights(resnet18_state, tmp_path: Path) -> None:
    """With the average of the weights, too, which takes its start from them."""
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state, path)
    for decay in ("0.0", "0.9"):
        cfg = config(
            "digits/onenet_fcos_R18_FPN", "MODEL.ONENET.NUM_CLASSES", "3",
            "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path), "SOLVER.EMA_DECAY", decay,
        )  # fmt: skip
        trainer = TrainerWithoutData(cfg)
        trainer.resume_or_load(resume=False)
        kernel = trainer.model.backbone.bottom_up.stem.conv1.weight
        assert torch.equal(kernel.cpu(), resnet18_state["conv1.weight"])


def test_trainer_knows_the_input_of_a_model_that_does_not(resnet18_state, tmp_path: Path) -> None:
    """Detectron2's FCOS."""
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18_state, path)
    cfg = config(
        "digits/baseline_fcos_R18_FPN", "MODEL.FCOS.NUM_CLASSES", "3",
        "MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path), "INPUT.FORMAT", "BGR",
    )  # fmt: skip
    trainer = TrainerWithoutData(cfg)
    assert not hasattr(trainer.model, "input_format")
    with pytest.raises(ConfigError, match="the config has INPUT.FORMAT BGR"):
        trainer.resume_or_load(resume=False)


@pytest.fixture(scope="module")
def train_net():
    """``main`` of train_net.py."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_resuming_from_a_checkpoint_that_is_gone(train_net, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    words = [
        "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"), "--resume", "MODEL.DEVICE", "cpu",
        "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(tmp_path), *NO_DATA,
        "MODEL.ONENET.NUM_CLASSES", "80",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="names '.*model_0000009.pth', and there is no such file"):
        train_net(default_argument_parser().parse_args(words))


def test_evaluation_of_an_original_from_the_command_line(
    train_net, small: State, tiny_set: list[str], tmp_path: Path
) -> None:
    path, out = tmp_path / "original.pth", tmp_path / "out"
    state = {k: v[:1] if k.startswith("head.cls_score.") else v for k, v in small.items()}
    torch.save({"model": state}, path)
    words = [
        "--config-file", str(CONFIGS / f"{SMALLEST}.yaml"), "--eval-only",
        "MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64",
        "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(out), *tiny_set,
    ]  # fmt: skip
    train_net(default_argument_parser().parse_args(words))
    log = (out / "log.txt").read_text()
    assert f"Converted from a checkpoint of the authors' code, {len(small)} tensors" in log
    assert (out / "inference" / "coco_instances_results.json").is_file()
