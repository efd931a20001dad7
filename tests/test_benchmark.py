"""Benchmark: order, statistics, the stages, records, tables. No test asserts a time."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from PIL import Image

from common import (
    COMPLETE,
    EVERY_CANDIDATE,
    NETWORK,
    PARTS,
    RUNTIMES,
    TABLES,
    Detector,
    Key,
    Postprocess,
    Setting,
    Stopwatch,
    Subject,
    Times,
    build_detector,
    count_candidates,
    inference_rows,
    keys_of,
    load_batches,
    measure,
    peak_memory,
    prepare,
    quartiles,
    ratios,
    record,
    round_order,
    time_in_turn,
    time_parts,
)
from onenet.export import ExportableOneNet, Metadata, write_exported
from onenet.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs" / "digits"
ONENET, RECOMMENDED, ONENET_RETINANET, POINT, FCOS, RETINANET = (
    str(DIGITS / name)
    for name in (
        "onenet_fcos_R18_FPN.yaml",
        "recommended_R18_FPN.yaml",
        "onenet_retinanet_R18_FPN.yaml",
        "onenet_point_R18.yaml",
        "baseline_fcos_R18_FPN.yaml",
        "baseline_retinanet_R18_FPN.yaml",
    )
)
SIZE = (64, 96)


def shaken(config: str) -> Detector:
    """A detector whose random weights give scores that differ from place to place."""
    torch.manual_seed(0)
    detector = build_detector(Path(config).stem, config)
    with torch.no_grad():
        head = detector.model.head
        head.cls_score.weight.normal_(std=0.2)
        head.cls_score.bias.fill_(-2.0)
        if getattr(detector.model, "rescoring", None) is not None:
            detector.model.rescoring.weights.uniform_(0.01, 0.1)
    return detector


def images(batch: int = 2) -> torch.Tensor:
    return torch.randint(256, (batch, 3, *SIZE), dtype=torch.uint8)


def test_quartiles() -> None:
    found = quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found == {"lower": 2.0, "median": 3.0, "upper": 4.0}
    assert quartiles([7.0]) == {"lower": 7.0, "median": 7.0, "upper": 7.0}


def test_rounds_visit_all_in_changing_order() -> None:
    orders = [round_order("abcdef", i) for i in range(20)]
    assert all(sorted(order) == list("abcdef") for order in orders)
    assert len({tuple(order) for order in orders}) > 10
    assert orders == [round_order("abcdef", i) for i in range(20)]


class FakeMachine:
    """A clock that calls of fake subjects move; all is twice as slow from some call on."""

    def __init__(self) -> None:
        self.now, self.slowness, self.calls = 0.0, 1.0, []

    def subject(self, name: str, network: float, postprocess: float | None) -> Subject:
        def run_network(batch: int) -> str:
            self.calls.append((name, batch))
            self.now += self.slowness * network
            return name

        def run_postprocess(outputs: str) -> None:
            assert outputs == name
            self.now += self.slowness * postprocess

        def convert(batch: int) -> int:
            self.now += 100.0  # must not be in any time
            return batch

        return Subject(convert, run_network, None if postprocess is None else run_postprocess)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slowness = 2.0 if len(self.calls) >= 12 else 1.0


def test_measure_splits_the_stages_and_leaves_out_what_does_not_count() -> None:
    machine = FakeMachine()
    subjects = {
        "a": machine.subject("a", 0.003, 0.001),
        "b": machine.subject("b", 0.001, None),
    }
    times = measure(
        subjects,
        batches=[0, 1],
        rounds=4,
        warm_up=1,
        clock=lambda: machine.now,
        sleep=machine.sleep,
    )
    # 12 calls are 3 rounds of two subjects, each called untimed before: the warm-up and two more
    assert times["a"].network == pytest.approx([3.0, 3.0, 6.0, 6.0])
    assert times["a"].postprocessing == pytest.approx([1.0, 1.0, 2.0, 2.0])
    assert times["b"].total == times["b"].network == pytest.approx([1.0, 1.0, 2.0, 2.0])
    by_round = [set(machine.calls[i : i + 4]) for i in range(0, 20, 4)]
    assert by_round == [{("a", i % 2), ("b", i % 2)} for i in range(5)]


def test_ratios_are_those_of_the_rounds_in_the_same_runtime() -> None:
    fcos, one = Key("fcos", "eager", NETWORK), Key("one", "eager", NETWORK)
    other = Key("one", "openvino", COMPLETE)
    times = {
        fcos: Times(network=[1.0, 2.0, 4.0], total=[2.0, 4.0, 8.0]),
        one: Times(network=[3.0, 1.0, 2.0], total=[4.0, 2.0, 6.0]),
        other: Times(network=[1.0, 1.0, 1.0], total=[1.0, 1.0, 1.0]),
    }
    counts = {("fcos", NETWORK): [3, 1, 5]}
    setting = Setting(SIZE, batch=2, threads=1)
    rows = inference_rows(times, {}, [fcos, one, other], setting, "fcos", counts, ["one"])
    assert [row["detector"] for row in rows] == ["fcos", "one", "one"]
    assert [row["random_weights"] for row in rows] == [False, True, True]
    # The rounds' are 2, 0.5, 0.75; the quotient of the medians would be 1.
    assert rows[1]["ratio"] == pytest.approx({"lower": 0.625, "median": 0.75, "upper": 1.375})
    assert rows[0]["ratio"] == {"lower": 1.0, "median": 1.0, "upper": 1.0}
    assert rows[0]["boxes_into_nms"]["median"] == 3
    assert rows[1]["postprocessing"]["median"] == pytest.approx(1.0)
    assert "ratio" not in rows[2]  # FCOS was not timed in this runtime
    assert "network" not in rows[2]


def of(median: float) -> dict[str, float]:
    return {"lower": median / 2, "median": median, "upper": 2 * median}


def row_of(detector: str, runtime: str, graph: str, batch: int = 1, **more: object) -> dict:
    row = {"size": [64, 96], "batch": batch, "detector": detector, "runtime": runtime}
    row |= {"graph": graph, "random_weights": False, "failure": None, "total": of(20.0)}
    if graph != COMPLETE:
        row |= {"network": of(12.34), "postprocessing": of(0.5)}
    return row | more


def lines_of(kind: str, *runs: dict) -> list[list[str]]:
    """The cells of a table's rows."""
    rows = TABLES[kind]({"runs": runs}).splitlines()[2:]
    return [row.strip("| ").split(" | ") for row in rows]


def test_inference_table() -> None:
    rows = [
        row_of("one", "eager", NETWORK, ratio=of(0.5)),
        row_of("one", "onnxruntime", NETWORK),
        row_of("one", "onnxruntime", COMPLETE),
        row_of("one", "openvino", NETWORK),
        row_of("one", "openvino", COMPLETE, failure="failed: no | compiler"),
        row_of("fcos", "eager", NETWORK, boxes_into_nms=of(2326), random_weights=True),
        row_of("fcos", "eager", EVERY_CANDIDATE),
        row_of("one", "eager", NETWORK, batch=8, ratio=of(0.7), total=of(140.0)),
    ]
    run = {"benchmark": "inference", "rows": rows, "parts": []}
    images = "trained | 64 x 96 | 1 | "
    assert [" | ".join(cells) for cells in lines_of("inference", run, {"benchmark": "other"})] == [
        "one | trained | 64 x 96 | 1 / 8 | eager | 12.3 | 0.500 | 20.0 / 140"
        " | 0.50 (0.25 to 1.00) / 0.70 (0.35 to 1.40) | –",
        f"one | {images}onnxruntime | – | in the graph | 20.0 | – | –",
        f"one | {images}openvino | 12.3 | 0.500 | 20.0 | – | –",
        f"one | {images}openvino | failed: no \\| compiler | – | – | – | –",
        "fcos | random | 64 x 96 | 1 | eager | 12.3 | 0.500 | 20.0 | – | 2326",
        f"fcos, score threshold 0 | {images}eager | 12.3 | 0.500 | 20.0 | – | –",
    ]


def test_other_tables() -> None:
    parts = dict.fromkeys(PARTS, 2.0) | {"NMS": 0.0, "head": 123.4}
    part = {"size": [64, 96], "batch": 1, "detector": "one", "parts": parts}
    run = {"benchmark": "inference", "rows": [], "parts": [{**part, "top_k_share": of(0.02)}]}
    (cells,) = lines_of("parts", run)
    assert cells == ["one", "64 x 96", "1", *["2.00"] * 2, "123", "2.00", "2.00", "–", "2.00"] + [
        "2.00 (1.00 to 4.00)"
    ]
    times = {"plain": of(500.0), "onenet": of(50.0), "times_faster": of(9.96)}
    row = {"shape": [1, 22400, 80, 7], "what": "match", **times}
    run = {"benchmark": "assignment", "rows": [{**row, "plain_mib": 35.4, "onenet_mib": None}]}
    shape = "1 x 22,400 x 80 x 7"
    assert lines_of("assignment", run) == [[shape, "match", "500", "50.0", "10.0", "35", "–"]]
    row = {"config": "configs/a/b.yaml", "step": "16 x 128 pixels", "trivial": of(100.0)}
    run = {"benchmark": "training_step", "rows": [{**row, "onenet": of(102), "ratio": of(1.02)}]}
    (cells,) = lines_of("training_step", run)
    assert cells == ["b", "16 x 128 pixels", "100", "102", "1.020 (0.510 to 2.040)"]
    rows = [
        {"what": "plain", "milliseconds": of(484.0), "ratio": quartiles([1.0]), "mib": 121.4},
        {"what": "other", "milliseconds": of(0.33), "ratio": of(0.5)},
    ]
    found = lines_of("settings", {"benchmark": "settings", "title": "Step", "rows": rows})
    assert found[0] == ["Step", "plain", "484", "1.00", "121"]
    assert found[1][-4:] == ["other", "0.330", "0.50 (0.25 to 1.00)", "–"]


def test_table_of_exported_files() -> None:
    one, two = ({"file": f"{x}.onnx", "engine": "openvino", "size": 2**20} for x in "ab")
    first = {"pixels": "8x6", "threads": 1, "time": of(20.0), "ratio": quartiles([1.0])}
    second = {"pixels": "8x6", "threads": 2, "time": of(8.0), "ratio": of(0.4)}
    ap_rows = [{**one, "ap": {"val": 29.681}}, {**two, "failure": "no such size"}]
    aps = {"benchmark": "exported_files", "rows": ap_rows}
    rows = [{**one, **first}, {**one, **second}, {**two, **second, "failure": "no kernel"}]
    rows.append({**one, "engine": "wasm", "ap": {"val": 29.6}})
    lines = TABLES["exported_files"]({"runs": [aps, {**aps, "rows": rows}]}).splitlines()
    assert lines[0].endswith("| AP | 8x6, 1 thread | 8x6, 2 threads |")
    assert lines[2] == "| a.onnx | openvino | 1.0 | 29.68 | 1 (20.0 ms) | 0.40 (0.20 to 0.80) |"
    assert lines[3] == "| a.onnx | wasm | 1.0 | 29.60 | – | – |"
    assert lines[4] == "| b.onnx | openvino | 1.0 | no such size | – | no kernel |"


def test_runs_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "runs.json"

    def run(words: str, milliseconds: float) -> None:
        monkeypatch.setattr(sys, "argv", ["/some/where/scaling.py", *words.split()])
        row = {"what": "plain", "milliseconds": of(milliseconds), "ratio": quartiles([1.0])}
        record(file, "settings", [row], title="Step", rounds=3)

    run("step --json runs.json", 1.0)
    run("workers --json runs.json", 2.0)
    run("step --json runs.json", 3.0)  # again: in its place
    runs = json.loads(file.read_text())["runs"]
    assert [run["rows"][0]["milliseconds"]["median"] for run in runs] == [3.0, 2.0]
    assert runs[0]["command"] == "python benchmarks/scaling.py step --json runs.json"
    assert runs[0]["rounds"] == 3 and runs[0]["machine"]["torch"] == torch.__version__
    assert runs[0]["versions"]["python"] and runs[0]["commit"] and runs[0]["date"]
    assert "| Step | plain | 3.00 | 1.00 | – |" in capsys.readouterr().out

    for run in runs:
        run |= {"commit": "abc1234", "date": "2026-12-01 10:00 +0000"}
    runs[1]["command"] += " --set " + "x" * 70 + " " + "y" * 60
    text = TABLES["commands"]({"runs": runs})
    assert text.startswith(
        "```\npython benchmarks/scaling.py step\npython benchmarks/scaling.py workers --set "
        + "x" * 70
        + " \\\n    yyyy"
    )
    assert text.count("Commit abc1234, 2026-12-01; ") == 1


@pytest.mark.parametrize(
    "config", [ONENET, RECOMMENDED, ONENET_RETINANET, POINT, FCOS, RETINANET], ids=Path
)
def test_the_stages_are_the_model(config: str) -> None:
    detector, batch = shaken(config), images()
    with torch.inference_mode():
        expected = detector.model([{"image": image} for image in batch])
        found = Postprocess(detector.model, SIZE)(detector.network(batch))
        found = [detector_postprocess(image, *SIZE) for image in found]  # is not timed
    for ours, theirs in zip(found, expected, strict=True):
        theirs = theirs["instances"]
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert ours.pred_classes.equal(theirs.pred_classes)
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_candidates_are_counted() -> None:
    detector, batch = shaken(FCOS), images()
    used = count_candidates(detector, [batch])
    every = count_candidates(detector, [batch], every_candidate=True)
    # Levels of 16 x 24, 8 x 12, 4 x 6, 2 x 3 locations, 10 classes, at most 1,000 each
    assert every == [1000 + 960 + 240 + 60] * 2
    assert all(0 < a < b for a, b in zip(used, every, strict=True))
    assert detector.model.test_score_thresh == 0.05
    assert "_decode_multi_level_predictions" not in vars(detector.model)


def test_a_stopwatch_counts_no_time_twice() -> None:
    now = 0.0

    def work(seconds: float) -> float:
        nonlocal now
        now += seconds
        return seconds

    stopwatch = Stopwatch(clock=lambda: now)
    inner = stopwatch.watch("inner", work)
    outer = stopwatch.watch("outer", lambda: work(0.001) + inner(0.002) + inner(0.004) + work(0.01))
    broken = stopwatch.watch("broken", lambda: inner(0.1) / 0)
    whole = stopwatch.watch("whole", lambda: outer() + work(0.03))
    assert whole() == pytest.approx(0.047)
    assert stopwatch.parts == pytest.approx({"inner": 6.0, "outer": 11.0, "whole": 30.0})
    with pytest.raises(ZeroDivisionError):
        broken()
    assert stopwatch.parts["inner"] == pytest.approx(106.0)
    assert stopwatch.parts["broken"] == pytest.approx(0.0)


def test_parts_are_those_that_a_detector_has() -> None:
    models = {Path(x).stem: shaken(x).model for x in (ONENET, RECOMMENDED, FCOS, RETINANET)}
    before = {name: set(vars(model)) for name, model in models.items()}
    batches = [images(), images()]
    rounds = time_parts(models, batches, rounds=2, warm_up=1, pause=0.0)
    absent = {"onenet": {"rescoring", "NMS"}, "recommended": {"NMS"}, "baseline": {"rescoring"}}
    for name, times in rounds.items():
        assert len(times) == 2
        for parts in times:
            assert tuple(parts) == PARTS
            assert {x for x in PARTS if parts[x] == 0.0} == absent[name.split("_")[0]]
            assert min(parts.values()) >= 0.0
    assert {name: set(vars(model)) for name, model in models.items()} == before  # as it was


@pytest.mark.parametrize("config", [RECOMMENDED, FCOS], ids=Path)
def test_parts_come_in_their_order(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def watch(self: Stopwatch, name: str, function: Callable) -> Callable:
        return lambda *args: (called.append(name), function(*args))[1]

    monkeypatch.setattr(Stopwatch, "watch", watch)
    time_parts({"it": shaken(config).model}, [images()], rounds=1, warm_up=0, pause=0.0)
    whole_call = called[: len(called) // 2]
    assert called == 2 * whole_call
    of_two_images = {
        RECOMMENDED: ["top-k + decode", "rescoring"],  # the second inside the first
        FCOS: 2 * ["top-k + decode", "NMS"],
    }
    assert whole_call == ["rest", "preprocess", "backbone", "head", *of_two_images[config]]


def test_keys() -> None:
    detectors = [build_detector("one", ONENET), build_detector("fcos", FCOS)]
    keys = keys_of(detectors, ["eager", "openvino"], every_candidate=True)
    assert keys == [
        Key("one", "eager", NETWORK),
        Key("fcos", "eager", NETWORK),
        Key("fcos", "eager", EVERY_CANDIDATE),
        Key("one", "openvino", NETWORK),
        Key("one", "openvino", COMPLETE),
        Key("fcos", "openvino", NETWORK),
    ]


def test_a_runtime_that_is_missing_or_breaks_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\ncompiler")

    def wrong(module: torch.nn.Module, **kwargs: object) -> object:
        return lambda x: [y + 1 for y in module(x)]

    detectors, batch = [shaken(FCOS)], images(1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    arguments = (["eager", "compile", "onnxruntime"], Setting(SIZE, 1, 1), batch, tmp_path)
    name = detectors[0].name
    for compiler, reason in ((broken, "failed: no compiler"), (wrong, "off that of eager mode")):
        monkeypatch.setattr(torch, "compile", compiler)
        subjects, failures = prepare(detectors, *arguments)
        assert list(subjects) == [Key(name, "eager", NETWORK)]
        assert failures[Key(name, "onnxruntime", NETWORK)] == "not installed: onnxruntime"
        assert reason in failures[Key(name, "compile", NETWORK)]


@pytest.mark.slow
def test_compiled_and_exported_detectors_find_the_same(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    detectors, batch = [shaken(RECOMMENDED), shaken(FCOS)], images(1)
    setting = Setting(SIZE, batch=1, threads=1)
    subjects, failures = prepare(detectors, RUNTIMES, setting, batch, tmp_path)
    assert not failures
    assert list(subjects) == keys_of(detectors, RUNTIMES, every_candidate=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of unlike sizes."""
    path = tmp_path / "images"
    path.mkdir()
    for i in range(3):
        pixels = np.full((40 + i, 50, 3), 10 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def test_batches_are_the_images_in_turn(folder: Path) -> None:
    cfg = build_detector("fcos", FCOS).cfg
    batches = load_batches(cfg, str(folder), SIZE, batch=2, count=2)
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, *SIZE)] * 2
    values = [int(image.float().mean()) for batch in batches for image in batch]
    assert values == [0, 10, 20, 0]
    with pytest.raises(ConfigError, match="no folder"):
        load_batches(cfg, str(folder / "absent"), SIZE, batch=2)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/inference.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "benchmark_script", ROOT / "benchmarks" / "inference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_padding_is_measured_on_a_small_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and in batches: the same where all images have one size, other scores where not."""
    spec = importlib.util.spec_from_file_location("padding", ROOT / "benchmarks" / "padding.py")
    padding = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(padding)
    weights, file = tmp_path / "model.pth", tmp_path / "out.json"
    torch.save({"model": shaken(ONENET).model.state_dict()}, weights)
    for sizes in ([(64, 64)] * 3, [(64, 64), (40, 64), (64, 30)]):
        images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
        for image in images:
            pixels = np.random.default_rng(image["id"]).integers(0, 256, (*sizes[image["id"]], 3))
            image["file_name"] = f"{len(set(sizes))}_{image['id']}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / image["file_name"])
        boxes = [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400}
            for i in range(3)
        ]
        categories = [{"id": i, "name": str(i)} for i in range(10)]
        content = {"images": images, "categories": categories}
        content["annotations"] = [{**box, "iscrowd": 0} for box in boxes]
        path = tmp_path / f"set{len(set(sizes))}.json"
        path.write_text(json.dumps(content))
        words = ["--config", ONENET, "--weights", str(weights), "--json", str(file)]
        words += ["--set", "MODEL.DEVICE", "cpu", "DATASETS.TEST_JSON", str(path)]
        words += ["DATASETS.TEST_IMAGE_ROOT", str(tmp_path), "DATALOADER.NUM_WORKERS", "0"]
        monkeypatch.setattr(sys, "argv", ["benchmarks/padding.py", *words])
        padding.main()
    same, mixed = json.loads(file.read_text())["runs"]
    assert [row["batch"] for row in same["rows"]] == [1, 8]
    assert same["rows"][1]["change"]["max"] < 1e-5 < mixed["rows"][1]["change"]["mean"]
    rows = [
        {"batch": batch, "AP": 40.126, "AP50": 60.0, "change": {"mean": change, "max": 0.25}}
        for batch, change in ((1, 0.0), (8, 0.0314))
    ]
    lines = padding.table({"runs": [{"title": "Set", "rows": rows}]}).splitlines()[2:]
    assert lines[0].strip("| ").split(" | ") == ["Set", "1", "40.13", "60.00", "–", "–"]
    assert lines[1].endswith("| 8 | 40.13 | 60.00 | 0.031 | 0.250 |")


@pytest.fixture(scope="module")
def exported_files() -> ModuleType:
    """benchmarks/exported_files.py as a module."""
    spec = importlib.util.spec_from_file_location("timed", ROOT / "benchmarks/exported_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exported_files_are_timed(exported_files, tmp_path: Path, monkeypatch) -> None:
    """Files of the exporter's two inputs; the first one's ratio is 1."""
    helper = pytest.importorskip("onnx").helper
    uint8, int64 = 2, 7  # onnx.TensorProto's
    inputs = [
        helper.make_tensor_value_info("images", uint8, ["n", "h", "w", 3]),
        helper.make_tensor_value_info("image_sizes", int64, ["n", 2]),
    ]
    nodes = [
        helper.make_node("Identity", ["images"], ["pixels"]),
        helper.make_node("Identity", ["image_sizes"], ["sizes"]),
    ]
    outputs = [
        helper.make_tensor_value_info("pixels", uint8, ["n", "h", "w", 3]),
        helper.make_tensor_value_info("sizes", int64, ["n", 2]),
    ]
    graph = helper.make_graph(nodes, "copy", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(model.SerializeToString())
    paths = [str(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    words = [*paths, "--sizes", "8x6", "16x12", "--rounds", "3", "--json", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/exported_files.py", *words])
    exported_files.main()
    (run,) = json.loads((tmp_path / "out").read_text())["runs"]
    assert [(row["file"], row["pixels"]) for row in run["rows"]] == [
        (name, size) for size in ("8x6", "16x12") for name in ("a.onnx", "b.onnx")
    ]
    assert run["rows"][0]["ratio"] == {"lower": 1.0, "median": 1.0, "upper": 1.0}
    assert run["rows"][1]["ratio"]["median"] > 0
    (tmp_path / "b.onnx").write_text("text")
    exported_files.main()
    (run,) = json.loads((tmp_path / "out").read_text())["runs"]
    assert "b.onnx failed" in run["rows"][1]["failure"] and "time" in run["rows"][0]
    (tmp_path / "a.onnx").write_text("text")
    with pytest.raises(ConfigError, match="a.onnx cannot be run in onnxruntime"):
        exported_files.main()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "wasm"])
def test_exported_files_are_evaluated(
    exported_files, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two images whose objects are the model's own best detections."""
    ort_web = os.environ.get("ONENET_ORT_WEB")
    if engine == "wasm" and (ort_web is None or shutil.which("node") is None):
        pytest.skip("needs Node.js, and ONENET_ORT_WEB: node_modules/onnxruntime-web")
    pytest.importorskip("openvino" if engine == "openvino" else "onnxruntime")
    weights, file, out = (tmp_path / name for name in ("model.pth", "model.onnx", "out.json"))
    detector = shaken(POINT)
    images, boxes = [], []
    for i, pixels in enumerate(torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)):
        images.append({"id": i, "height": 96, "width": 96, "file_name": f"{i}.png"})
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
        with torch.no_grad():
            best = detector.model([{"image": pixels}])[0]["instances"][:1]
        x0, y0, x1, y1 = best.pred_boxes.tensor[0].tolist()
        box = {"id": i + 1, "image_id": i, "category_id": int(best.pred_classes), "iscrowd": 0}
        boxes.append({**box, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 400})
    categories = [{"id": i, "name": str(i)} for i in range(10)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "set.json").write_text(json.dumps(content))
    dataset = ("DATASETS.TEST_JSON", tmp_path / "set.json", "DATASETS.TEST_IMAGE_ROOT", tmp_path)
    torch.save({"model": detector.model.state_dict()}, weights)
    names = [str(i) for i in range(10)]
    metadata = Metadata.from_model(detector.cfg, detector.model, names, thresholds=None)
    write_exported(ExportableOneNet(detector.model), metadata, file)
    words = [file, "--evaluate", weights, "--config", POINT, "--json", out, "--set", *dataset]
    words += ["INPUT.MIN_SIZE_TEST", "0", "DATALOADER.NUM_WORKERS", "0", "--engines", engine]
    words += ["--ort-web", ort_web] if engine == "wasm" else []
    monkeypatch.setattr(sys, "argv", ["benchmarks/exported_files.py", *map(str, words)])
    exported_files.main()
    (run,) = json.loads(out.read_text())["runs"]
    assert [row["engine"] for row in run["rows"]] == ["checkpoint", engine]
    (expected, ap) = (row["ap"].popitem()[1] for row in run["rows"])
    assert expected > 50 and ap == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_many_files_are_timed(tmp_path: Path, folder: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(ROOT / "projects/OneNet/runtime")  # where it is not installed
    spec = importlib.util.spec_from_file_location("many", ROOT / "benchmarks/many_files.py")
    many_files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(many_files)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match="other has no image"):
        many_files.image_files([folder, other], 7)
    Image.new("RGB", (9, 9)).save(other / "a.png")
    names = [file.name for file in many_files.image_files([folder, other], 7)]
    assert names == ["0.png", "a.png", "1.png", "a.png", "2.png", "a.png", "0.png"]
    detector = shaken(POINT)
    metadata = Metadata.from_model(detector.cfg, detector.model, list("0123456789"), None)
    write_exported(ExportableOneNet(detector.model), metadata, tmp_path / "model.onnx")
    words = [tmp_path / "model.onnx", folder, "--count", "8", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/many_files.py", *map(str, words)])
    many_files.main()
    out = capsys.readouterr().out
    assert "| 8 images | plain loop | " in out and "detect_files, batch=4" in out


def start(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["benchmarks/inference.py", *words])
    monkeypatch.setattr(script.logging, "disable", lambda level: None)
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)


def test_a_run_in_eager_mode(
    script: ModuleType,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = tmp_path / "fcos.pth"
    torch.save({"model": shaken(FCOS).model.state_dict()}, weights)
    file = tmp_path / "out.json"
    start(
        *(script, monkeypatch, ONENET, FCOS, "--weights", f"{FCOS}={weights}"),
        *("--images", str(folder), "--sizes", "64x96", "--batch", "1", "2", "--rounds", "2"),
        *("--warm-up", "0", "--runtimes", "eager", "--json", str(file)),
    )
    (run,) = json.loads(file.read_text())["runs"]
    names = ["onenet_fcos_R18_FPN", "baseline_fcos_R18_FPN"]
    assert [(row["detector"], row["batch"], row["failure"]) for row in run["rows"]] == [
        (name, batch, None) for batch in (1, 2) for name in names
    ]
    assert all(row["size"] == [64, 96] and row["total"]["median"] > 0 for row in run["rows"])
    assert [row["random_weights"] for row in run["rows"]] == [True, False] * 2
    assert ["boxes_into_nms" in row for row in run["rows"]] == [False, True] * 2
    own = run["parts"][0]
    assert own["total"]["median"] == pytest.approx(sum(own["parts"].values()))  # of two rounds
    assert 0 < own["top_k_share"]["median"] < 1 and own["parts"]["NMS"] == 0.0
    printed = capsys.readouterr().out
    assert TABLES["inference"]({"runs": [run]}) in printed
    assert TABLES["parts"]({"runs": [run]}) in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "12x8x9"], "'12x8x9' is no size"),
        (["--sizes", "100"], "100x100 is no multiple of 32"),
        (["--weights", "other.yaml=x.pth"], "'other.yaml=x.pth' is not CONFIG=FILE"),
        (["--weights", f"{ONENET}=absent.pth"], "there is no file 'absent.pth'"),
        ([], "No FCOSBaseline is among the configs"),
        (["--half"], "--half needs --device cuda"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--batch", "1", "0"], "--batch is 0"),
    ],
)
def test_errors_name_the_cure(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        start(script, monkeypatch, ONENET, *words)
    assert message in str(error.value)


def test_ways_take_turns() -> None:
    now, called = [0.0], []

    def way(name: str, seconds: float):
        def call() -> None:
            called.append(name)
            now[0] += seconds

        return call

    ways = {"slow": way("slow", 0.3), "fast": way("fast", 0.1)}
    times = time_in_turn(ways, rounds=4, warm_up=1, clock=lambda: now[0])
    assert times == {"slow": pytest.approx([300] * 4), "fast": pytest.approx([100] * 4)}
    assert [sorted(called[i : i + 2]) for i in range(0, 10, 2)] == [["fast", "slow"]] * 5
    assert ratios(times["slow"], times["fast"])["median"] == pytest.approx(3)


def fill(mib: int):
    """For test_peak_memory; picklable."""
    return functools.partial(np.ones, mib * 2**17)


def refill(mib: int):
    """The same where as much was in use before, and is free again."""
    np.ones(mib * 2**17)
    return fill(mib)


def broken(mib: int):
    raise ValueError("no such problem")


def killed(mib: int):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # where the new process finds `fill`
    module = importlib.import_module("test_benchmark")
    assert peak_memory(module.fill, 200) == pytest.approx(200, abs=20)
    assert peak_memory(module.refill, 200) == pytest.approx(200, abs=20)
    with pytest.raises(RuntimeError, match="ValueError: no such problem"):
        peak_memory(module.broken, 200)
    with pytest.raises(RuntimeError, match="exit code -9"):
        peak_memory(module.killed, 200)


@pytest.mark.slow
def test_the_whole_suite_runs(tmp_path: Path, real_data: Path) -> None:
    command = [sys.executable, "benchmarks/run.py", "--quick", "--output", str(tmp_path)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(real_data)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    files = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert {name: len(file["runs"]) for name, file in files.items()} == {
        "benchmark_assignment": 1,
        "benchmark_inference_digits": 1,
        "benchmark_inference_r50": 1,
        "benchmark_settings": 4,
        "benchmark_training_step": 3,
    }
    for file in files.values():
        for run in file["runs"]:
            assert lines_of(run["benchmark"], run)
