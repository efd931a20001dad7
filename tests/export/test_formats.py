"""The files: what they contain, and that they compute what the network computes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onenet.export import (
    ExportableOneNet,
    ExportedDetector,
    Metadata,
    compare_on_images,
    open_exported,
    write_exported,
)
from onenet.utils.errors import ConfigError

ALL = [
    "digits/onenet_fcos_R18_FPN",
    "digits/onenet_retinanet_R18_FPN",
    "digits/onenet_point_R18",
    "digits/recommended_R18_FPN",
    "coco/onenet_point_R18_dcn",
]


def export(cfg, model, path: Path, half: bool = False) -> Metadata:
    names = [str(i) for i in range(model.head.num_classes)]
    precision = "float16" if half else "float32"
    metadata = Metadata.from_model(cfg, model, names, thresholds=None, precision=precision)
    write_exported(ExportableOneNet(model, half=half), metadata, path)
    assert open_exported(path)[1] == metadata.entries()
    return metadata


# So many that samples are ranked first
MANY_CLASSES = ("MODEL.ONENET.NUM_CLASSES", "20", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()")


def check_sizes(model, path: Path, least: int) -> None:
    """Batches of one and of three."""
    run, _ = open_exported(path)
    exported = ExportedDetector(run, 32)
    for sizes in ([(least, least)], [(100, 130)], [(96, 64), (70, 130), (64, 64)]):
        images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
        difference = compare_on_images(model, exported, images, 1e-4)
        assert difference.compared > 50
        assert difference.box < 1e-4 and difference.score < 1e-5 and difference.unmatched == 0


def check_mixed_batch(path: Path) -> None:
    """In onenet_runtime an image's scores do not depend on the images that it is batched with."""
    detector = pytest.importorskip("onenet_runtime").Detector(path, threshold=0)
    rng = np.random.default_rng(0)
    sizes = [(100, 130), (96, 64), (100, 130), (64, 64)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for found, image in zip(detector(images), images, strict=True):
        np.testing.assert_allclose(found.scores, detector(image).scores, atol=1e-6)


def test_onnx_of_the_recommended_model(build, tmp_path: Path) -> None:
    cfg, model = build("digits/recommended_R18_FPN", *MANY_CLASSES)
    path = tmp_path / "model.onnx"
    export(cfg, model, path)
    check_sizes(model, path, least=32)
    check_mixed_batch(path)

    content = onnx.load(path)
    assert "NonMaxSuppression" not in {node.op_type for node in content.graph.node}
    assert {node.domain for node in content.graph.node} <= {"", "ai.onnx"}
    entries = {entry.key: json.loads(entry.value) for entry in content.metadata_props}
    assert entries["class_names"] == [str(i) for i in range(20)]
    assert entries["input_format"] == cfg.INPUT.FORMAT
    assert (entries["min_size"], entries["size_divisibility"]) == (cfg.INPUT.MIN_SIZE_TEST, 32)
    assert "thresholds" not in entries and len(entries["config_digest"]) == 64
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*content.graph.input, *content.graph.output)
    }
    assert axes["images"] == ["batch", "height", "width", 3]
    assert axes["boxes"] == ["batch", "detections", 4]


@pytest.mark.slow
def test_onnx_of_the_photos_model(build, tmp_path: Path) -> None:
    """Without SamePadConv2d it takes longer than ten minutes."""
    cfg, model = build("photos/recommended", *MANY_CLASSES)
    path = tmp_path / "model.onnx"
    export(cfg, model, path)
    check_sizes(model, path, least=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "suffix"),
    [
        *((config, ".onnx") for config in ALL if config != "digits/recommended_R18_FPN"),
        *itertools.product(ALL[1:2] + ALL[3:], [".pt2", ".ts"]),
    ],
)
def test_all_heads_and_formats(build, tmp_path: Path, config: str, suffix: str) -> None:
    cfg, model = build(config)
    path = tmp_path / f"model{suffix}"
    export(cfg, model, path)
    check_sizes(model, path, least={".onnx": 32, ".pt2": 96, ".ts": 64}[suffix])


@pytest.mark.slow
def test_half(build, tmp_path: Path) -> None:
    cfg, model = build("digits/onenet_fcos_R18_FPN")
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    export(cfg, model, whole)
    assert export(cfg, model, half, half=True).precision == "float16"
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    images, sizes = np.full((1, 64, 64, 3), 99, np.uint8), np.array([[64, 64]])
    _, scores, _ = open_exported(half)[0](images, sizes)
    _, expected, _ = open_exported(whole)[0](images, sizes)
    assert scores.dtype == np.float32 and np.abs(scores - expected).max() < 0.01


def test_metadata_of_other_classes_is_refused(build) -> None:
    cfg, model = build("digits/onenet_point_R18")
    with pytest.raises(ConfigError, match="10 classes, the dataset 3"):
        Metadata.from_model(cfg, model, ["a", "b", "c"], None)


def test_an_unknown_ending_is_refused(build, tmp_path: Path) -> None:
    cfg, model = build("digits/onenet_point_R18")
    with pytest.raises(ConfigError, match=r"\.onnx \(ONNX\)"):
        export(cfg, model, tmp_path / "model.engine")


@pytest.mark.slow
def test_openvino_reads_the_onnx_file(build, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    cfg, model = build("digits/recommended_R18_FPN")
    path = tmp_path / "model.onnx"
    export(cfg, model, path)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: np.ndarray, sizes: np.ndarray):
        results = compiled({"images": images, "image_sizes": sizes})
        return tuple(results[name] for name in ("boxes", "scores", "classes"))

    exported = ExportedDetector(run, 32)
    images = [torch.randint(256, (3, *s), dtype=torch.uint8) for s in ((100, 130), (96, 64))]
    difference = compare_on_images(model, exported, images, 1e-4)
    assert difference.compared > 50 and difference.unmatched == 0
    assert difference.box < 1e-3 and difference.score < 1e-4


@pytest.mark.slow
def test_litert_runs_what_onnx2tf_converts(build, tmp_path: Path) -> None:
    """With the commands of docs/engines.md, on an image that does not fill the file's size."""
    if "ONENET_ONNX2TF" not in os.environ:
        pytest.skip("needs ONENET_ONNX2TF, the folder of the commands onnx2tf and onnxsim")
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install ai-edge-litert")
    from common import litert_opener

    cfg, model = build("digits/recommended_R18_FPN")
    path = tmp_path / "model.onnx"
    export(cfg, model, path)
    folder = Path(os.environ["ONENET_ONNX2TF"])
    shapes = ("images:1,96,128,3", "image_sizes:1,2")
    fixed, files = tmp_path / "fixed.onnx", tmp_path / "litert"
    for command in (
        ["onnxsim", path, fixed, "--overwrite-input-shape", *shapes],
        ["onnx2tf", "-i", fixed, "-o", files, "-kat", "images", "image_sizes"],
    ):
        subprocess.run([folder / command[0], *command[1:]], check=True, cwd=tmp_path)
    run = litert_opener()(files / "fixed_float32.tflite", None, 1)
    images = np.zeros((1, 96, 128, 3), np.uint8)
    images[:, :70, :100] = np.random.default_rng(0).integers(256, size=(1, 70, 100, 3))
    found, expected = (r(images, np.array([[70, 100]])) for r in (run, open_exported(path)[0]))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-2)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    np.testing.assert_array_equal(found[2], expected[2])
