"""Models, annotations and images of others: refused or bounded, in one sentence."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onenet_runtime import Detector, ModelError, cli, coco
from onnx import TensorProto, helper, numpy_helper


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Detector(path)
    text = str(caught.value)
    assert path.name in text and "\n" not in text and len(text) < 1000
    return text


@pytest.fixture
def with_metadata(make_model) -> Callable[..., Path]:
    """A model with these texts as metadata, json or not."""

    def make(**texts: str) -> Path:
        path = make_model()
        model = onnx.load(str(path))
        known = {entry.key: entry.value for entry in model.metadata_props}
        helper.set_model_props(model, {**known, **texts})
        onnx.save(model, str(path))
        return path

    return make


BAD_VALUES = [
    *[
        ("onenet_format", v)
        for v in ("", "0", "-1", "1.0", "true", '"1"', "[" * 100_000, "9" * 5000)
    ],
    *[("class_names", v) for v in ("null", "[]", '"cat"', "[1, 2]", "{}", '["cat"', "NaN")],
    *[
        ("category_ids", v)
        for v in ("[1]", "[1, true]", "[1, 2.5]", "17", '["1", "2"]', "[[], []]")
    ],
    *[("thresholds", v) for v in ("[0.5]", "[0.5, NaN]", "[0.5, 1e999]", "[-1, 0]", '"auto"')],
    *[("input_format", v) for v in ('"rgb"', "[]", "1", '"\\u0000"')],
    *[("min_size", v) for v in ("-1", "1e3", "1000000", "1" + "0" * 400, "null", "true", "{}")],
    *[("max_size", v) for v in ("0", "99999999999999999999", "NaN", '"64"')],
    *[("size_divisibility", v) for v in ("0", "-32", "65537", "[32]")],
    *[("max_detections", v) for v in ("0", "-1", "99999999999999999999")],
    *[("config_digest", v) for v in ("1", "null", "\0", "{")],
    *[("precision", v) for v in ("[]", "16")],
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_bad_metadata_is_refused(with_metadata, key: str, value: str) -> None:
    assert key in refusal(with_metadata(**{key: value}))


def test_missing_metadata_is_refused(make_model) -> None:
    for key in ("class_names", "input_format", "min_size", "max_size", "precision"):
        assert key in refusal(make_model(**{key: None}))
    assert "lacks the metadata" in refusal(make_model(onenet_format=None))


def test_large_numbers_that_are_right_are_taken(make_model, make_image) -> None:
    path = make_model(category_ids=[10**400, -1], max_size=sys.maxsize, max_detections=sys.maxsize)
    detector = Detector(path)
    assert detector.predictor.metadata.category_ids == (10**400, -1)
    assert len(detector(make_image()).scores) == 2


def _with_external_weights(path: Path, location: str) -> None:
    """Moves a model's constants into initializers, one of which lies in another file."""
    model = onnx.load(str(path))
    (constant,) = (n for n in model.graph.node if list(n.output) == ["parts"])
    tensor = TensorProto(name="parts", data_type=TensorProto.FLOAT, data_location=1)
    tensor.dims.extend(numpy_helper.to_array(constant.attribute[0].t).shape)
    for key, value in {"location": location, "offset": "0", "length": "96"}.items():
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    model.graph.node.remove(constant)
    path.write_bytes(model.SerializeToString())


def test_weights_outside_the_models_folder_are_not_read(make_model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.onnx"
    make_model().rename(path)
    weights = np.full(24, 0.25, np.float32).tobytes()
    whole = path.read_bytes()
    (tmp_path / "secret.bin").write_bytes(weights)
    (folder / "beside.bin").write_bytes(weights)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    _with_external_weights(path, "beside.bin")
    Detector(path)  # so the model is right but for the place
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "/dev/zero"):
        path.write_bytes(whole)
        _with_external_weights(path, location)
        refusal(path)


@pytest.mark.parametrize("output", ["boxes", "scores", "classes"])
@pytest.mark.parametrize("change", ["type", "rank", "rows"])
def test_other_outputs_are_refused(make_model, make_image, output: str, change: str) -> None:
    path = make_model()
    model = onnx.load(str(path))
    (info,) = (o for o in model.graph.output if o.name == output)
    (node,) = (n for n in model.graph.node if list(n.output) == [output])
    node.output[0] = "before"
    if change == "type":
        model.graph.node.append(
            helper.make_node("Cast", ["before"], [output], to=TensorProto.STRING)
        )
        info.type.tensor_type.elem_type = TensorProto.STRING
    else:
        op = "Squeeze" if change == "rank" else "Concat"
        inputs = ["before"] if change == "rank" else ["before", "before"]
        attributes = {} if change == "rank" else {"axis": 1}
        model.graph.node.append(helper.make_node(op, inputs, [output], **attributes))
        info.type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="of another type or shape"):
        Detector(path)(make_image())


NAMES = ["evil\x1b]0;title\x07\x1b[2J\n\r\u202ename\ud800", "ü 日本"]


def test_names_cannot_steer_the_terminal(make_model, tmp_path: Path, make_image, capsys) -> None:
    """Nor end the run: names that are no UTF-8, lone surrogates to Python, cannot be printed."""
    model = make_model(class_names=NAMES)
    assert Detector(model).predictor.metadata.class_names == tuple(NAMES)
    image = tmp_path / os.fsdecode(b"\xff\x1b[31m\n.png")
    image.write_bytes(cv2.imencode(".png", make_image())[1].tobytes())
    broken = tmp_path / "\x1b[31m.jpg"
    broken.write_bytes(b"no image")
    results = tmp_path / "results.json"
    words = [model, image, broken, "--json", results, "--output", tmp_path / "drawn"]
    assert cli.main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert (
        "ü 日本" in captured.out
        and r"evil\x1b]0;title\x07\x1b[2J\n\r\u202ename\ud800" in captured.out
    )
    assert r"\x1b[31m.jpg is not an image" in captured.err
    assert captured.out.count("\n") == 2 and captured.err.count("\n") == 2
    assert len(json.loads(results.read_text())) == 3
    assert cli.main([str(broken), str(image)]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"images": [' + "9" * 10_000 + "]}",
        '{"images": [{"file_name": "a", "id": 1}], "categories": [{"id": 1e999, "name": "a"}]}',
        '{"images": 3}',
        "[]",
        b"\xff\xfe",
        None,
    ],
    ids=["deep", "digits", "infinite", "number", "list", "no text", "large"],
)
def test_bad_annotations_are_refused(
    make_model, make_image, tmp_path: Path, monkeypatch, capsys, content: Any
) -> None:
    monkeypatch.setattr(coco, "_MAX_BYTES", 2**20)
    annotations, image = tmp_path / "annotations.json", tmp_path / "a.png"
    cv2.imwrite(str(image), make_image())
    if content is None:
        annotations.write_bytes(b" " * 2**20 + b"{}")
    else:
        annotations.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [make_model(), image, "--json", tmp_path / "out.json", "--annotations", annotations]
    assert cli.main([str(word) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "annotations.json" in err and err.count("\n") == 1
    assert ("is larger than" if content is None else "is not in COCO's format") in err


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_small_annotations_take_little_memory(tmp_path: Path, runtime_folder: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text('{"images": [{"file_name": "a.png", "id": 3}]}')
    code = f"""
import resource
from pathlib import Path
from onenet_runtime.coco import Annotations
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**26
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(Annotations.read(Path({str(path)!r})).image_ids)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(runtime_folder)},
    )
    assert done.stdout == "{'a.png': 3}\n", done.stderr


def test_annotations_that_are_too_large_are_told_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    with path.open("wb") as file:
        file.truncate(2**33 + 1)  # takes no room on the disk
    with pytest.raises(coco.AnnotationsError, match=r"annotations\.json is larger .*leave out"):
        coco.Annotations.read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_png_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, runtime_folder: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    side = 13_600  # 555 MB in three channels
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes((side // 8 + 1) * side), 9))
        + chunk(b"IEND", b"")
    )
    code = (
        "import onenet_runtime\n"
        "def peak():  # of this process alone; ru_maxrss remembers the parent's\n"
        "    (line,) = [x for x in open('/proc/self/status') if x.startswith('VmHWM')]\n"
        "    return int(line.split()[1]) // 1024\n"
        "before = peak()\n"
        f"try: onenet_runtime.read_image({str(path)!r})\n"
        "except onenet_runtime.ImageError as error: print(error)\n"
        "print(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(runtime_folder)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    line, megabytes = done.stdout.splitlines()
    assert "bomb.png has more pixels" in line and int(megabytes) < 200


def test_a_video_whose_name_is_no_utf8(make_model, make_image, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.avi")
    writer = cv2.VideoWriter(
        str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (60, 40)
    )
    writer.write(make_image())
    writer.release()
    (tmp_path / "a.avi").rename(path)
    folder = tmp_path / os.fsdecode(b"drawn\xff")
    assert cli.main([str(make_model()), str(path), "--output", str(folder)]) == 0
    assert [x.name for x in folder.iterdir()] == [os.fsdecode(b"\xff.mp4")]
