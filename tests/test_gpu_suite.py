"""benchmarks/gpu_suite.py: order, limits, resumption; and a dry run on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpu_suite
from gpu_suite import DONE, FAILED, TIMED_OUT, Part, next_part, run_suite, state
from onenet.comparison.tables import DASH


def python(name: str, code: str, limit: float = 60, data: tuple[str, ...] = ()) -> Part:
    return Part(name, ["-c", code], limit, data)


def test_parts_end_as_they_do_and_what_is_done_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, mended = tmp_path / "ran", tmp_path / "mended"
    note = f"open({str(ran)!r}, 'a').write"
    parts = [
        python("good", f"{note}('g'); print('fine')"),
        python(
            "bad", f"{note}('b'); import os, sys; sys.exit(not os.path.exists({str(mended)!r}))"
        ),
        python("endless", f"{note}('e'); import time; time.sleep(600)", limit=1),
        python("no_data", f"{note}('n')", data=("absent",)),
        python("last", f"{note}('l')"),
    ]
    monkeypatch.setattr(gpu_suite, "suite", lambda *_: parts)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert run_suite(tmp_path / "out", 5, False) == 3
    assert ran.read_text() == "gbel"
    found = {part.name: state(tmp_path / "out", part) for part in parts}
    ends = [found[name].get("status") for name in ("good", "bad", "endless", "no_data", "last")]
    assert ends == [DONE, FAILED, TIMED_OUT, None, DONE]
    assert found["good"]["output"] == ["fine"] and found["good"]["machine"]["torch"]
    assert f"left out: {tmp_path / 'absent'} is missing" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "results" / "suite.json").read_text())
    assert [part["part"] for part in summary["parts"]] == ["good", "bad", "endless", "last"]

    mended.touch()
    parts.append(python("new", f"{note}('w')"))
    assert run_suite(tmp_path / "out", 5, False) == 2
    assert ran.read_text() == "gbel" + "wbe"  # what was not tried before goes first


def test_no_part_begins_without_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "suite", lambda *_: [python("part", "1 / 0")])
    assert run_suite(tmp_path, 0.1, False) == 1
    assert not list(tmp_path.glob("part_*"))


KILLED = """
import os, sys, gpu_suite
note = f"import os; open({sys.argv.pop(1)!r}, 'a').write('%s ' + str(os.getpid()) + chr(10))"
wait = f"; import time; time.sleep({sys.argv.pop(1)})"
parts = [("one", note % 1), ("two", note % 2 + wait)]
gpu_suite.suite = lambda *_: [gpu_suite.Part(name, ["-c", code], 60) for name, code in parts]
gpu_suite.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_killed_suite_goes_on(tmp_path: Path) -> None:
    """SIGTERM ends the part too; a part that was cut off is begun anew."""
    ran = tmp_path / "ran"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(ran)]
    out = ["--output", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "600", *out], env=env)
    deadline = time.monotonic() + 120
    while not ran.exists() or ran.read_text().count("\n") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    _, pid = ran.read_text().splitlines()[1].split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    subprocess.run([*command, "0", *out], env=env, check=True, timeout=120)
    assert [line[0] for line in ran.read_text().splitlines()] == ["1", "2", "2"]


def test_the_parts_of_a_gpu(tmp_path: Path, repo_root: Path, monkeypatch) -> None:
    """Scripts, plans and configs that they name exist; results have files of their own."""
    parts = gpu_suite.suite(tmp_path, dry_run=False)
    names = [part.name for part in parts]
    assert names[:3] == ["tests", "voc2007", "kangaroo"] and len(set(names)) == len(names)
    for part in parts:
        files = [word for word in part.words if word.endswith((".py", ".yaml"))]
        assert all((repo_root / file).is_file() for file in files), part
        assert "cpu" not in part.words
    for what in ("inference_digits", "inference_r50", "inference_voc2007", "training_step"):
        assert any("--half" in part.words for part in parts if part.name.startswith(what)), what
    assert sum("compile" in part.words for part in parts) == 6
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    done = {part.name for part in parts if not part.data}
    assert next_part(parts, tmp_path, done) is None


@pytest.mark.slow
def test_dry_run(tmp_path: Path, repo_root: Path, real_data: Path) -> None:
    command = [sys.executable, "-W", "ignore", "benchmarks/gpu_suite.py", "--dry-run"]
    command += ["--output", str(tmp_path / "out"), "--minutes", "20"]
    env = {**os.environ, "DETECTRON2_DATASETS": str(real_data), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {path.stem for path in (tmp_path / "out" / "results").iterdir()}
    assert {"suite", "voc2007", "voc2007_r50", "benchmark_inference_voc2007"} <= results
    report = tmp_path / "report.md"
    report.write_text("<!-- table: out/results/suite.json suite -->\n<!-- end of table -->\n")
    table = [sys.executable, "-W", "ignore", "tools/results_tables.py", str(report)]
    subprocess.run(table, cwd=repo_root, check=True, env=env)
    rows = report.read_text().splitlines()[3:-1]
    assert len(rows) == len(gpu_suite.suite(tmp_path, dry_run=True))
    assert all(" | done | " in row and DASH not in row for row in rows)
