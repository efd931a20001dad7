"""A run that got SIGKILL goes on from its last checkpoint, and ends as one that did not."""

from __future__ import annotations

import json
from pathlib import Path

import fault_injection
import pytest
import short_runs
from short_runs import differences, tensors, terminal

KILLED = -9  # by SIGKILL, which Windows does not have


def assert_same_end(output: Path, undisturbed: Path) -> None:
    """Weights, average, optimiser and detections are those of the run that nothing happened to."""
    assert not differences(tensors(output), tensors(undisturbed))
    results = [
        (folder / "inference" / "coco_instances_results.json").read_bytes()
        for folder in (output, undisturbed)
    ]
    assert results[0] == results[1]


def assert_whole(output: Path) -> None:
    """Whatever bears a checkpoint's name can be read, and last_checkpoint names one of them."""
    names = sorted(path.name for path in output.glob("*.pth"))
    for name in names:
        assert tensors(output, name)
    note = output / "last_checkpoint"
    assert not note.exists() or note.read_text() in names


def last_log(output: Path) -> str:
    """What the last run with this OUTPUT_DIR printed behind its set-up."""
    return terminal(output).rsplit("Starting training from iteration ", 1)[1]


@pytest.mark.slow
def test_same_seed_same_weights(runs, undisturbed: Path, tmp_path: Path) -> None:
    assert runs.finish(tmp_path, "DATALOADER.NUM_WORKERS", "2") == 0
    assert_same_end(tmp_path, undisturbed)
    assert runs.finish(tmp_path / "other", "SEED", "8") == 0
    assert differences(tensors(tmp_path / "other"), tensors(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize(("iteration", "goes_on"), [(2, 0), (6, 4), (11, 8)])
def test_killed_in_training(runs, undisturbed, tmp_path: Path, iteration: int, goes_on) -> None:
    plant = {"before": fault_injection.die_in_training, "given": (iteration,)}
    assert runs.finish(tmp_path, **plant) == KILLED
    assert_whole(tmp_path)
    assert runs.finish(tmp_path, resume=True) == 0
    assert last_log(tmp_path).startswith(f"{goes_on}\n")
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("patience", ["0", "1"])
def test_killed_with_a_best_checkpoint(runs, tmp_path: Path, patience: str) -> None:
    """Epochs, average and best checkpoint; with patience the run ends early."""
    words = (
        *("SOLVER.EPOCHS", "4", "TEST.EVAL_EPOCHS", "1", "SOLVER.PATIENCE", patience),
        *("TEST.BEST_METRIC", "end_to_end/recall", "SOLVER.EMA_DECAY", "0.9"),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert runs.finish(whole, *words) == 0
    names = sorted(path.name for path in whole.glob("*.pth"))
    assert {"model_best.pth", "model_final.pth"} <= set(names)
    assert ("the training ends here" in terminal(whole)) == (patience == "1")
    dies = fault_injection.die_in_training
    for iteration in (5, 7):
        finished = runs.finish(killed, *words, resume=True, before=dies, given=(iteration,))
        assert finished in (KILLED, 0)
    assert runs.finish(killed, *words, resume=True) == 0
    assert sorted(path.name for path in killed.glob("*.pth")) == names
    for name in ("model_best.pth", "model_final.pth"):
        assert not differences(tensors(killed, name), tensors(whole, name)), name


@pytest.mark.slow
def test_killed_in_training_without_a_seed(runs, tmp_path: Path) -> None:
    """The seed that was drawn is in the checkpoint; so are the weights it began with."""
    words = ("SEED", "-1")
    assert runs.finish(tmp_path / "whole", *words) == 0
    cut = tmp_path / "cut"
    cut.mkdir()
    name = "model_0000003.pth"
    (cut / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (cut / "last_checkpoint").write_text(name)
    assert runs.finish(cut, *words, resume=True) == 0
    assert not differences(tensors(cut), tensors(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "file_name", "goes_on"),
    [
        ("write", "model_0000007.pth.tmp", 4),
        ("replace", "model_0000007.pth", 4),
        ("write", "last_checkpoint.tmp", 0),
        ("replace", "last_checkpoint", 0),
        ("write", "model_final.pth.tmp", 12),
    ],
)
def test_killed_while_a_checkpoint_is_written(
    runs, undisturbed: Path, tmp_path: Path, event: str, file_name: str, goes_on: int
) -> None:
    plant = {"before": fault_injection.die_at, "given": (event, file_name)}
    assert runs.finish(tmp_path, **plant) == KILLED
    assert_whole(tmp_path)
    assert runs.finish(tmp_path, resume=True) == 0
    assert last_log(tmp_path).startswith(f"{goes_on}\n")
    assert_same_end(tmp_path, undisturbed)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_killed_in_the_last_evaluation(runs, undisturbed: Path, tmp_path: Path) -> None:
    plant = {"before": fault_injection.die_in_evaluation, "given": (5,)}
    assert runs.finish(tmp_path, **plant) == KILLED
    assert runs.finish(tmp_path, resume=True) == 0
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_in_an_evaluation_on_the_way(runs, undisturbed: Path, tmp_path: Path) -> None:
    """It is made up for, and metrics.json has each iteration once."""
    words = ("TEST.EVAL_PERIOD", "4")
    plant = {"before": fault_injection.die_in_evaluation, "given": (5,)}
    assert runs.finish(tmp_path, *words, **plant) == KILLED
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 3, "bbox/A')  # a row that was being written
    assert runs.finish(tmp_path, *words, resume=True) == 0
    assert_same_end(tmp_path, undisturbed)
    assert last_log(tmp_path).count("Start inference") == 3  # after 4 iterations, 8, and 12
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    iterations = [row["iteration"] for row in rows]
    assert iterations == sorted(set(iterations))
    # Detectron2 writes every 20 iterations and at the end, and then only the latest results
    assert [row["iteration"] for row in rows if "bbox/AP" in row] == [7, 12]
    # Again from the same checkpoint: what is there is not evaluated again
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    assert runs.finish(tmp_path, *words, resume=True) == 0
    assert last_log(tmp_path).count("Start inference") == 1


@pytest.mark.slow
def test_killed_while_it_only_evaluates(runs, undisturbed: Path, tmp_path: Path) -> None:
    words = ("MODEL.WEIGHTS", str(undisturbed / "model_final.pth"))
    plant = {"before": fault_injection.die_in_evaluation, "given": (5,)}
    for exit_code, options in ((KILLED, plant), (0, {})):
        assert runs.finish(tmp_path, *words, eval_only=True, **options) == exit_code
    name = "inference/coco_instances_results.json"
    assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
    assert short_runs.NUM_IMAGES == len(
        {row["image_id"] for row in json.loads((tmp_path / name).read_text())}
    )
