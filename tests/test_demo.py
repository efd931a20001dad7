"""The predictor against the evaluation's own path, and demo/demo.py as a user calls it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine import load_config
from onenet.evaluation.thresholds import weights_digest
from onenet.predictor import Predictor, keep, load_predictor_config
from onenet.utils.errors import ConfigError, DataError, exit_with_one_sentence

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "digits"
ONENET = str(CONFIGS / "onenet_fcos_R18_FPN.yaml")
OPTS = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "20"]
OPTS += ["MODEL.FCOS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]


def save_model(path: Path, config: str = ONENET, *opts: str) -> Path:
    """A checkpoint of random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = build_model(load_config(config, [*OPTS, *opts]))
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "model_final.pth")


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "demo" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image whose pixels are wider than high, and whose EXIF data say to turn it."""
    pixels = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "in" / "photo.jpg"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def count(weights: Path, image: Path, config: str = ONENET) -> int:
    """How many detections there are; some of random weights are empty, and left out."""
    predictor = Predictor(load_predictor_config(config, OPTS), str(weights))
    number = len(predictor(predictor.read(str(image))))
    assert number > 1
    return number


def calibrate(run: Path, thresholds: list[float], digest: str, names: list[str]) -> None:
    """Writes the file that an evaluation leaves in a run's folder."""
    classes = [{"name": n, "threshold": t} for n, t in zip(names, thresholds, strict=True)]
    (run / "inference").mkdir(exist_ok=True)
    content = {"weights": digest, "classes": classes}
    (run / "inference" / "thresholds.json").write_text(json.dumps(content))


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predicts_as_the_evaluation_does(weights: Path, photo: Path, image_format: str) -> None:
    cfg = load_predictor_config(ONENET, [*OPTS, "INPUT.FORMAT", image_format])
    predictor = Predictor(cfg, str(weights))
    image = predictor.read(str(photo))
    assert image.shape == (90, 50, 3)
    detections = predictor(image)

    record = {"file_name": str(photo), "height": 90, "width": 50}
    inputs = OneNetDatasetMapper(cfg, is_train=False)(record)
    with torch.no_grad():
        expected = predictor.model([inputs])[0]["instances"]
    assert detections.image_size == (90, 50) and len(detections) > 1
    assert torch.equal(detections.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(detections.scores, expected.scores)
    # The order of the channels matters to these weights
    other = predictor(image[:, :, ::-1])
    assert not torch.equal(other.scores, detections.scores)


IMAGE = np.zeros((90, 50, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (IMAGE / 255, "an array of float64: pass uint8 from 0 to 255"),
        (IMAGE.astype(np.uint16), "an array of uint16"),
        (IMAGE[:, :, 0], "of shape (90, 50), is grey"),
        (IMAGE[:, :, :1], "of shape (90, 50, 1), is grey"),
        (np.dstack([IMAGE, IMAGE[:, :, 0]]), "image[:, :, :3]"),
        (IMAGE.transpose(2, 0, 1), "image.transpose(1, 2, 0)"),
        (IMAGE[None], "one at a time"),
        (IMAGE[:, :, :2], "(height, width, 3)"),
        (IMAGE[0, 0], "(height, width, 3)"),
        (IMAGE[:0], "is empty"),
        (IMAGE[:, :0], "is empty"),
        (None, "of type NoneType"),
        ("photo.jpg", "of type str: pass a NumPy array (height, width, 3) of uint8, RGB"),
        (b"\xff\xd8", "of type bytes"),
        (Path("photo.jpg"), "Predictor.read"),
        (torch.zeros(3, 90, 50), "of type Tensor"),
        (Image.new("RGB", (50, 90)), "of type Image"),
        (np.zeros((1, 9000, 3), np.uint8), "of 9000 x 1 pixels, is too narrow"),
    ],
)
def test_predictor_refuses_what_is_no_image(weights: Path, image: object, expected: str) -> None:
    predictor = Predictor(load_predictor_config(ONENET, OPTS), str(weights))
    with pytest.raises(DataError) as caught:
        predictor(image)
    text = str(caught.value)
    assert text.startswith("The image") and expected in text and text.endswith(".")
    assert "\n" not in text


def test_keep_compares_with_each_class_threshold() -> None:
    scores = torch.tensor([0.9, 0.3, 0.3, 0.2])
    detections = Instances((9, 9), scores=scores, pred_classes=torch.tensor([1, 0, 1, 0]))
    # 0.3 is not less than 0.3, in float32 as in decimals
    assert keep(detections, [0.3, 0.5]).scores.tolist() == scores[:2].tolist()
    assert len(keep(detections, [1.0, 1.0])) == 0


def test_weights_must_be_named_and_fit(weights: Path) -> None:
    cfg = load_predictor_config(ONENET, OPTS)
    for cfg_weights, path, message in (
        ("", "", "Name a checkpoint with --weights"),
        ("", "none.pth", "there is no file 'none.pth'"),
        ("none.pth", "", "there is no file 'none.pth'"),
    ):
        cfg = load_predictor_config(ONENET, [*OPTS, "MODEL.WEIGHTS", cfg_weights])
        with pytest.raises(ConfigError, match=message):
            Predictor(cfg, path)
    cfg = load_predictor_config(ONENET, [*OPTS, "MODEL.ONENET.HEAD.NUM_CONVS", "3"])
    with pytest.raises(ConfigError, match="not of the model"):
        Predictor(cfg, str(weights))
    with pytest.raises(ConfigError, match="INPUT.FORMAT is 'L'"):
        Predictor(load_predictor_config(ONENET, [*OPTS, "INPUT.FORMAT", "L"]), str(weights))


def test_weights_default_to_the_config(weights: Path) -> None:
    cfg = load_predictor_config(ONENET, [*OPTS, "MODEL.WEIGHTS", str(weights)])
    state = torch.load(weights, weights_only=True)["model"]
    loaded = Predictor(cfg).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_calibrated_thresholds_need_these_weights(tmp_path: Path) -> None:
    path = save_model(tmp_path / "run" / "model_final.pth")
    cfg = load_predictor_config(ONENET, OPTS)
    digits = [str(i) for i in range(10)]
    values = [0.05 * i for i in range(10)]

    predictor = Predictor(cfg, str(path))
    assert predictor.class_names == digits and predictor.calibrated is None
    assert "train_net.py --eval-only" in predictor.calibration_note
    assert predictor.thresholds() == [0.3] * 10 and predictor.thresholds(0.0) == [0.0] * 10

    digest = weights_digest(predictor.model)
    calibrate(path.parent, values, digest, digits)
    predictor = Predictor(cfg, str(path))
    assert predictor.calibrated == predictor.thresholds() == pytest.approx(values)
    assert "thresholds.json" in predictor.calibration_note
    assert predictor.thresholds(0.7) == [0.7] * 10

    for name, wrong_digest in ((digits, "another"), (digits[::-1], digest)):
        calibrate(path.parent, values, wrong_digest, name)
        predictor = Predictor(cfg, str(path))
        assert predictor.thresholds() == [0.3] * 10
        assert predictor.calibration_note.startswith("No calibrated thresholds: The thresholds")
        assert predictor.class_names == digits


def test_no_dataset_is_needed(tmp_path: Path) -> None:
    path = save_model(tmp_path / "run" / "model_final.pth")
    gone = [
        "DATASETS.TRAIN", "('gone_too',)",
        "DATASETS.TEST_JSON", str(tmp_path / "gone.json"),
        "DATASETS.TEST_IMAGE_ROOT", str(tmp_path),
        "TEST.LIMITS", "[['bbox', 'AP', 'min', 1.0]]",
        "SOLVER.AMP.ENABLED", "True",
    ]  # fmt: skip
    ten = ["MODEL.ONENET.NUM_CLASSES", "10"]
    cfg = load_predictor_config(ONENET, [*OPTS, *gone, *ten])
    predictor = Predictor(cfg, str(path))
    assert predictor.class_names == [str(i) for i in range(10)]
    # The calibration knows the names too
    names = [f"digit {i}" for i in range(10)]
    calibrate(path.parent, [0.5] * 10, weights_digest(predictor.model), names)
    assert Predictor(cfg, str(path)).class_names == names
    # The number of classes has to come from somewhere; other errors stay what they are
    with pytest.raises(ConfigError, match=r"MODEL\.ONENET\.NUM_CLASSES is 0.*set it"):
        load_predictor_config(ONENET, [*OPTS, *gone])
    with pytest.raises(ConfigError, match="NO_SUCH"):
        load_predictor_config(ONENET, [*OPTS, *gone, *ten, "MODEL.NO_SUCH", "1"])


def test_the_training_set_alone_tells_the_classes() -> None:
    cfg = load_predictor_config(ONENET, [*OPTS, "DATASETS.TEST", "()"])
    assert cfg.MODEL.ONENET.NUM_CLASSES == 10 and cfg.DATASETS.TRAIN


def run(demo: ModuleType, weights: Path, *words: str, config: str = ONENET) -> None:
    demo.main(["--config-file", config, "--weights", str(weights), *words])


def test_a_folder_with_bad_images(demo, weights: Path, photo: Path, tmp_path, capsys) -> None:
    folder, output = photo.parent, tmp_path / "out" / "pictures"
    Image.new("L", (400, 500)).save(folder / "grey.PNG")
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes(photo.read_bytes()[:1500])
    Image.new("RGB", (1, 9000)).save(folder / "thin.png")
    (folder / "notes.txt").write_text("passed over")

    words = ["--threshold", "0", "--output", str(output), "--input", str(folder), *OPTS]
    with pytest.raises(SystemExit) as exit_info, exit_with_one_sentence():
        run(demo, weights, *words)
    message = exit_info.value.code  # a text makes Python's exit code 1
    assert "3 of 5 images failed" in message
    for bad, reason in {
        "text.png": "Pillow knows no",
        "cut.jpg": "truncated",
        "thin.png": "1 x 9000",
    }.items():
        line = next(line for line in message.splitlines() if line.startswith(str(folder / bad)))
        assert reason in line
    assert sorted(p.name for p in output.iterdir()) == ["grey.png", "photo.png"]
    assert Image.open(output / "grey.png").size == (400, 500)
    assert Image.open(output / "photo.png").size == (213, 384)  # small ones are enlarged
    printed = capsys.readouterr().out
    assert f"{photo}: {count(weights, photo)} detections in " in printed
    assert "calibrated" not in printed


def test_thresholds_of_the_command_line(demo, photo: Path, tmp_path: Path, capsys) -> None:
    path = save_model(tmp_path / "run" / "model_final.pth")
    words = ["--input", str(photo), "--output", str(tmp_path / "out.png")]
    for choice, number in ((("0",), count(path, photo)), (("1",), 0), ((), 0)):
        run(demo, path, *(("--threshold", *choice) if choice else ()), *words, *OPTS)
        printed = capsys.readouterr().out
        assert f": {number} detections in" in printed
        assert ("No calibrated thresholds lie beside" in printed) == (not choice)
    with pytest.raises(ConfigError, match="--threshold auto: No calibrated"):
        run(demo, path, "--threshold", "auto", *words, *OPTS)
    predictor = Predictor(load_predictor_config(ONENET, OPTS), str(path))
    digest = weights_digest(predictor.model)
    calibrate(tmp_path / "run", [0.0] * 10, digest, [str(i) for i in range(10)])
    run(demo, path, *words, *OPTS)  # auto is the default
    printed = capsys.readouterr().out
    assert f": {count(path, photo)} detections in" in printed
    assert "Calibrated thresholds" in printed
    for wrong in ("1.5", "none", "nan"):
        with pytest.raises(SystemExit):
            demo.parse_arguments(["--config-file", ONENET, "--webcam", "--threshold", wrong])
        assert "neither 'auto' nor a score" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["baseline_fcos_R18_FPN", "baseline_retinanet_R18_FPN"])
def test_baselines(demo, photo: Path, tmp_path: Path, capsys, name: str) -> None:
    config = str(CONFIGS / f"{name}.yaml")
    path = save_model(tmp_path / "model.pth", config)
    output = tmp_path / "out.jpg"
    words = ["--threshold", "0", "--output", str(output), "--input", str(photo)]
    run(demo, path, *words, *OPTS, config=config)
    assert f": {count(path, photo, config)} detections in" in capsys.readouterr().out
    assert Image.open(output).format == "JPEG"


def write_video(path: Path, num_frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 7, (96, 64))
    for i in range(num_frames):
        writer.write(np.full((64, 96, 3), 40 * i, np.uint8))
    writer.release()


def test_a_video(demo, weights: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "film.avi"
    write_video(source, 3)
    words = ["--video-input", str(source), "--threshold", "0", *OPTS]
    run(demo, weights, "--output", str(tmp_path / "out"), *words)
    assert "frame 3: " in capsys.readouterr().out
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert [capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)] == [7, 3]
    run(demo, weights, "--output", str(tmp_path / "other.avi"), *words)
    assert cv2.VideoCapture(str(tmp_path / "other.avi")).read()[0]

    for output, message in ((source, "would overwrite"), ("film.mov", "ends in .mp4 or .avi")):
        with pytest.raises(ConfigError, match=message):
            run(demo, weights, "--output", str(output), *words)
    with pytest.raises(ConfigError, match="no file 'gone.avi'"):
        run(demo, weights, "--video-input", "gone.avi", "--output", str(tmp_path))
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(DataError, match=r"text\.avi cannot be read"):
        run(demo, weights, "--video-input", str(tmp_path / "text.avi"), "--output", str(tmp_path))


def test_which_images(demo, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.jpg", "sub/deep/c.tif", "sub/a.png", "odd[1].png", "x.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()

    def found(*inputs: str) -> list[str]:
        return [str(path) for path in demo.find_images(inputs)]

    assert found("x.txt", "b.png") == ["x.txt", "b.png"]  # what is named is tried
    assert found(".") == ["a.jpg", "b.png", "odd[1].png"]
    assert found("*.png", "a.jpg", "b.png") == ["b.png", "odd[1].png", "a.jpg"]
    assert found("sub/**/*.tif", "odd[1].png") == ["sub/deep/c.tif", "odd[1].png"]
    for text, message in (
        ("no.png", "there is no such"),
        ("*.gif", "there is"),
        ("empty", "has no"),
    ):
        with pytest.raises(ConfigError, match=message):
            found("a.jpg", text)


def test_where_pictures_go(demo, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = [Path("a.png"), Path("sub/a.jpg"), Path("b.png")]

    def planned(images: list[Path], output: str | None) -> list[str]:
        return [str(path) for path in demo.plan_outputs(images, output)]

    assert planned(images, "out") == ["out/a.png", "out/a_2.png", "out/b.png"]
    assert planned(images[:1], "out/x.JPG") == ["out/x.JPG"]
    assert demo.plan_outputs(images, None) == [None] * 3
    Path("v1.0").mkdir()
    assert planned(images[:1], "v1.0") == ["v1.0/a.png"]
    for images_there, output, message in (
        (images, "one.png", "one file, but there are 3 images"),
        (images[:1], "one.doc", "'.doc' is no type of image"),
        (images, ".", r"would overwrite the input a\.png"),
        (images[:1], "sub/../a.png", "would overwrite"),
    ):
        with pytest.raises(ConfigError, match=message):
            planned(images_there, output)
    Path("file").touch()
    with pytest.raises(ConfigError, match="Cannot write into file/out"):
        demo.make_folder(Path("file/out"))


def test_overrides_behind_the_images(demo, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("MODEL.jpg").touch()
    parse = demo.parse_arguments
    base = ["--config-file", "x", "--output", "o", "--input"]
    args = parse([*base, "MODEL.jpg", "IMG.JPG", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "d"])
    assert args.input == ["MODEL.jpg", "IMG.JPG"]
    assert args.opts == ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "d"]
    args = parse(["--input", "a", "--config-file", "x", "MODEL.DEVICE", "cpu"])
    assert (args.input, args.opts) == (["a"], ["MODEL.DEVICE", "cpu"])
    with pytest.raises(SystemExit):
        parse([*base, "MODEL.DEVICE", "cpu"])


def test_windows_are_named_as_what_is_missing(demo, weights, photo, monkeypatch) -> None:
    monkeypatch.setattr(demo.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no screen.*--output"):
        run(demo, weights, "--input", str(photo), *OPTS)
    monkeypatch.setenv("DISPLAY", ":0")

    def no_gui(*args) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(demo.cv2, "namedWindow", no_gui)
    with pytest.raises(ConfigError, match="no windows.*--output"):
        run(demo, weights, "--input", str(photo), *OPTS)


def test_windows(demo, weights: Path, photo: Path, monkeypatch) -> None:
    other = photo.with_name("zebra.png")
    Image.new("RGB", (64, 64)).save(other)
    shown, keys = [], [13, ord("q")]
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(demo.cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(demo.cv2, "imshow", lambda name, picture: shown.append(picture))
    monkeypatch.setattr(demo.cv2, "waitKey", lambda ms: keys.pop(0))
    images = [str(photo), str(other), str(photo.parent / "photo.jp*")]
    run(demo, weights, "--input", *images, *OPTS)
    assert [picture.shape for picture in shown] == [(384, 213, 3), (384, 384, 3)] and not keys
    # "q" ends before the last
    keys[:] = [ord("q")]
    run(demo, weights, "--input", *images, *OPTS)
    assert len(shown) == 3
