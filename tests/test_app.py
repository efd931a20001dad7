"""What the page of demo/app.py shows, with and without Gradio."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from onenet.predictor import Predictor, load_predictor_config
from onenet.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
# 64 pixels and random weights: boxes overlap, scores are about 0.01
OPTS = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "30"]
OPTS += ["MODEL.FCOS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]


def config(name: str, *opts: str):
    path = str(ROOT / "configs" / "digits" / f"{name}.yaml")
    return load_predictor_config(path, [*OPTS, *opts])


def save_weights(name: str, path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model(config(name))
    if name == "baseline_fcos_R18_FPN":  # whose boxes start empty
        torch.nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("app", ROOT / "demo" / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["app"] = module  # where its dataclass is looked for
    spec.loader.exec_module(module)
    yield module
    del sys.modules["app"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_weights("onenet_fcos_R18_FPN", tmp_path_factory.mktemp("run") / "model.pth")


@pytest.fixture
def demo(app: ModuleType, weights: Path):
    return app.Demo(config("onenet_fcos_R18_FPN"), str(weights))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("name", "nms_on", "nms_off"),
    [
        (
            "onenet_fcos_R18_FPN",
            ["MODEL.ONENET.NMS_TEST", "True", "MODEL.ONENET.NMS_THRESH_TEST", "0.5"],
            ["MODEL.ONENET.NMS_THRESH_TEST", "0.5"],
        ),
        (
            "baseline_fcos_R18_FPN",
            ["MODEL.FCOS.NMS_THRESH_TEST", "0.5"],
            ["MODEL.FCOS.NMS_THRESH_TEST", "1.0"],
        ),
        (
            "baseline_retinanet_R18_FPN",
            ["MODEL.RETINANET.NMS_THRESH_TEST", "0.5"],
            ["MODEL.RETINANET.NMS_THRESH_TEST", "1.0"],
        ),
    ],
)
def test_nms_as_the_model_itself_has_it(app, photo, tmp_path, name, nms_on, nms_off) -> None:
    path = str(save_weights(name, tmp_path / "model.pth"))
    everything = ["TEST.DETECTIONS_PER_IMAGE", "30" if name.startswith("onenet") else "100000"]
    demo = app.Demo(config(name, *nms_on, *everything), path)
    assert demo.starts_with_nms and demo.nms_thresh == 0.5
    found = demo.detect(photo)
    lengths = []
    for nms, opts in ((True, nms_on), (False, nms_off)):
        predictor = Predictor(config(name, *opts, *everything), path)
        expected = predictor(predictor.read(photo))
        shown, _ = demo.select(found, 0.0, nms)
        assert torch.equal(shown.scores, expected.scores)
        assert torch.equal(shown.pred_boxes.tensor, expected.pred_boxes.tensor)
        lengths.append(len(shown))
    assert 0 < lengths[0] < lengths[1]
    if name.startswith("onenet"):
        demo = app.Demo(config(name, *nms_off), path)
        assert not demo.starts_with_nms and demo.nms_thresh == 0.5


def test_thresholds_and_nms_do_not_run_the_model(demo, photo: str, monkeypatch) -> None:
    found = demo.detect(photo)
    monkeypatch.setattr(demo.predictor, "model", None)
    scores, survivors = found.without_nms.scores, found.with_nms.scores
    assert 0 < len(survivors) < len(scores) == 30
    for threshold in (0.0, float(scores[10]), 1.0):
        count, left = int((scores >= threshold).sum()), int((survivors >= threshold).sum())
        off, on = (demo.show(found, threshold, nms) for nms in (False, True))
        for (picture, text), number in ((off, count), (on, left)):
            assert picture.shape == (640, 960, 3) and picture.dtype == np.uint8
            assert text.startswith(f"**{number} detection{'' if number == 1 else 's'}.**")
            assert "(IoU above 0.6, within a class). The model took" in text
        removed = f"{count - left} of {count}" if count > left else "nothing"
        assert f"NMS would remove {removed} (" in off[1]
        assert f"NMS removed {removed} (" in on[1]
        assert np.array_equal(off[0], on[0]) == (count == left)


def test_the_limit_is_told(app, photo: str, tmp_path: Path) -> None:
    path = save_weights("baseline_fcos_R18_FPN", tmp_path / "model.pth")
    demo = app.Demo(config("baseline_fcos_R18_FPN"), str(path))
    found = demo.detect(photo)
    assert len(found.without_nms) > 30
    assert "The 30 best are shown." in demo.select(found, 0.0, False)[1]
    assert "best are shown" not in demo.select(found, 1.0, False)[1]


def test_calibrated_thresholds_are_one_a_class(demo, photo: str) -> None:
    assert demo.start_threshold == 0.3
    found = demo.detect(photo)
    classes = found.without_nms.pred_classes
    first = int(classes[0])
    demo.predictor.calibrated = [0.0 if c == first else 1.0 for c in range(10)]
    shown, _ = demo.select(found, None, False)
    assert len(shown) == int((classes == first).sum()) > 0
    assert set(shown.pred_classes.tolist()) == {first}
    assert len(demo.select(found, 0.0, False)[0]) == 30
    demo.predictor.calibrated = [0.1, 0.254, 0.9] + [0.254] * 7
    assert demo.start_threshold == 0.25


def test_bad_uploads_are_told(demo, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path, message in (
        (str(tmp_path / "text.png"), "**The image text.png cannot be read (Pillow knows no"),
        (None, "Drop an image"),
    ):
        picture, text = demo.show(demo.detect(path), 0.3, False)
        assert picture is None and text.startswith(message)
        assert str(tmp_path) not in text  # a folder of the server's


def test_gradio_missing_or_old(app, monkeypatch) -> None:
    words = ["--config-file", "never read"]
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradio>=6'\.$"):
        app.main(words)
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="5.49.1"))
    with pytest.raises(ConfigError, match=r"Gradio is 5\.49\.1; .*pip install 'gradio>=6'"):
        app.main(words)


def test_a_checkpoint_alone(app, weights: Path, photo: str, tmp_path: Path) -> None:
    content = torch.load(weights, weights_only=True)
    path = tmp_path / "whole.pth"
    torch.save({**content, "config": config("onenet_fcos_R18_FPN").dump()}, path)
    demo = app.load_demo(app.parse_arguments(["--weights", str(path), *OPTS]))
    assert len(demo.detect(photo).without_nms) == 30
    with pytest.raises(ConfigError, match="Name a checkpoint with --weights"):
        app.load_demo(app.parse_arguments([]))


def test_only_this_machine_by_default(app) -> None:
    args = app.parse_arguments(["--config-file", "x", "MODEL.DEVICE", "cpu"])
    assert (args.host, args.port, args.opts) == ("127.0.0.1", 7860, ["MODEL.DEVICE", "cpu"])


def test_the_page_builds_and_answers(app, demo, photo: str) -> None:
    pytest.importorskip("gradio")
    page = app.build_page(demo)
    assert page.analytics_enabled is False
    upload, redraw = (
        next(f.fn for f in page.fns.values() if f.name == name) for name in ("upload", "redraw")
    )
    found, picture, text = upload(photo, 0.0, False, False)
    assert picture.shape == (640, 960, 3) and text.startswith("**30 detections.**")
    assert redraw(found, 1.0, False, False)[1].startswith("**0 detections.**")
    assert redraw(found, 0.0, True, False)[1].startswith("**0 detections.**")  # 0.3 for all
    assert upload(None, 0.0, False, False)[1:] == (None, app.HINT)
