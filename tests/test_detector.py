"""A detector from nothing but its checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CONFIG, TINY

from onenet import ConfigError, DataError, Detector
from onenet.checkpoint import read_checkpoint, stored_config
from onenet.engine import Trainer, load_config
from onenet.predictor import Predictor, keep


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two iterations on two images of one class, which are gone afterwards."""
    folder = tmp_path_factory.mktemp("run")
    photos, out = folder / "photos", folder / "out"
    photos.mkdir()
    for i in range(4):
        Image.new("RGB", (90, 60), (60 * i, 9, 99)).save(photos / f"{i}.png")
        (photos / f"{i}.txt").write_text("0 .5 .5 .4 .4\n")
    (photos / "classes.txt").write_text("square\n")
    opts = ["DATASETS.FOLDER", str(photos), "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "2"]
    cfg = load_config(CONFIG, [*TINY, *opts, "TEST.BEST_METRIC", "bbox/AP"])
    out.mkdir()
    (out / "config.yaml").write_text(cfg.dump())
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    photos.rename(folder / "gone")
    return out


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image that its EXIF data turn upright."""
    pixels = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


@pytest.mark.parametrize("name", ["model_final.pth", "model_best.pth"])
def test_checkpoints_have_the_config_without_paths_of_the_run(run: Path, name: str) -> None:
    text = stored_config(str(run / name))
    assert "MAX_ITER: 2" in text and "NUM_CLASSES: 1" in text
    assert str(run) not in text


def test_one_image_in_each_form_and_several(run: Path, photo: Path) -> None:
    detector = Detector(run / "model_best.pth", threshold=0)
    assert detector.class_names == ["square"]
    found = detector(str(photo))
    n = len(found)
    assert n > 1 and found.boxes.shape == (n, 4) and found.scores.shape == (n,)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.boxes[:, 2].max() <= 50 < found.boxes[:, 3].max() <= 90  # upright
    assert found.class_names == ["square"] * n and found.class_ids.tolist() == [0] * n
    pixels = np.asarray(Image.open(photo).transpose(Image.Transpose.ROTATE_270))
    for other in detector([photo, Image.open(photo), pixels]):
        assert np.array_equal(other.boxes, found.boxes)
        assert np.array_equal(other.scores, found.scores)
    assert detector([]) == [] and repr(found).startswith("Detections(square 0.")


def test_as_the_predictor_with_the_training_config(run: Path, photo: Path) -> None:
    path = str(run / "model_final.pth")
    predictor = Predictor(load_config(path, ["DATASETS.FOLDER", str(run.parent / "gone")]))
    expected = keep(predictor(predictor.read(str(photo))), [0.005])
    found = Detector(path, threshold=0.005)(photo)
    assert 0 < len(found) and found.scores.tolist() == expected.scores.tolist()


def test_thresholds_are_those_beside_the_weights(run: Path) -> None:
    note = Detector(run / "model_final.pth").predictor.calibration_note
    assert note.startswith("Calibrated thresholds, one a class, from ")
    assert Detector(run / "model_final.pth", threshold=0.7).thresholds == [0.7]
    for wrong in (1.5, float("nan"), "auto"):
        with pytest.raises(ConfigError, match="give a number from 0 to 1"):
            Detector(run / "model_final.pth", threshold=wrong)


def test_pictures(run: Path, photo: Path, tmp_path: Path) -> None:
    found = Detector(run / "model_best.pth", threshold=0)(photo)
    found.save(tmp_path / "new" / "found.png")
    assert Image.open(tmp_path / "new" / "found.png").size == (213, 384)
    with pytest.raises(ConfigError, match=r"Cannot write the picture .*x\.doc \(unknown file"):
        found.save(tmp_path / "x.doc")


def test_for_supervision(run: Path, photo: Path, monkeypatch) -> None:
    found = Detector(run / "model_best.pth", threshold=0)(photo)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="pip install supervision"):
        found.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    given = found.to_supervision()
    assert given.xyxy is found.boxes and given.confidence is found.scores
    assert given.class_id is found.class_ids and set(given.data["class_name"]) == {"square"}


def changed(run: Path, path: Path, **entries: object) -> Path:
    """A copy of a checkpoint with other entries; None removes one."""
    content = {**read_checkpoint(str(run / "model_best.pth")), **entries}
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    return path


def test_without_a_config_in_it(run: Path, photo: Path, tmp_path: Path) -> None:
    weights = changed(run, tmp_path / "old.pth", config=None)
    with pytest.raises(ConfigError, match="has no config in it, and no config.yaml lies beside it"):
        Detector(weights)
    os.link(run / "config.yaml", tmp_path / "config.yaml")
    assert Detector(weights).class_names == ["square"]
    (tmp_path / "config.yaml").rename(tmp_path / "other.yaml")
    assert len(Detector(weights, config_file=tmp_path / "other.yaml", threshold=0)(photo)) > 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("MODEL: {NO_SUCH: 1}", r"none of this version of onenet: .*MODEL\.NO_SUCH"),
        ("_BASE_: other.yaml", "none of this version"),
        ("[1, 2]", "none of this version"),
        ("a: !!python/object/apply:os.getcwd []", "is no plain yaml"),
        ("a: 1 " * 10**6, "is larger than"),
        (7, "has no config in it"),
    ],
)
def test_configs_that_are_refused(run: Path, tmp_path: Path, config: object, message: str) -> None:
    weights = changed(run, tmp_path / "new.pth", config=config)
    with pytest.raises(ConfigError, match=message) as caught:
        Detector(weights)
    assert str(weights) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file 'gone.pth'"):
        Detector("gone.pth")
    detector = Detector(run / "model_best.pth")
    with pytest.raises(DataError, match=r"The image gone\.jpg cannot be read"):
        detector("gone.jpg")
    with pytest.raises(DataError, match="of type int"):
        detector(7)
    with pytest.raises(DataError, match="The image in memory cannot be read .*32-bit floats"):
        detector(Image.new("F", (9, 9)))
