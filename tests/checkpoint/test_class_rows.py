"""Fine-tuning on other classes: the class predictor's weights follow the classes' names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onenet.checkpoint import OneNetCheckpointer
from onenet.checkpoint.class_rows import keep_class_rows
from onenet.engine import Trainer, load_config
from onenet.engine import trainer as trainer_module

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TWENTY = [f"class {i}" for i in range(18)] + ["cat", "dog"]
THREE = ["dog", "raccoon", "cat"]

State = dict[str, Tensor]


class TrainerWithoutData(Trainer):
    @classmethod
    def build_train_loader(cls, cfg) -> list:
        return []


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builds a trainer for some classes that starts from some weights."""

    def build(names: list[str], weights: str = "", head: str = "fcos", *opts: str) -> Trainer:
        monkeypatch.setattr(trainer_module, "dataset_class_names", lambda datasets: names)
        name = {"fcos": "onenet_fcos_R18_FPN", "retinanet": "onenet_retinanet_R18_FPN"}[head]
        words = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path)]
        words += ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
        words += ["MODEL.ONENET.NUM_CLASSES", str(len(names)), *opts]
        return TrainerWithoutData(load_config(str(CONFIGS / "digits" / f"{name}.yaml"), words))

    return build


def predictor(model: torch.nn.Module, num_classes: int) -> list[Tensor]:
    """Weight and bias, (A, K, ...)."""
    layer = model.head.cls_score
    return [x.detach().clone().unflatten(0, (-1, num_classes)) for x in (layer.weight, layer.bias)]


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_two_names_in_common(
    start, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With an average of the weights, which starts from the same; the optimizer starts anew."""
    first = start(TWENTY, "", head)
    torch.nn.init.normal_(first.model.head.cls_score.bias)
    before = predictor(first.model, 20)
    first.checkpointer.save("first", iteration=41)

    fresh = start(THREE, str(tmp_path / "first.pth"), head, "SOLVER.EMA_DECAY", "0.9")
    initial = predictor(fresh.model, 3)
    with caplog.at_level(logging.INFO, logger="onenet"):
        fresh.resume_or_load(resume=False)
    for model in (fresh.model, fresh.ema.average, fresh.ema.model):
        for old, new, begin in zip(before, predictor(model, 3), initial, strict=True):
            assert torch.equal(new[:, [2, 0]], old[:, [18, 19]])
            assert torch.equal(new[:, 1], begin[:, 1])
        tower = model.head.cls_subnet[0].weight
        assert torch.equal(tower, first.model.head.cls_subnet[0].weight)
    assert not fresh._trainer.optimizer.state and fresh.ema.steps == fresh.start_iter == 0
    (line,) = [r.getMessage() for r in caplog.records if r.name == "onenet.checkpoint.class_rows"]
    assert "(dog, cat); the others start as initialised (raccoon)" in line
    assert fresh.checkpointer.loaded_class_names == TWENTY


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (["a", "b", "c"], {0: 0, 1: 1, 2: 2}),
        (["c", "a", "b"], {0: 2, 1: 0, 2: 1}),
        (["a", "y", "z"], {0: 0}),
        (["x", "y", "z"], {}),
    ],
)
def test_as_many_classes(start, now: list[str], kept: dict[int, int], tmp_path: Path) -> None:
    first = start(["a", "b", "c"])
    torch.nn.init.normal_(first.model.head.cls_score.bias)
    _, before = predictor(first.model, 3)
    first.checkpointer.save("first")
    fresh = start(now, str(tmp_path / "first.pth"))
    _, expected = predictor(fresh.model, 3)
    for new, old in kept.items():
        expected[:, new] = before[:, old]
    fresh.resume_or_load(resume=False)
    assert torch.equal(predictor(fresh.model, 3)[1], expected)


def test_evaluation_and_resuming_change_nothing(start, tmp_path: Path) -> None:
    first = start(["a", "b"])
    torch.nn.init.normal_(first.model.head.cls_score.bias)
    _, before = predictor(first.model, 2)
    first.checkpointer.save("first")
    fresh = start(["b", "a"])
    other = OneNetCheckpointer(fresh.model, class_names=["b", "a"])
    exact = OneNetCheckpointer(fresh.model, class_names=["b", "a"], new_classes=True, exact=True)
    for checkpointer in (other, exact):
        torch.nn.init.zeros_(fresh.model.head.cls_score.bias)
        checkpointer.load(str(tmp_path / "first.pth"), checkpointables=[])
        assert torch.equal(predictor(fresh.model, 2)[1], before)


@pytest.mark.parametrize(
    "state",
    [
        {},  # another model's
        {"head.cls_score.weight": torch.ones(6, 5)},  # of two anchors
        {"head.cls_score.weight": torch.ones(2, 5), "head.cls_score.bias": torch.ones(2)},
        {"head.cls_score.weight": torch.ones(3, 4), "head.cls_score.bias": torch.ones(3)},
        {"head.cls_score.weight": torch.tensor(1.0), "head.cls_score.bias": torch.ones(3)},
    ],
)
def test_a_predictor_of_another_kind_is_left_alone(state: State) -> None:
    initial = {"head.cls_score.weight": torch.zeros(2, 5), "head.cls_score.bias": torch.zeros(2)}
    found = dict(state)
    keep_class_rows(found, initial, ["a", "b", "c"], ["c", "x"])
    assert all(found[k] is v for k, v in state.items()) and len(found) == len(state)
