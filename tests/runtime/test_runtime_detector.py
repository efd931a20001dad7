"""The detector on small graphs of the exporter's format."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from onenet_runtime import (
    Detections,
    Detector,
    ImageError,
    ModelError,
    resize_bilinear,
    resized_shape,
)
from onenet_runtime.predictor import DEFAULT_THRESHOLD, Predictor
from onenet_runtime.stream import detect_files
from onnx import TensorProto, helper
from PIL import Image


def assert_same(a: Detections, b: Detections) -> None:
    for key in ("boxes", "scores", "class_ids", "class_names"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))


def test_single_image(make_model, make_image, rows) -> None:
    found = Detector(make_model())(make_image(40, 60))
    assert isinstance(found, Detections)
    # Default threshold 0.3: the first two; corners in pixels of the original image.
    expected = rows.boxes[:2] * np.array([60, 40, 60, 40], dtype=np.float32)
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-6)
    assert found.boxes.dtype == np.float32 and found.scores.dtype == np.float32
    assert found.class_ids.dtype == np.int64
    np.testing.assert_array_equal(found.scores, rows.scores[:2])
    assert found.class_ids.tolist() == [1, 0] and found.class_names == ["dog", "cat"]


def test_padding_rows_infinite_and_empty_boxes_are_dropped(make_model, make_image, rows) -> None:
    found = Detector(make_model(), threshold=0)(make_image())
    np.testing.assert_array_equal(found.scores, rows.scores[:3])


def test_nothing_found(make_model, make_image) -> None:
    found = Detector(make_model(), threshold=0.95)(make_image())
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.class_names == []


@pytest.mark.parametrize("size", [(40, 60), (61, 37), (333, 97), (7, 9), (64, 100)])
def test_boxes_equal_detector_postprocess(size, make_model, make_image, rows) -> None:
    height, width = size
    resized = resized_shape(height, width, 64, 100)
    scale = np.array([resized[1], resized[0]] * 2, dtype=np.float32)
    valid = np.isfinite(rows.boxes).all(axis=1) & (rows.scores > 0)
    instances = Instances(
        resized,
        pred_boxes=Boxes(torch.from_numpy((rows.boxes * scale)[valid])),
        scores=torch.from_numpy(rows.scores[valid]),
    )
    expected = detector_postprocess(instances, height, width)
    found = Detector(make_model(), threshold=0)(make_image(height, width))
    np.testing.assert_array_equal(found.boxes, expected.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(found.scores, expected.scores.numpy())


def test_batch_equals_single(make_model, make_image, tmp_path: Path) -> None:
    images = [make_image(40, 60, 1), make_image(90, 30, 2), make_image(64, 64, 3)]
    detector = Detector(make_model("pixel"), threshold=0)
    path = tmp_path / "image.png"
    Image.fromarray(images[1]).save(path)
    batch = detector([images[0], path, str(path), images[2]])
    assert isinstance(batch, list) and len(batch) == 4
    assert_same(batch[0], detector(images[0]))
    assert_same(batch[1], detector(images[1]))
    assert_same(batch[1], batch[2])
    assert_same(batch[3], detector(images[2]))
    assert batch[0].scores.tolist() != batch[3].scores.tolist()
    assert detector([]) == []


def test_batch_is_padded_to_a_multiple(make_model) -> None:
    # The model's scores are the batch's height and width, divided by 1000.
    detector = Detector(make_model("shape", min_size=0, size_divisibility=32), threshold=0)
    image = np.zeros((33, 40, 3), np.uint8)
    np.testing.assert_allclose(detector(image).scores, [0.064, 0.064], rtol=1e-6)
    exact = np.zeros((32, 64, 3), np.uint8)
    np.testing.assert_allclose(detector(exact).scores, [0.032, 0.064], rtol=1e-6)


def test_images_of_unlike_sizes_run_apart(make_model, make_image) -> None:
    """The padding to a common size would change what the network's norms see."""
    detector = Detector(make_model("shape", min_size=0, size_divisibility=32), threshold=0)
    sizes = [(33, 40), (20, 65), (33, 40), (34, 40), (20, 65)]
    images = [make_image(*size, seed=i) for i, size in enumerate(sizes)]
    alone = [detector(image) for image in images]
    session, batches = detector.predictor._session, []

    class Recorder:
        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            batches.append((len(inputs["images"]), inputs["image_sizes"].tolist()))
            return session.run(names, inputs)

    detector.predictor._session = Recorder()
    for found, expected in zip(detector(images), alone, strict=True):
        assert_same(found, expected)
    # (34, 40) is padded to the shape of (33, 40), but is another size
    assert batches == [(2, [[33, 40]] * 2), (2, [[20, 65]] * 2), (1, [[34, 40]])]
    assert alone[0].scores.tolist() != alone[1].scores.tolist()


@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
def test_channels(input_format, make_model, tmp_path: Path) -> None:
    # The model's scores are the first pixel's channels as the network sees them.
    pixels = np.full((64, 64, 3), (204, 102, 51), dtype=np.uint8)
    expected = np.array([0.2, 0.4, 0.8] if input_format == "BGR" else [0.8, 0.4, 0.2])
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    detector = Detector(make_model("pixel", input_format=input_format), threshold=0)
    for found in detector([path, pixels, Image.fromarray(pixels), Image.open(path)]):
        np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_network_sees_the_resized_image(make_model, make_image) -> None:
    image = make_image(333, 200)
    found = Detector(make_model("pixel", input_format="RGB"), threshold=0)(image)
    pixel = resize_bilinear(image, *resized_shape(333, 200, 64, 100))[0, 0]
    assert pixel.tolist() != image[0, 0].tolist()
    np.testing.assert_allclose(found.scores, pixel / 255, rtol=1e-6)


def test_thresholds(make_model, make_image) -> None:
    image = make_image()
    calibrated, plain = make_model(thresholds=[0.6, 0.1]), make_model()

    def scores(model: Path, limit=None) -> list[float]:
        found = Detector(model, threshold=limit)(image)
        assert len(found) == len(found.class_names) == len(found.boxes) == len(found.class_ids)
        return [round(float(score), 2) for score in found.scores]

    assert DEFAULT_THRESHOLD == 0.3
    assert scores(plain) == [0.9, 0.5]
    assert scores(plain, 0.2) == [0.9, 0.5, 0.2]  # the threshold itself counts
    assert scores(plain, 0) == [0.9, 0.5, 0.2]
    assert scores(calibrated) == [0.9, 0.2]
    assert scores(calibrated, 0.5) == [0.9, 0.5]
    assert Detector(calibrated).thresholds == [0.6, 0.1]
    for wrong in (-0.1, 1.5, float("nan"), "high"):
        with pytest.raises(ValueError, match="from 0 to 1"):
            Detector(plain, threshold=wrong)


def error_of(path: Path | str, **kwargs) -> str:
    with pytest.raises(ModelError) as caught:
        Detector(path, **kwargs)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


def test_model_errors(make_model, tmp_path: Path) -> None:
    assert "nothing.onnx does not exist" in error_of(tmp_path / "nothing.onnx")
    assert "does not exist or is no file" in error_of(str(tmp_path))
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    assert "text.onnx is not an ONNX file" in error_of(text)
    cut = make_model()
    cut.write_bytes(cut.read_bytes()[:-400])
    assert "is not an ONNX file" in error_of(cut)
    assert "no exported OneNet" in error_of(make_model(onenet_format=None))
    assert "has the export format 2, newer than 1" in error_of(make_model(onenet_format=2))


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_models_of_pytorch(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(path))
    text = error_of(path)
    assert "is a model for PyTorch, not ONNX" in text and "a name that ends in .onnx" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", None),
        ("class_names", []),
        ("class_names", "ab"),
        ("class_names", ["cat", 2]),
        ("category_ids", [1]),
        ("category_ids", [1, 2.5]),
        ("category_ids", [1, True]),
        ("category_ids", 17),
        ("thresholds", [0.1, 0.2, 0.3]),
        ("thresholds", [0.1, float("nan")]),
        ("thresholds", [0.1, 1.5]),
        ("thresholds", [-0.1, 0.5]),
        ("thresholds", ["0.1", "0.2"]),
        ("thresholds", "high"),
        ("input_format", "GBR"),
        ("min_size", "small"),
        ("min_size", -1),
        ("min_size", float("inf")),
        pytest.param("min_size", 10**400, id="min_size-huge"),
        ("max_size", 0),
        ("max_size", True),
        ("size_divisibility", 0),
        ("max_detections", 0),
        ("precision", 32),
        ("onenet_format", "new"),
        ("onenet_format", 0),
        ("onenet_format", 1.5),
    ],
)
def test_broken_metadata(key: str, value, make_model) -> None:
    assert f"lacks a valid value of {key} " in error_of(make_model(**{key: value}))


def test_class_without_a_name(make_model, make_image) -> None:
    detector = Detector(make_model(class_names=["cat"], category_ids=[17]))
    with pytest.raises(ModelError, match="has found the class 1, but .* export it again"):
        detector(make_image())


def test_unknown_category_ids(make_model, make_image) -> None:
    detector = Detector(make_model(category_ids=None))
    assert detector.predictor.metadata.category_ids is None
    assert detector(make_image()).class_names == ["dog", "cat"]


def test_another_models_inputs(make_model) -> None:
    path = make_model()
    model = onnx.load(str(path))
    model.graph.output[1].name = model.graph.node[-1].output[0] = "confidences"
    onnx.save(model, str(path))
    assert "'confidences'" in error_of(path)


def test_unavailable_provider(make_model) -> None:
    assert "NoSuchExecutionProvider is not available" in error_of(
        make_model(), providers=["NoSuchExecutionProvider", "CPUExecutionProvider"]
    )
    detector = Detector(make_model(), providers=["CPUExecutionProvider"])
    assert detector.predictor.providers == ["CPUExecutionProvider"]


def test_failing_run(make_model, make_image) -> None:
    path = make_model()
    model = onnx.load(str(path))
    for node in model.graph.node:  # a table that cannot be expanded to the batch
        if node.output[0] == "k":
            node.attribute[0].t.CopyFrom(helper.make_tensor("", TensorProto.INT64, [1], [5]))
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match="cannot run .* on a batch of shape"):
        Detector(path)(make_image())


def test_metadata(make_model) -> None:
    metadata = Detector(make_model(thresholds=[0.25, 0.5])).predictor.metadata
    assert metadata.class_names == ("cat", "dog") and metadata.category_ids == (17, 18)
    assert metadata.thresholds == (0.25, 0.5) and metadata.input_format == "RGB"
    assert metadata.precision == "float32" and metadata.max_detections == 6


def test_other_processes_take_a_detector(make_model, make_image) -> None:
    model = make_model("pixel", input_format="RGB")
    detector = Detector(model, threshold=0.2, providers=["CPUExecutionProvider"])
    copy = pickle.loads(pickle.dumps(detector))
    image = make_image()
    assert_same(copy(image), detector(image))
    assert copy.predictor.providers == detector.predictor.providers
    assert copy.predictor.metadata == detector.predictor.metadata
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        found = pool.submit(Detector.__call__, detector, image).result()
    assert_same(found, detector(image))


def test_imports_neither_torch_nor_detectron2_nor_opencv(
    make_model, make_image, tmp_path: Path, runtime_folder: Path
) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), make_image())
    code = (
        "import sys, json, onenet_runtime\n"
        f"n = len(onenet_runtime.Detector({str(make_model())!r})("
        f"{str(tmp_path / 'image.png')!r}).scores)\n"
        "print(json.dumps([n, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(runtime_folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, modules = json.loads(result.stdout)
    assert count == 2 and {"PIL", "numpy", "onnxruntime"} <= set(modules)
    assert not {"torch", "detectron2", "cv2", "onenet", "scipy"} & set(modules)


def test_pictures(make_model, make_image, tmp_path: Path) -> None:
    image = make_image(40, 60)
    found = Detector(make_model(), threshold=0.4)(image)
    assert repr(found) == "Detections(dog 0.90, cat 0.50)"
    drawn = found.draw(400)
    x0, y0, x1, y1 = (found.boxes[0] * 10).round().astype(int)
    plain = np.asarray(Image.fromarray(image).resize((600, 400), Image.Resampling.BICUBIC))
    assert (drawn[y1, x0 + 2 : x1 - 2] != plain[y1, x0 + 2 : x1 - 2]).any(axis=1).all()
    np.testing.assert_array_equal(drawn[:50, -20:], plain[:50, -20:])
    np.testing.assert_array_equal(image, make_image(40, 60))
    assert found.draw().shape == (384, 576, 3)
    found.save(tmp_path / "new" / "found.png")
    with Image.open(tmp_path / "new" / "found.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), found.draw())


def test_pictures_that_cannot_be_written(make_model, tmp_path: Path) -> None:
    found = Detector(make_model(min_size=9, max_size=20000))(np.zeros((2, 20000, 3), np.uint8))
    found.save(tmp_path / "a.png")
    for name, reason in (("a.webp", "encoding error 5"), ("a.doc", "unknown file extension")):
        with pytest.raises(OSError, match=rf"{name} cannot be written \({reason}.* as \.png"):
            found.save(tmp_path / name)


def test_for_supervision(make_model, make_image, monkeypatch) -> None:
    found = Detector(make_model())(make_image())
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        found.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    given = found.to_supervision()
    assert given.xyxy is found.boxes and given.confidence is found.scores
    assert given.class_id is found.class_ids and list(given.data["class_name"]) == ["dog", "cat"]


@pytest.mark.parametrize("batch", [1, 3])
def test_files_are_detected_as_in_a_loop(make_model, make_image, tmp_path: Path, batch) -> None:
    # The model's scores are the batch's height and width, divided by 1000
    detector = Detector(make_model("shape", min_size=0, size_divisibility=32), threshold=0)
    sizes = [(33, 40), (20, 65), (33, 40), (99, 40), (20, 65), (33, 40), (64, 64)] * 3
    paths = [tmp_path / f"{i}.png" for i in range(len(sizes))]
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.fromarray(make_image(*size, seed=i)).save(path)
    paths[4].write_bytes(b"")
    for path, found in zip(paths, detector.detect_files(paths, batch), strict=True):
        if path == paths[4]:
            assert isinstance(found, ImageError) and "is empty" in str(found)
        else:
            assert_same(found, detector(path))
            np.testing.assert_array_equal(found._image, detector(path)._image)
    assert list(detector.detect_files([])) == []


@pytest.mark.parametrize("cores", [1, 2])
def test_files_run_in_batches_of_one_size(
    make_model, make_image, tmp_path: Path, monkeypatch, cores: int
) -> None:
    calls: list[tuple[list[tuple[int, int]], int]] = []

    class Noting(Predictor):
        def __call__(self, images: Sequence[np.ndarray]) -> list:
            threads = self._session.get_session_options().intra_op_num_threads
            calls.append(([image.shape[:2] for image in images], threads))
            return super().__call__(images)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    predictor = Noting(make_model("shape", min_size=0, size_divisibility=32))
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(make_image(*[(33, 40), (20, 65)][i % 2], seed=i)).save(path)
    assert len(list(detect_files(predictor, paths, 3))) == 6
    threads = 1 if cores == 2 else 0  # a core for each batch; 0 is ONNX Runtime's choice
    assert sorted(calls) == [([size] * 3, threads) for size in ((20, 65), (33, 40))]
    calls.clear()
    list(detect_files(predictor, paths[:1], 1))
    assert calls == [([(33, 40)], 0)]  # all cores for a single image
