"""Numbers, tables, page and pictures, from finished runs made by hand."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image

from onenet import ConfigError
from onenet.comparison import ReportOptions, compare, find_plan
from onenet.comparison.differences import differences
from onenet.comparison.pictures import COLORS, DUPLICATE, OTHER, draw, pick_records
from onenet.comparison.plots import _lines, plot_ap, style
from onenet.comparison.results import aggregate, collect, mean_curve, read_progress
from onenet.comparison.runs import find_runs
from onenet.comparison.speed import WARM_UP, build, time_models

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def report(tmp_path: Path, folders: list[str], **words) -> tuple[Page, str, dict, list[str]]:
    out = tmp_path / "out"
    plan = find_plan(folders, output=str(out), title=words.pop("title", "A <b>&</b> B"))
    said: list[str] = []
    compare(
        plan,
        ["false"],
        command="compare <x>",
        options=words.pop("options", ReportOptions(speed_rounds=0)),
        say=said.append,
        **words,
    )
    return (
        Page((out / "comparison.html").read_text()),
        (out / "comparison.md").read_text(),
        json.loads((out / "comparison.json").read_text()),
        said,
    )


def test_aggregate_by_hand() -> None:
    assert aggregate([60.0, None, 66.0, math.nan]) == {
        "mean": 63.0,
        "min": 60.0,
        "max": 66.0,
        "sd": pytest.approx(math.sqrt(18)),
        "n": 2,
    }
    assert aggregate([4]) == {"mean": 4.0, "min": 4.0, "max": 4.0, "sd": None, "n": 1}
    assert aggregate([None, math.nan]) is None and aggregate([]) is None


def test_mean_curve_by_hand() -> None:
    seeds = [
        {"evaluations": {"as_configured": {"curves": {"recall": [1.0, None, None]}}}},
        {"evaluations": {"as_configured": {"curves": {"recall": [3.0, 5.0, None]}}}},
    ]
    curve = mean_curve({"seeds": seeds}, "as_configured", "recall")
    assert curve[:2] == [2.0, 5.0] and math.isnan(curve[2])
    assert mean_curve({"seeds": seeds}, "as_configured", "score") == []


def test_seeds_are_gathered(make_run, tmp_path: Path) -> None:
    (run,) = find_runs(find_plan([make_run("a", ap=60.0)], output=str(tmp_path)))
    (other,) = find_runs(find_plan([make_run("b", ap=66.0)], output=str(tmp_path)))
    from dataclasses import replace

    (detector,) = collect([run, replace(other, entry=run.entry, seed=2)])
    assert [seed["seed"] for seed in detector["seeds"]] == [1, 2]
    assert detector["aggregate"]["as_configured"]["AP"]["mean"] == 63.0
    assert detector["crowding"]["as_configured"]["over_0.5"]["AP"]["max"] == 66.0
    results = {"AP": 60.0, "AP50": 80.0, "NMS_gap": 1.0, "NMS_gap50": 0.0}
    assert read_progress(run) == {30: results}  # losses and the cut line are left out


def test_page_and_markdown(make_run, tmp_path: Path) -> None:
    folders = [make_run("one|net"), make_run("fcos", "fcos", ap=40.0)]
    page, text, content, _ = report(tmp_path, folders)
    row = (
        "| one\\|net | none | 50.0 | 50.0 | 90.0 | 51.0 | +1.0 | +0.0 | 3.00 | 2.00 | 0.00 | 0.50 |"
    )
    assert row in text
    assert "| fcos | with NMS | 40.0 |" in text and "| fcos | NMS off | 40.0 |" in text
    assert "over 0.5: 5 objects" in text and "Not equal" not in text
    assert content["detectors"][0]["aggregate"]["as_configured"]["AP"]["mean"] == 50.0
    assert len(content["detectors"][0]["seeds"][0]["evaluations"]["as_configured"]["curves"]) == 6

    html = (tmp_path / "out" / "comparison.html").read_text()
    ids = Counter(page.values("id"))
    assert ids and max(ids.values()) == 1
    # Nothing is fetched: the rest are names of SVG's and XLink's namespaces
    for _, name, value in page.attributes:
        assert not value.startswith(("http", "//")) or name.startswith("xmlns"), (name, value)
    assert "@import" not in html and "<script" not in html
    assert all(v.startswith(("#", "data:")) for v in page.values("href") + page.values("src"))
    for reference in page.values("xlink:href"):
        assert reference[1:] in ids
    assert "A <b>&</b> B" in page.text and "compare <x>" in page.text
    assert ("meta", "name", "viewport") in page.attributes
    assert page.values("aria-label") == [
        "AP without and with NMS",
        "Duplicates against the score threshold",
        "Precision and recall at IoU 0.5",
    ]
    assert "-0.0" not in page.text.replace("+0.0", "")


def test_what_users_write_is_escaped(make_run, tmp_path: Path) -> None:
    name, title = "a<i>&\"b'", "</title><script>alert(1)</script>"
    page, text, _, _ = report(tmp_path, [make_run(name)], title=title)
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script" not in html and "<i>" not in html and "<script" not in text
    assert title in page.text and name in page.text
    assert f"Image 1, {name}: 1 found, 1 duplicate, 1 other" in page.values("alt")


def test_a_dataset_name_of_an_evaluation_is_escaped(make_run, tmp_path: Path) -> None:
    folder = make_run("a")
    path = Path(folder) / "inference" / "end_to_end.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "dataset": "<script>x</script>"}))
    report(tmp_path, [folder])
    assert "<script" not in (tmp_path / "out" / "comparison.html").read_text()


def test_pictures_show_duplicates(make_run, tmp_path: Path) -> None:
    folders = [make_run("onenet"), make_run("fcos", "fcos")]
    page, _, _, _ = report(tmp_path, folders, options=ReportOptions(images=2, speed_rounds=0))
    words = page.values("alt")
    # Of image 4, which has most objects: truth, OneNet, FCOS with and without NMS
    assert words[:4] == [
        "Image 1, ground truth: 4 ground truth",
        "Image 1, onenet: 1 found, 1 duplicate, 1 other",
        "Image 1, fcos, with NMS: 1 found, 1 duplicate, 1 other",
        "Image 1, fcos, NMS off: 1 found, 1 duplicate, 1 other",
    ]
    assert words[5] == "Image 2, onenet: 0 found, 0 duplicate, 0 other" and len(words) == 8


def test_a_duplicate_is_red_and_thick(make_run, tmp_path: Path) -> None:
    (run,) = find_runs(find_plan([make_run("a")], output=str(tmp_path)))
    (record,) = pick_records(run.cfg.DATASETS.TEST[0], 1)
    assert record["image_id"] == 4
    boxes = np.array([[4.0, 4, 60, 60]])
    widths = {}
    for kind in (DUPLICATE, OTHER):
        picture = draw(record, "a", boxes, [kind], [kind])
        pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB")).astype(int)
        near = np.abs(pixels - COLORS[kind][0]).max(axis=2) < 60
        widths[kind] = near[180, :100].sum()  # across the left side of the box
    assert widths[DUPLICATE] >= 4 and 1 <= widths[OTHER] <= 3


def test_unequal_settings_are_told(make_run, tmp_path: Path) -> None:
    folders = [make_run("a"), make_run("b", opts=("SOLVER.MAX_ITER", "9"))]
    page, text, content, _ = report(tmp_path, folders)
    assert content["not_equal"] == ["iterations: 2700 for a; 9 for b."]
    assert "**Not equal:** iterations" in text and "Not equal:" in page.text


def test_all_that_matters_is_compared(make_run, tmp_path: Path) -> None:
    changes = (
        *("TEST.END_TO_END.NMS_THRESH", "0.7", "TEST.END_TO_END.IOU_THRESH", "0.4"),
        *("SOLVER.WEIGHT_DECAY", "0.05", "INPUT.RANDOM_FLIP", "horizontal"),
        *("SOLVER.CHECKPOINT_PERIOD", "7"),
    )
    page, text, content, _ = report(tmp_path, [make_run("a"), make_run("b", opts=changes)])
    assert content["not_equal"] == [
        "IoU of the NMS put behind: 0.6 for a; 0.7 for b.",
        "IoU of duplicates: 0.5 for a; 0.4 for b.",
        "INPUT.RANDOM_FLIP: none for a; horizontal for b.",
        "SOLVER.WEIGHT_DECAY: 0.0001 for a; 0.05 for b.",
    ]
    assert "at IoU 0.6 or 0.7 (they differ: see “Not equal”)" in text


def test_many_differences_stay_readable() -> None:
    detectors = [
        {"name": name, "seeds": [], "settings": {f"SOLVER.K{i:02}": name for i in range(13)}}
        for name in "ab"
    ]
    *sentences, last = differences(detectors)
    assert len(sentences) == 10 and sentences[0] == "SOLVER.K00: a for a; b for b."
    assert last == "Also different: SOLVER.K10, SOLVER.K11, SOLVER.K12."
    several = [
        {"name": name, "seeds": [], "settings": {"SOLVER.MAX_ITER": 9 if name == "c" else 8}}
        for name in "abcdefg"
    ]
    assert differences(several) == ["iterations: 9 for c; 8 for the 6 others."]


@pytest.mark.parametrize(
    ("of_a", "of_b", "sentence"),
    [
        (["12"], ["12"], None),
        (["12"], ["34"], "12 for a; 34 for b."),
        (["12", "34"], ["12", "34"], "12, 34 for a, b."),
    ],
)
def test_results_on_changed_annotations_are_not_equal(of_a, of_b, sentence) -> None:
    """The dataset's name stays, and each seed was evaluated at its time."""
    detectors = [
        {
            "name": name,
            "seeds": [{"evaluations": {"as_configured": {"annotations": h}}} for h in hashes],
            "settings": {},
        }
        for name, hashes in (("a", of_a), ("b", of_b))
    ]
    expected = [f"hash of the test annotations: {sentence}"] if sentence else []
    assert differences(detectors) == expected


def test_plots_have_one_style() -> None:
    styles = [tuple(style(i).values()) for i in range(28)]
    assert len(set(styles)) == 28
    # The first has a result as configured only
    result = {"AP": {"mean": 40.0, "max": 40.0}}
    nms = {"has_nms": True, "seeds": []}
    detectors = [
        {"name": "a", **nms, "aggregate": {"as_configured": result}},
        {"name": "b", **nms, "aggregate": {"as_configured": result, "nms_off": result}},
    ]
    ap = plot_ap(detectors)
    assert ">without NMS<" in ap and ">with NMS<" in ap
    assert style(0)["color"].lower() in ap and style(1)["color"].lower() in ap
    looks = [look for *_, look in _lines(detectors)]
    assert looks[:2] == [style(0), style(1)]
    assert looks[2]["color"] == looks[1]["color"] and looks[2]["linestyle"] not in (
        style(i)["linestyle"] for i in range(28)
    )


def test_speed_refuses_weights_that_do_not_fit(make_run, tmp_path: Path) -> None:
    (run,) = find_runs(find_plan([make_run("fcos", "fcos")], output=str(tmp_path)))
    model = build_model(run.cfg)
    DetectionCheckpointer(model, str(run.weights.parent)).save("model_final")
    assert not build(run).training
    torch.save({"model": dict(list(model.state_dict().items())[1:])}, run.weights)
    with pytest.raises(ConfigError, match="it lacks"):
        build(run)


def test_what_is_missing_is_a_dash(make_run, tmp_path: Path) -> None:
    folders = [make_run("a", ap=None), make_run("b")]
    (Path(folders[1]) / "metrics.json").unlink()
    (Path(folders[1]) / "inference" / "end_to_end.json").write_text("{}")
    (Path(folders[1]) / "inference" / "coco_instances_results.json").unlink()
    page, text, _, _ = report(tmp_path, folders)
    assert "| a | none | – | – | 90.0 | – | – | – | 3.00 | 2.00 | 0.00 | – |" in text
    assert "| b | none | – | – | – | – | – | – | – | – | – |" in text
    assert "Without pictures" in page.text and "nan" not in page.text.lower()


def test_images_that_are_gone(make_run, tmp_path: Path) -> None:
    from detectron2.data import DatasetCatalog

    folder = make_run("a")
    plan = find_plan([folder], output=str(tmp_path / "out"))
    name = find_runs(plan)[0].cfg.DATASETS.TEST[0]
    assert name in DatasetCatalog
    path = Path(folder) / "inference" / "end_to_end.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "unknown"}))
    page, _, content, _ = report(tmp_path, [folder])
    assert "No pictures" in page.text and content["speed"] == []


def test_a_second_start_does_nothing(make_run, tmp_path: Path) -> None:
    folders = [make_run("a")]
    report(tmp_path, folders)
    page = tmp_path / "out" / "comparison.html"
    first = page.stat().st_mtime_ns
    *_, said = report(tmp_path, folders)
    assert "Nothing to do" in said[-1] and page.stat().st_mtime_ns == first
    report(tmp_path, folders, write_anew=True)
    second = page.stat().st_mtime_ns
    assert second > first
    report(tmp_path, folders, title="Other")
    assert page.stat().st_mtime_ns > second
    with pytest.raises(ConfigError, match="delete it"):
        (Path(folders[0]) / "inference" / "end_to_end.json").write_text("{")
        report(tmp_path, folders)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError):
        ReportOptions(images=-1)
    with pytest.raises(ConfigError):
        ReportOptions(min_score=2.0)


def test_models_take_turns() -> None:
    order: list[tuple[str, int]] = []
    models = [lambda x, name=name: order.append((name, x[0])) for name in "ab"]
    seconds = time_models(models, [[0, 1], [0, 1]], rounds=4)
    assert [len(times) for times in seconds] == [4, 4]
    assert len(order) == 2 * (WARM_UP + 4)
    assert order[:4] == [("a", 1), ("b", 1), ("a", 0), ("b", 0)]
