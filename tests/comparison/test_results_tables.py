"""Tables of reports: by hand, and those that stand in docs/."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from onenet.utils.errors import ConfigError


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "results_tables.py"
    spec = importlib.util.spec_from_file_location("results_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values(mean: float, least: float | None = None, most: float | None = None) -> dict:
    return {"mean": mean, "min": mean if least is None else least, "max": most or mean}


def detector(name: str, has_nms: bool) -> dict:
    metrics = {
        "AP": values(12.34, 11.96, 12.71),
        "AP50": values(30.0),
        "NMS_gap": values(-0.04),
        "NMS_gap50": values(0.25, 0.1, 0.4),
    }
    group = {"num_objects": values(7.0), "AP": values(5.0), "recall": values(60.0)}
    found = {
        "name": name,
        "has_nms": has_nms,
        "settings": {"DATASETS.TEST": ["val"]},
        "aggregate": {"as_configured": metrics},
        "crowding": {"as_configured": {"over_0.5": group}},
        "progress": [{"iterations": 51, **metrics}, {"iterations": 101, **metrics}],
    }
    if has_nms:
        found["crowding"]["nms_off"] = {"over_0.5": group}
    return found


def test_tables_by_hand(tool: ModuleType, tmp_path: Path) -> None:
    ours, fcos = detector("recommended", False), detector("FCOS", True)
    (tmp_path / "a.json").write_text(json.dumps({"detectors": [ours, fcos]}))
    (tmp_path / "b.json").write_text(json.dumps({"detectors": [ours]}))
    names = {"overview": "a.json,b.json"}
    blocks = [
        f"<!-- table: {names.get(kind, 'a.json')} {kind} -->\nold\n<!-- end of table -->"
        for kind in ("overview", "crowding")
    ]
    found = tool.with_tables("\n".join(["# Title", *blocks, "The end."]), tmp_path)
    rows = [line for line in found.split("\n") if line.startswith("| ") and "---" not in line]
    ap = "12.3 (12.0 to 12.7) / 30.0"
    assert rows == [
        "| tested on | iterations | FCOS with NMS: AP / AP50 | recommended, no NMS: AP / AP50 |"
        " NMS gaps half way | NMS gaps at the end |",
        f"| val | 100 | {ap} | {ap} | +0.0 / +0.2 | +0.0 / +0.2 |",
        f"| val | 100 | – | {ap} | +0.0 / +0.2 | +0.0 / +0.2 |",
        "| AP / recall | NMS | IoU over 0.5, 7 objects |",
        "| recommended | none | 5.0 / 60.0 |",
        "| FCOS | with NMS | 5.0 / 60.0 |",
        "| FCOS | NMS off | 5.0 / 60.0 |",
    ]
    assert "old" not in found and found.startswith("# Title\n") and found.endswith("\nThe end.")
    assert tool.with_tables(found, tmp_path) == found


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("b.json overview", r"b\.json has no such results"),
        ("b.json overview,sum", "no table 'sum'; choose one"),
    ],
)
def test_what_is_no_table(tool: ModuleType, tmp_path: Path, block: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tool.with_tables(f"<!-- table: {block} -->\n<!-- end of table -->", tmp_path)


def test_several_tables_of_one_file(tool: ModuleType, tmp_path: Path) -> None:
    machine = {"cpu": "AMD EPYC", "cores": 2, "threads": 2, "gpu": None, "torch": "2.14.1"}
    one = {"lower": 1.0, "median": 1.0, "upper": 1.0}
    row = {"what": "plain", "milliseconds": {"median": 484.0}, "ratio": one}
    run = {"benchmark": "settings", "title": "Step", "rows": [row], "machine": machine}
    run |= {"command": "python a.py --json b.json", "commit": "abc", "date": "2026-12-01 10:00"}
    (tmp_path / "a.json").write_text(json.dumps({"runs": [run]}))
    block = "<!-- table: a.json settings,commands -->\n<!-- end of table -->"
    found = tool.with_tables(block, tmp_path)
    assert "| plain | 484 | 1.00 | – |\n\n```\npython a.py\n```\nCommit abc, 2026-12-01; " in found
    assert tool.with_tables(found, tmp_path) == found


def test_tables_in_docs_are_those_of_the_results(tool: ModuleType) -> None:
    root = Path(__file__).parents[2]
    used = set()
    for report in (root / "README.md", *(root / "docs").glob("*.md")):
        text = report.read_text(encoding="utf-8")
        assert tool.with_tables(text, report.parent) == text, f"tools/results_tables.py {report}"
        used |= {kind for _, _, kinds, _ in tool.BLOCK.findall(text) for kind in kinds.split(",")}
    # No table that no report has, but for that of a GPU, which none was at hand for
    assert used == set(tool.KINDS) - {"suite"}
