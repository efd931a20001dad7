"""A NaN loss or weight ends the run, and leaves what is needed to see why."""

from __future__ import annotations

from pathlib import Path

import fault_injection
import pytest
import torch
from short_runs import differences, error_of, tensors, terminal


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_no_number(runs, undisturbed: Path, tmp_path: Path, value: float) -> None:
    plant = {"before": fault_injection.loss_of, "given": (value, 5)}
    assert runs.finish(tmp_path, **plant) == 1
    error = error_of(tmp_path)
    kept = tmp_path / "nonfinite_iteration_0000005.pth"
    assert "NaN or infinite at iteration 5 (" in error and f"loss_l1 {value:.4g}" in error
    assert "The weights were finite until then" in error and str(kept) in error
    assert "Traceback" not in terminal(tmp_path)

    content = torch.load(kept, weights_only=True)
    assert content["iteration"] == 5
    assert not torch.tensor(content["losses"]["loss_l1"]).isfinite()
    assert torch.tensor(content["losses"]["loss_giou"]).isfinite()
    assert len(content["file_names"]) == 2
    assert all(name in error and Path(name).is_file() for name in content["file_names"])
    for image, boxes, classes in zip(
        content["images"], content["boxes"], content["classes"], strict=True
    ):
        assert image.dtype == torch.uint8 and image.shape[0] == 3
        assert boxes.shape == (1, 4) and classes.shape == (1,)

    # What was saved is untouched, and the state is weights that can be begun with
    assert [path.name for path in tmp_path.glob("model_*")] == ["model_0000003.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    words = ("MODEL.WEIGHTS", str(kept), "SOLVER.MAX_ITER", "1")
    assert runs.finish(tmp_path / "new", *words) == 0
    assert runs.finish(tmp_path, resume=True) == 0
    assert not differences(tensors(tmp_path), tensors(undisturbed))


@pytest.mark.slow
def test_loss_of_a_piece_that_is_no_number(runs, tmp_path: Path) -> None:
    """With gradient accumulation the batch is the whole one, the weights those before the step."""
    in_pieces = ("SOLVER.GRADIENT_ACCUMULATION_STEPS", "2")
    plant = {"before": fault_injection.loss_of, "given": (float("nan"), 5)}
    assert runs.finish(tmp_path, *in_pieces, **plant) == 1
    error = error_of(tmp_path)
    assert "NaN or infinite at iteration 5 (" in error and "loss_l1 nan" in error
    kept = tmp_path / "nonfinite_iteration_0000005.pth"
    names = torch.load(kept, weights_only=True)["file_names"]
    assert len(names) == 2 and all(name in error for name in names)
    words = ("MODEL.WEIGHTS", str(kept), "SOLVER.MAX_ITER", "1")
    assert runs.finish(tmp_path / "new", *words) == 0
    assert "Some model parameters" not in terminal(tmp_path / "new")
    assert runs.finish(tmp_path, *in_pieces, resume=True) == 0


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_saved(runs, undisturbed, tmp_path: Path) -> None:
    plant = {"before": fault_injection.spoiled_weights, "given": (7,)}
    assert runs.finish(tmp_path, **plant) == 1
    error = error_of(tmp_path)
    assert f"{tmp_path / 'model_0000007.pth'} was not saved, as the weights " in error
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert runs.finish(tmp_path, resume=True) == 0
    assert not differences(tensors(tmp_path), tensors(undisturbed))


@pytest.mark.slow
def test_a_lower_learning_rate_is_taken_on_resuming(runs, tmp_path: Path) -> None:
    """As the sentence says; with the same one it is the same NaN again."""
    rising = ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.WARMUP_ITERS", "8")
    words = (*rising, "SOLVER.REFERENCE_BATCH", "0", "SOLVER.BASE_LR")
    plant = {"before": fault_injection.nan_loss_above, "given": (0.7e-4,)}
    assert runs.finish(tmp_path, *words, "1e-4", **plant) == 1
    assert "or lower SOLVER.BASE_LR, and go on with --resume" in error_of(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert runs.finish(tmp_path, *words, "1e-4", resume=True, **plant) == 1
    assert runs.finish(tmp_path, *words, "6e-5", resume=True, **plant) == 0
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    groups = content["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert all(0 < group["lr"] <= group["initial_lr"] == 6e-5 for group in groups)


@pytest.mark.slow
def test_the_loss_after_weights_that_are_no_numbers(runs, tmp_path: Path) -> None:
    plant = {"before": fault_injection.spoiled_weights, "given": (5,)}
    assert runs.finish(tmp_path, **plant) == 1
    error = error_of(tmp_path)
    assert "NaN or infinite at iteration 6" in error
    assert "The step before had already made weights NaN or infinite" in error
