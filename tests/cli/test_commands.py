"""The console command, from a folder of photos to an exported file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from onenet import Detector
from onenet.cli import main

TINY = [
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "2",
    "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.WEIGHTS", "",
    "SEED", "7",
]  # fmt: skip

LONG = ("Environment info:", "Running with full config:", "Model:\n")  # of Detectron2's log


def write_photos(folder: Path, count: int, *names: str) -> None:
    """Noisy images with a bright square each, in YOLO format."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 80, (60, 90, 3), dtype=np.uint8)
        pixels[20:40, 30:60] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{i % len(names)} .5 .5 .3334 .3334\n")
    (folder / "classes.txt").write_text("\n".join(names) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with photos/, and with output/photos, which ``onenet train photos/`` has made."""
    folder, before, datasets = tmp_path_factory.mktemp("place"), os.getcwd(), set(DatasetCatalog)
    os.chdir(folder)
    try:
        write_photos(folder / "photos", 10, "cat", "dog")
        main(["train", "photos/", *TINY, "SOLVER.MAX_ITER", "3"])
    finally:
        os.chdir(before)
    yield folder
    for name in set(DatasetCatalog) - datasets:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def here(place: Path, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


def error(*words: str) -> str:
    """The sentence with which a command ends."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert isinstance(caught.value.code, str) and caught.value.code.startswith("error: ")
    assert "\n" not in caught.value.code
    return caught.value.code


def test_train_leaves_all_that_is_needed(here: Path) -> None:
    run = here / "output" / "photos"
    expected = {"model_final.pth", "model_best.pth", "config.yaml", "val_predictions.jpg"}
    assert expected <= {path.name for path in run.iterdir()}
    assert Image.open(run / "val_predictions.jpg").size == (2 * 480 + 3 * 8, 320 + 2 * 8)
    detector = Detector(run / "model_best.pth")
    assert detector.class_names == ["cat", "dog"] and detector.predictor.calibrated is not None
    assert (run / "log.txt").read_text().count("WARMUP_ITERS is 50 and SOLVER.MAX_ITER 3: the") == 1


def test_train_for_epochs_prints_what_comes_next_and_resumes(here: Path, capsys) -> None:
    (here / "2024").symlink_to("photos")  # yacs would read the name as a number
    words = ["train", "2024", "--output", "2025", "--epochs", "1", *TINY]
    main(words)
    printed, logged = capsys.readouterr().out, (here / "2025" / "log.txt").read_text()
    assert "Next: onenet predict 2025/model_best.pth photo.jpg" in printed
    for text in LONG:
        assert text in logged and text not in printed
    assert "Starting training" in printed
    lines = (here / "2025" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 4  # 8 images, 2 in a batch; then the evaluation
    assert "go on with that run by --resume" in error(*words)
    main([*words, "--resume"])


def test_without_opencv_there_is_no_picture(here: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    main(["train", "photos/", "--resume", *TINY, "SOLVER.MAX_ITER", "3"])
    printed = capsys.readouterr().out
    assert "No picture: Pictures need OpenCV" in printed and "Next: onenet predict" in printed


def test_without_validation_images(here: Path, capsys) -> None:
    opts = ["DATASETS.VAL_SHARE", "0.0", "SOLVER.MAX_ITER", "1"]
    main(["train", "photos", "--output", "all", *TINY, *opts])
    assert "Next: onenet predict all/model_final.pth photo.jpg" in capsys.readouterr().out
    assert not (here / "all" / "val_predictions.jpg").exists()


@pytest.mark.slow
def test_train_in_the_workers_of_torchrun(here: Path) -> None:
    """One of them draws, and says what comes next."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    onenet = [sys.executable, "-W", "ignore", "-c", "from onenet.cli import main; main()"]
    words = ["train", "photos", "--output", "two", *TINY, "SOLVER.MAX_ITER", "3"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, "--no-python", *onenet, *words], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Next: onenet predict two/model_best.pth photo.jpg") == 1
    assert (here / "two" / "val_predictions.jpg").is_file()
    assert Detector(here / "two" / "model_best.pth").predictor.calibrated is not None


def test_eval(here: Path, capsys) -> None:
    write_photos(here / "others" / "train", 2, "cat", "dog")
    write_photos(here / "others" / "val", 2, "cat", "dog")
    best = "output/photos/model_best.pth"
    capsys.readouterr()
    main(["eval", best, "photos/"])
    assert not any(text in capsys.readouterr().out for text in LONG)
    assert "would overwrite" in error("eval", best, "others")
    main(["eval", best, "others", "--output", "elsewhere"])
    assert (here / "elsewhere" / "inference" / "thresholds.json").is_file()
    write_photos(here / "birds", 5, "owl", "tit")
    assert "['owl', 'tit']" in error("eval", best, "birds", "--output", "for_birds")


def test_predict(here: Path, capsys) -> None:
    best = "output/photos/model_best.pth"
    main(["predict", best, "photos/1.png", "photos/2.png", "MODEL.DEVICE", "cpu"])
    assert sorted(path.name for path in (here / "detected").iterdir()) == ["1.png", "2.png"]
    assert "Calibrated thresholds" in capsys.readouterr().out
    main(["predict", best, "photos/1.png", "--output", "one.jpg", "--threshold", "0"])
    printed = capsys.readouterr().out
    assert f"photos/1.png: {len(Detector(best, threshold=0)('photos/1.png'))} det" in printed
    assert Image.open("one.jpg").size == (576, 384)


@pytest.mark.slow
def test_export(here: Path, capsys) -> None:
    main(["export", "output/photos/model_best.pth", "--output", "model.onnx"])
    assert "Parity check passed: model.onnx" in capsys.readouterr().out
    assert (here / "model.onnx").stat().st_size > 2**20


def test_inspect(here: Path, capsys) -> None:
    best = "output/photos/model_best.pth"
    main(["inspect", best, "photos", "--num-images", "1", "MODEL.DEVICE", "cpu"])
    report = json.loads((here / "inspected" / "assignments.json").read_text())
    (image,) = report["images"]
    assert report["weights"] == [best] and report["class_names"] == ["cat", "dog"]
    assert len(image["assignments"][0]) == 1 and image["file_name"].startswith("photos/")
    assert Image.open(here / "inspected" / image["picture"]).size == (576 + 2 * 8, 384 + 2 * 8)
    assert "mean margin to the runner-up" in capsys.readouterr().out


@pytest.mark.slow
def test_compare(here: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/onenet", "compare", "photos"])
    words = ["compare", "photos", *TINY[:-2], "SOLVER.MAX_ITER", "2", "--speed-rounds", "0"]
    main(words)
    text = (here / "output" / "compare" / "photos" / "comparison.md").read_text()
    assert "OneNet, recommended | none" in text and "FCOS | NMS off" in text
    assert "    onenet compare photos\n" in text
    main(words)
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_foreign_warnings_are_not_printed(here: Path) -> None:
    code = (
        "import torch, warnings; from onenet.cli import main; n = torch.arange(2);"
        "torch.meshgrid(n, n); torch.cuda.amp.GradScaler(enabled=False); warnings.warn('mine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "UserWarning: mine" in done.stderr
    assert "meshgrid" not in done.stderr and "cuda.amp" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "There is no 'nowhere'"),
        (["compare", "photos", "SOLVR.MAX_ITER", "1"], "There is no 'SOLVR.MAX_ITER'"),
        (["compare", "photos", "output"], "no config.yaml; give .*, or one folder of photos alone"),
        (["compare", "SOLVER.MAX_ITER", "1"], "before the overrides"),
        (["compare", "photos", "SOLVER.MAX_ITER"], "The list of overrides must be pairs"),
        (["compare", "photos", "--seeds", "1", "SEED", "1"], "sets SEED"),
        (["compare", "photos", "--seeds", "1", "x"], r"--seeds is \[1, 'x'\]; give one or more"),
        (["compare", "photos", "SEED", "1"], "sets SEED, which a comparison takes from the seeds"),
        (["inspect", "gone.pth", "photos"], "there is no file 'gone.pth'"),
        (["inspect", "photos", "gone.pth"], "Config or checkpoint: there is no file 'photos'"),
        (["inspect", "output/photos/model_best.pth", "nowhere"], "nowhere"),
        (["train", "photos", "NO.SUCH", "1"], "NO.SUCH"),
        (["eval", "gone.pth", "photos"], "there is no file 'gone.pth'"),
        (["predict", "gone.pth", "photos/1.png"], "there is no file 'gone.pth'"),
        (["predict", "output/photos/model_best.pth", "gone.png"], "gone.png: there is no such"),
        (["export", "gone.pth", "--output", "x.onnx"], "there is no file 'gone.pth'"),
        (["export", "output/photos/model_best.pth", "--output", "x.doc"], "has to end in .onnx"),
    ],
)
def test_errors_are_one_sentence(here: Path, words: list[str], message: str) -> None:
    assert re.search(message, error(*words))


def test_unknown_options_and_help(capsys) -> None:
    for words, code in ((["train", "photos", "--no-such"], 2), (["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code
    assert "there is no option --no-such" in capsys.readouterr().err
