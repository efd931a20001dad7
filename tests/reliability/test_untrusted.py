"""Files of others are refused or bounded, in one sentence with the file's name; none runs code.

What the runtime does with such files is tested in tests/runtime/test_runtime_untrusted.py.
"""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

from onenet.checkpoint import OneNetCheckpointer, load_weights, unpickler
from onenet.comparison import find_plan
from onenet.comparison.pictures import draw_detections
from onenet.comparison.results import _read_json as read_evaluation
from onenet.data.bccd import load_voc_boxes
from onenet.data.coco_json import register_coco_json
from onenet.data.crowdhuman import convert_odgt
from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine import load_config
from onenet.evaluation.thresholds import read_thresholds
from onenet.predictor import Predictor, load_predictor_config
from onenet.utils.errors import ConfigError, DataError, exit_with_one_sentence
from onenet.utils.files import MAX_JSON_BYTES, read_json, read_yaml

DIGITS = "configs/digits/onenet_point_R18.yaml"
DEPTH = 100_000


def sentence(function: Callable[..., object], *args: object) -> str:
    """What a refusal says."""
    with pytest.raises((ConfigError, DataError)) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


def load_script(path: Path) -> Callable[..., None]:
    """A script's ``main``."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


# Yaml

EVIL_YAML = [
    "MODEL: !!python/object/apply:builtins.open ['{trace}', 'w']",
    "MODEL: !!python/object/new:builtins.open ['{trace}', 'w']",
    "MODEL: !!python/name:os.system",
    "MODEL: !!python/module:antigravity",
    "? !!python/object/apply:builtins.open ['{trace}', 'w']\n: 1",
    "title: !!python/object/apply:subprocess.check_call [[touch, '{trace}']]",
]
LAUGHS = "a0: &a0 [1, 2]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
DICT_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 12)
)
HEAVY_YAML = {
    "laughs": (LAUGHS, "has aliases that stand for more than 100,000 values"),
    "dict laughs": (DICT_LAUGHS, "has aliases that stand for more than 100,000 values"),
    "endless": ("a: &a [*a]\n", "or for themselves"),
    "deep": ("a: " + "[" * 10_000, "is nested too deeply"),
    "deep block": ("\n".join(" " * i + "a:" for i in range(1000)), "is nested too deeply"),
    "huge": ("a: " + "x" * 2**20, "is larger than 1,048,576 bytes"),
    "date": ("a: 2000-13-45", "is no plain yaml"),
    "bool": ("a: !!bool maybe", "is no plain yaml"),
    "binary": (b"a: \xff\xfe", "is no plain yaml"),
}


def read_plan(path: str) -> None:
    find_plan([path])


@pytest.mark.parametrize("read", [load_config, read_plan, load_predictor_config])
@pytest.mark.parametrize("text", EVIL_YAML)
def test_yaml_makes_no_python_objects(tmp_path: Path, read, text: str) -> None:
    path, trace = tmp_path / "evil.yaml", tmp_path / "was_here"
    path.write_text(text.format(trace=trace))
    assert "evil.yaml is no plain yaml" in sentence(read, str(path))
    assert not trace.exists()


def test_a_base_makes_no_python_objects(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(EVIL_YAML[0].format(trace=tmp_path / "was_here"))
    path = tmp_path / "config.yaml"
    for base in ("base.yaml", f"[{tmp_path}/base.yaml]"):
        path.write_text(f"_BASE_: {base}\n")
        assert "base.yaml is no plain yaml" in sentence(load_config, str(path))
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("read", [load_config, read_plan])
@pytest.mark.parametrize("name", HEAVY_YAML)
def test_heavy_yaml_is_refused(tmp_path: Path, read, name: str) -> None:
    path, (text, reason) = tmp_path / "heavy.yaml", HEAVY_YAML[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = sentence(read, str(path))
    assert "heavy.yaml" in found and reason in found


def test_modest_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "aliases.yaml"
    path.write_text("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    one = {"x": 1}
    assert read_yaml(path) == {"a": one, "b": [one, one], "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("base", ["a.yaml", "./a.yaml", "[a.yaml, a.yaml]"])
def test_a_base_that_leads_back_is_refused(tmp_path: Path, base: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"_BASE_: {base}\n")
    assert "does one lead back to itself?" in sentence(load_config, str(path))


@pytest.mark.parametrize("value", ["1+" * 100_000 + "1j", "-" * 100_000 + "1", "(" * 10_000])
def test_deep_values_are_refused(tmp_path: Path, value: str, repo_root: Path) -> None:
    opts = ["INPUT.MIN_SIZE_TEST", value]
    with pytest.raises(ConfigError, match="Override on the command line"):
        load_config(str(repo_root / DIGITS), opts)
    path = tmp_path / "config.yaml"
    path.write_text(f"INPUT: {{MIN_SIZE_TEST: '{value}'}}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is no valid config"):
        load_config(str(path))


# Checkpoints


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def _evil_pickles(trace: Path) -> dict[str, bytes]:
    payload = Payload(trace)
    tensors = io.BytesIO()
    torch.save({"model": {"a": payload}}, tensors)
    legacy = io.BytesIO()
    torch.save({"model": payload}, legacy, _use_new_zipfile_serialization=False)
    array = np.empty(1, object)
    array[0] = payload
    return {
        "pickle": pickle.dumps({"model": {"a": payload}, "__author__": "me"}),
        "old pickle": pickle.dumps({"a": payload}, protocol=0),
        "blobs": pickle.dumps({"blobs": {"a": np.zeros(1), "b": payload}}),
        "in an array": pickle.dumps({"model": {"a": array}, "__author__": "me"}),
        "torch": tensors.getvalue(),
        "old torch": legacy.getvalue(),
        "eval": b"cbuiltins\neval\n(S'open(\"" + str(trace).encode() + b'", "w")\'\ntR.',
        "by getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        "in numpy": b"cnumpy\nload\n(S'" + str(trace).encode() + b"'\ntR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        "codec": b"c_codecs\nencode\n(S'aaaa'\nS'zlib'\ntR.",
    }


@pytest.fixture(scope="module")
def model(repo_root: Path) -> torch.nn.Module:
    return build_model(load_config(str(repo_root / DIGITS), ["MODEL.DEVICE", "cpu"]))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ""])
@pytest.mark.parametrize("kind", list(_evil_pickles(Path())))
def test_checkpoints_run_no_code(tmp_path: Path, model, kind: str, suffix: str) -> None:
    trace = tmp_path / "was_here"
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(_evil_pickles(trace)[kind])
    assert path.name in sentence(load_weights, model, str(path))
    assert path.name in sentence(OneNetCheckpointer(model).load, str(path))
    if suffix == ".pkl":
        text = sentence(unpickler.read_pickled_checkpoint, str(path))
        assert path.name in text and ("asks for" in text or "torch" in kind)
    assert not trace.exists()


def test_a_key_whose_hash_would_take_ages_is_refused(tmp_path: Path) -> None:
    deep = ()
    for _ in range(200):
        deep = (deep, deep)
    path = tmp_path / "a.pkl"
    for protocol in (1, 2):
        # To make such a dict here would hash the key: an empty one, the key, 1, SETITEM
        body = pickle.dumps(deep, protocol=protocol)[:-1]
        path.write_bytes(b"}" + body.removeprefix(b"\x80\x02") + b"K\x01s.")
        assert "tuples in tuples" in sentence(unpickler.read_pickled_checkpoint, str(path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["detectron2", "caffe2", "classifier"])
def test_pickled_arrays_are_read(tmp_path: Path, protocol: int, form: str) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.zeros((0, 2), np.int64),
    }
    scalar = np.float32(3)  # beside the weights
    content = {
        "detectron2": {"model": arrays, "__author__": "me", "scale": scalar},
        "caffe2": {"blobs": {**arrays, "a_momentum": arrays["a"]}, "scale": scalar},
        "classifier": {**arrays, "b_momentum": arrays["b"]},
    }[form]
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    checkpoint = unpickler.read_pickled_checkpoint(str(path))
    assert checkpoint["model"].keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint["model"][name], array)
    assert checkpoint.get("matching_heuristics", False) == (form != "detectron2")


def _run(code: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own, which may crash."""
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode >= 0, done
    return done


def _int(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _dtype(code: str, order: str = "<", fields: bytes = b"NN", tail: bytes | None = None) -> bytes:
    """A dtype with a made-up state."""
    tail = _int(8) + _int(1) + _int(0) if tail is None else tail
    dtype = b"cnumpy\ndtype\n(" + _text(code) + b"K\x00K\x01tR"
    return dtype + b"(K\x03" + _text(order) + b"N" + fields + tail + b"tb"


def _array(dtype: bytes, shape: bytes = b"K\x01\x85", raw: bytes = b"C\x08" + b"A" * 8) -> bytes:
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
    return head + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"


# An object at the place 0, where the bytes of the array are the address of that object
_OBJECT = b"cnumpy\ndtype\n(" + _text("O8") + b"K\x00K\x01tR"
_FIELDS = b"(" + _text("a") + b"t}" + _text("a") + b"(" + _OBJECT + b"K\x00ts"
_F8 = _dtype("f8", tail=_int(-1) + _int(-1) + _int(0))
EVIL_ARRAYS = {
    "top": b"cnumpy.core.multiarray\nscalar\n("
    + _dtype("V8", "|", _FIELDS)
    + b"C\x08"
    + b"A" * 8
    + b"tR",
    "array of fields": _array(_dtype("V8", "|", _FIELDS)),
    "f8fields": b"}" + _text("a") + _array(_dtype("f8", "<", _FIELDS)) + b"s",
    "f8flags": b"}" + _text("a") + _array(_dtype("f8", tail=_int(8) + _int(1) + _int(63))) + b"s",
    "flags": b"}" + _text("a") + _array(_dtype("f8", tail=_int(-1) * 2 + _int(63))) + b"s",
    "fields": b"}" + _text("a") + _array(_dtype("f8", "<", _FIELDS.replace(_OBJECT, _F8))) + b"s",
    "objects": b"}" + _text("a") + _array(_OBJECT) + b"s",
    "large": b"}" + _text("a") + _array(_F8, _int(2**30) + b"\x85") + b"s",
    "product": b"}" + _text("a") + _array(_F8, (b"\x8a\x09" + bytes(8) + b"\1") + b"\x85") + b"s",
    "negative": b"}" + _text("a") + _array(_F8, _int(-1) * 2 + b"\x86") + b"s",
    "no array": b"}" + _text("a") + b"cnumpy\nndarray\n(K\x02K\x02\x86tRs",
    "other class": b"cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(K\0tNtR",
    "class": b"}" + _text("a") + b"cnumpy\nndarray\ns",
    "changed class": b"cnumpy\nndarray\nN}" + _text("_make") + b"K\x01s\x86b",
    "set": b"\x8f(" + _array(_F8) + b"\x90",
    "memo": b"Nr" + struct.pack("<I", 2**31 - 1),
    "bytearray": b"\x96" + struct.pack("<Q", 2**36),
    "shared": b"C"
    + b"\xff"
    + b"A" * 255
    + b"q\x000}("
    + b"".join(
        _text(f"{i}") + _array(_dtype("u1", "|", tail=_int(-1) * 2 + _int(0)), b"K\xff\x85", b"h\0")
        for i in range(1000)
    )
    + b"u",
    "itself": b"}q\0" + _text("a") + b"h\0s",
    "laughs": b"]q\0"
    + b"".join(b"](" + b"h%c" % i * 10 + b"eq%c" % (i + 1) for i in range(30))
    + b"cnumpy\ndtype\nh\x1e\x85R",
}


@pytest.mark.parametrize("name", EVIL_ARRAYS)
def test_made_up_arrays_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x03" + EVIL_ARRAYS[name] + b".")
    done = _run(f"""
import resource
from onenet.utils.errors import exit_with_one_sentence
from onenet.checkpoint.unpickler import read_pickled_checkpoint
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
with exit_with_one_sentence():
    print(read_pickled_checkpoint({str(path)!r}))
""")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and "evil.pkl" in done.stderr
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 1000
    # A length alone takes addresses, no memory
    assert "MemoryError" not in done.stderr or name == "bytearray"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_all_kinds_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    values = np.arange(24) - 3
    arrays = {
        code: values.astype(code).reshape(2, 3, 4)
        for code in "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 >f4 >i8".split()
    }
    arrays["permuted"] = values.reshape(2, 3, 4).transpose(1, 2, 0)
    arrays["strided"] = values[::2]
    arrays["number"] = np.array(3.0)
    arrays["none"] = np.zeros((0, 2**40), np.float32)
    path = tmp_path / "model.pkl"
    content = {"model": OrderedDict(arrays), "__author__": "me", "beside": [(np.int64(3),), b"x"]}
    path.write_bytes(pickle.dumps(content, protocol))
    checkpoint = unpickler.read_pickled_checkpoint(str(path))
    for name, array in arrays.items():
        found = checkpoint["model"][name]
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=") and found.flags.writeable
    assert checkpoint["beside"][0] == (3,)
    assert len(checkpoint["model"]) == len(arrays)


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Those of Caffe2's model zoo: strings are bytes, and NumPy's module is the old one."""
    header = b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n"
    header += b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    none = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN" + none * 2 + b"K\x00tb"
    values = np.array([1.5, -2.0], np.float32)
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + values.tobytes() + b"tb"
    path = tmp_path / "R-50.pkl"
    path.write_bytes(header + state + b"s.")
    checkpoint = unpickler.read_pickled_checkpoint(str(path))
    np.testing.assert_array_equal(checkpoint["model"]["a"], values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        pickle.dumps([]),
        pickle.dumps({}),
        pickle.dumps({"a": "text"}),
        pickle.dumps({"a": np.array(["text"])}),
        pickle.dumps({"model": 3, "__author__": "me"}),
        b"(" * 1000,
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62),  # bytes of that length
    ],
)
def test_pickles_of_other_things_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    assert "broken.pkl" in sentence(unpickler.read_pickled_checkpoint, str(path))


# Json

DEEP = "[" * DEPTH


def _voc_folder(folder: Path, xml: str) -> Path:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "all.txt").write_text("a")
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"")
    (folder / "Annotations" / "a.xml").write_text(xml)
    return folder


READERS = {
    "coco": lambda path: register_coco_json(str(path), str(path.parent)),
    "thresholds": lambda path: read_thresholds(str(path)),
    "end_to_end": read_evaluation,
    "results": lambda path: draw_detections([], "set", path.parent, "", 0.3, 0.5),
    "odgt": lambda path: convert_odgt(str(path), str(path.parent)),
}


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"images": ' + DEEP,
        '{"a":' * DEPTH,
        '{"classes": [' + "9" * 10_000 + "]}",
        "[1e999, NaN, -Infinity",
        b"\xff\xfe\x00",
        b"\0" * 100,
        "",
    ],
    ids=["list", "in images", "object", "digits", "cut off", "no text", "zeros", "empty"],
)
@pytest.mark.parametrize("reader", READERS)
def test_bad_json_is_refused(tmp_path: Path, reader: str, text: str | bytes) -> None:
    path = tmp_path / "coco_instances_results.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert path.name in sentence(READERS[reader], path)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "odgt"])
def test_large_json_is_refused(tmp_path: Path, monkeypatch, reader: str) -> None:
    monkeypatch.setattr(read_json, "__defaults__", (2**26,))
    path = tmp_path / "coco_instances_results.json"
    with path.open("wb") as file:
        file.truncate(2**26 + 1)  # takes no room on the disk
    assert "coco_instances_results.json is larger than 67,108,864 bytes" in sentence(
        READERS[reader], path
    )


def test_the_largest_json_is_above_objects365s() -> None:
    assert 3_500_000_000 < MAX_JSON_BYTES <= 2**33  # Objects365's has about 3 GB


def test_small_json_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text('{"a": 1}')
    code = f"""
import resource
from onenet.utils.files import read_json
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**26
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(read_json({str(path)!r}))
"""
    assert _run(code).stdout == "{'a': 1}\n"


def test_what_has_no_size_is_bounded() -> None:
    """A pipe, or a device that has no end."""
    text = sentence(read_json, "/dev/zero", 2**22)
    assert text.startswith("/dev/zero is larger than 4,194,304 bytes")


# XML

ENTITIES = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    "xml",
    [
        f'<!DOCTYPE a [<!ENTITY l0 "{"x" * 100}">{ENTITIES}]>'
        "<a><size><height>&l9;</height></size></a>",
        '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
        "<a><size><height>&f;</height></size></a>",
        "<a>" * DEPTH,
        '<?xml version="1.0" encoding="no-such"?><a/>',
        '<?xml version="1.0" encoding="utf-16"?><a/>',
        "<a><size><height>nan</height><width>1</width></size></a>",
        "<a><size><height>inf</height><width>1</width></size></a>",
    ],
    ids=["laughs", "file", "deep", "encoding", "utf-16", "nan", "inf"],
)
def test_bad_xml_is_refused(tmp_path: Path, xml: str) -> None:
    folder = _voc_folder(tmp_path / "set", xml)
    assert "a.xml" in sentence(load_voc_boxes, str(folder), "all", ["RBC"])


# Images


def png(width: int, height: int) -> bytes:
    """A black png of one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def bomb(tmp_path_factory) -> Path:
    """400 million pixels, 1.2 GB as RGB, in 50 kB."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    path.write_bytes(png(20_000, 20_000))
    assert path.stat().st_size < 100_000
    return path


def test_a_png_bomb_is_refused(bomb: Path, tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "fine.png").write_bytes(png(300, 200))
    assert read_image(str(tmp_path / "fine.png"), "RGB").shape == (200, 300, 3)
    cfg = load_predictor_config(str(repo_root / DIGITS), ["MODEL.DEVICE", "cpu"])
    record = {"file_name": str(bomb), "height": 20_000, "width": 20_000, "annotations": []}
    for is_train in (True, False):
        mapper = OneNetDatasetMapper(cfg, is_train=is_train)
        assert "bomb.png cannot be read (Image size" in sentence(mapper, record)
    # demo/app.py reads its uploads by this too
    text = sentence(Predictor.read, None, str(bomb))
    assert text.startswith("The image bomb.png cannot be read (Image size")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_in_a_pngs_text_is_bounded(tmp_path: Path, kind: bytes) -> None:
    """Read without its text, or refused: within Pillow's bound of 64 MB either way."""
    packed = zlib.compress(bytes(2**27), 9)
    data = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind] + packed
    whole = png(64, 64)
    chunk = struct.pack(">I", len(data)) + kind + data
    chunk += struct.pack(">I", zlib.crc32(kind + data))
    path = tmp_path / "text.png"
    path.write_bytes(whole[:33] + chunk + whole[33:])
    try:
        assert Predictor.read(None, str(path)).shape == (64, 64, 3)
    except DataError as error:
        assert "text.png cannot be read" in str(error)


# Commands


def test_commands_end_with_one_sentence(tmp_path: Path, repo_root: Path, model) -> None:
    trace = tmp_path / "was_here"
    train_net = load_script(repo_root / "train_net.py")
    for name, content in {
        "evil.yaml": EVIL_YAML[0].format(trace=trace).encode(),
        "laughs.yaml": LAUGHS.encode(),
        "deep.json": DEEP.encode(),
        "evil.pth": _evil_pickles(trace)["torch"],
        "evil.pkl": _evil_pickles(trace)["pickle"],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        config = str(path) if name.endswith(".yaml") else str(repo_root / DIGITS)
        opts = ["OUTPUT_DIR", str(tmp_path / "out"), "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
        opts += ["MODEL.ONENET.NUM_CLASSES", "10"]
        if name.endswith(".json"):
            opts += ["DATASETS.TRAIN_JSON", str(path), "DATASETS.TRAIN_IMAGE_ROOT", str(tmp_path)]
        elif not name.endswith(".yaml"):
            opts += ["MODEL.WEIGHTS", str(path)]
        words = ["--config-file", config, *opts]
        if name.startswith("evil.p"):
            small = tmp_path / "set.json"
            small.write_text(json.dumps(_one_image(tmp_path)))
            words += ["DATASETS.TRAIN_JSON", str(small), "DATASETS.TRAIN_IMAGE_ROOT", str(tmp_path)]
            words += ["MODEL.ONENET.NUM_CLASSES", "1", "DATALOADER.NUM_WORKERS", "0"]
        with pytest.raises(SystemExit) as caught:
            train_net(default_argument_parser().parse_args(words))
        # A text ends a program with 1
        assert isinstance(caught.value.code, str), caught.value.code
        assert caught.value.code.startswith("error: ") and name in caught.value.code
        assert "\n" not in caught.value.code
    assert not trace.exists()


def _one_image(folder: Path) -> dict:
    (folder / "a.png").write_bytes(png(64, 64))
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "a"}],
    }


def test_a_plan_ends_with_one_sentence(tmp_path: Path, repo_root: Path, monkeypatch) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(LAUGHS)
    monkeypatch.setattr("sys.argv", ["compare.py", "--plan", str(plan)])
    with pytest.raises(SystemExit) as caught:
        load_script(repo_root / "tools" / "compare.py")()
    assert str(caught.value.code).startswith("error: ") and "plan.yaml" in caught.value.code


def test_names_do_not_steer_the_terminal() -> None:
    with pytest.raises(SystemExit) as stop, exit_with_one_sentence():
        raise DataError("no such file \x1b[2J\udcff.jpg\nnor this")
    assert str(stop.value) == "error: no such file \\x1b[2J\\udcff.jpg\nnor this"
