"""Runs are trained once, continued, skipped, and never overwritten."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onenet import ConfigError
from onenet.comparison import Plan, ReportOptions, RunFailed, compare, find_plan
from onenet.comparison.completion import complete_runs, locked
from onenet.comparison.runs import find_runs, is_done

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    str(ROOT / "configs" / "digits" / name)
    for name in ("onenet_fcos_R18_FPN.yaml", "baseline_fcos_R18_FPN.yaml")
]

# Stands for train_net.py: notes each call beside itself, and writes what it would write.
FAKE = """
import json, pathlib, sys
words = sys.argv[1:]
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as file:
    file.write(json.dumps(words) + "\\n")
out = pathlib.Path(words[words.index("OUTPUT_DIR") + 1])
if (here / "fail").exists() and "baseline" in str(out):
    print("the reason"); sys.exit(3)
(out / "inference").mkdir(parents=True, exist_ok=True)
(out / "inference" / "end_to_end.json").write_text("{}")
if "--eval-only" not in words:
    (out / "model_final.pth").write_bytes(b"")
"""


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return [sys.executable, str(path)]


def calls(tmp_path: Path) -> list[list[str]]:
    path = tmp_path / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(tmp_path: Path, fake: list[str], *overrides: str, seeds: tuple = (1, 2)) -> list[str]:
    plan = find_plan(CONFIGS, output=str(tmp_path / "out"), seeds=seeds, overrides=[*overrides])
    said: list[str] = []
    complete(plan, fake, said.append)
    return said


def complete(plan: Plan, command: list[str], say: Callable[[str], None], jobs: int = 1) -> None:
    runs = find_runs(plan)
    with locked(plan.output, say) as lock:
        complete_runs(runs, command, lock, jobs=jobs, say=say)


def test_each_run_is_trained_once(tmp_path: Path, fake: list[str]) -> None:
    said = start(tmp_path, fake, "SOLVER.MAX_ITER", "7")
    assert len(calls(tmp_path)) == 4 and len(said) == 8
    folder = tmp_path / "out" / "runs" / "onenet_fcos_R18_FPN" / "seed1"
    assert calls(tmp_path)[0] == [
        *("--config-file", CONFIGS[0], "--resume", "SOLVER.MAX_ITER", "7"),
        *("OUTPUT_DIR", str(folder), "SEED", "1"),
    ]
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["SOLVER"]["MAX_ITER"] == 7 and record["settings"]["SEED"] == 1
    assert "OUTPUT_DIR" not in record["settings"]

    again = start(tmp_path, fake, "SOLVER.MAX_ITER", "7")
    assert len(calls(tmp_path)) == 4 and all("done already" in line for line in again)
    start(tmp_path, fake, "SOLVER.MAX_ITER", "7", seeds=(1, 2, 3))  # only the new seed
    assert [words[-1] for words in calls(tmp_path)] == ["1", "1", "2", "2", "3", "3"]


def test_what_is_not_done_is_called_again(tmp_path: Path, fake: list[str]) -> None:
    start(tmp_path, fake, seeds=(1,))
    (tmp_path / "out" / "runs" / "baseline_fcos_R18_FPN" / "seed1" / "done.json").unlink()
    start(tmp_path, fake, seeds=(1,))
    assert len(calls(tmp_path)) == 3 and "--resume" in calls(tmp_path)[2]


def test_other_settings_overwrite_nothing(tmp_path: Path, fake: list[str]) -> None:
    start(tmp_path, fake, "SOLVER.MAX_ITER", "7")
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, fake, "SOLVER.MAX_ITER", "8")
    for word in ("SOLVER.MAX_ITER was 7, now 8", "--output", "delete", "seed1"):
        assert word in str(caught.value)
    # The same settings in other words are the same
    start(tmp_path, fake, "SOLVER.MAX_ITER", "9", "SOLVER.MAX_ITER", "7")
    assert len(calls(tmp_path)) == 4

    record = tmp_path / "out" / "runs" / "onenet_fcos_R18_FPN" / "seed1" / "run.json"
    for content in (b"{", b"[]", b"\xff\xfe", b'{"settings": 1}'):
        record.write_bytes(content)
        with pytest.raises(ConfigError, match=r"run\.json is broken; delete"):
            start(tmp_path, fake, "SOLVER.MAX_ITER", "7")
    record.unlink()
    record.mkdir()
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        start(tmp_path, fake, "SOLVER.MAX_ITER", "7")


def test_a_key_younger_than_the_run_had_its_default(tmp_path: Path, fake: list[str]) -> None:
    start(tmp_path, fake, seeds=(1,))
    file = tmp_path / "out" / "runs" / "onenet_fcos_R18_FPN" / "seed1" / "run.json"
    record = json.loads(file.read_text())
    default = record["settings"]["TEST"]["END_TO_END"].pop("NMS_THRESH")
    file.write_text(json.dumps(record))
    assert "done already" in start(tmp_path, fake, seeds=(1,))[0]
    with pytest.raises(ConfigError, match=f"NMS_THRESH was {default}, now 0.5"):
        start(tmp_path, fake, "TEST.END_TO_END.NMS_THRESH", "0.5", seeds=(1,))


def test_a_failure_shows_the_log_and_keeps_the_others(tmp_path: Path, fake: list[str]) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(RunFailed) as caught:
        start(tmp_path, fake, seeds=(1,))
    assert "exit code 3" in str(caught.value) and "the reason" in str(caught.value)
    (tmp_path / "fail").unlink()
    start(tmp_path, fake, seeds=(1,))
    assert ["baseline" in words[1] for words in calls(tmp_path)] == [False, True, True]


def test_a_failure_does_not_end_the_others(tmp_path: Path, fake: list[str]) -> None:
    (tmp_path / "fail").touch()
    names = [CONFIGS[0], CONFIGS[1], str(ROOT / "configs" / "digits" / "onenet_point_R18.yaml")]
    plan = find_plan(names, output=str(tmp_path / "out"))
    said: list[str] = []
    with pytest.raises(RunFailed) as caught:
        complete(plan, fake, said.append)
    assert str(caught.value).startswith("baseline_fcos_R18_FPN, seed 1 failed: exit code 3")
    assert [is_done(run) for run in find_runs(plan)] == [True, False, True]
    assert "baseline_fcos_R18_FPN, seed 1: failed; its log is shown at the end" in said


# A run that ends only once there are as many others under way as its first argument says.
TOGETHER = """
import pathlib, sys, time
here = pathlib.Path(__file__).parent
(here / f"started{sys.argv[-1]}").touch()
while len(list(here.glob("started*"))) < int(sys.argv[1]):
    time.sleep(0.02)
(here / f"threads{sys.argv[-1]}").write_text(__import__("os").environ["OMP_NUM_THREADS"])
"""


@pytest.mark.parametrize("threads", [None, "5"])
def test_several_runs_at_the_same_time(
    tmp_path: Path, fake: list[str], monkeypatch, threads
) -> None:
    together = tmp_path / "together.py"
    together.write_text(TOGETHER + FAKE.replace("sys.argv[1:]", "sys.argv[2:]"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)), raising=False)
    plan = find_plan([CONFIGS[0]], output=str(tmp_path / "out"), seeds=(1, 2, 3))
    complete(plan, [sys.executable, str(together), "3"], lambda line: None, jobs=3)
    assert all(map(is_done, find_runs(plan)))
    assert {p.read_text() for p in tmp_path.glob("threads*")} == {threads or "2"}


def test_jobs_must_be_positive(tmp_path: Path, fake: list[str]) -> None:
    plan = find_plan([CONFIGS[0]], output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="--jobs is 0"):
        compare(plan, fake, command="", jobs=0)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# A run that never ends, with a child of its own, as a data loader is one.
WITH_CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
here = pathlib.Path(__file__).parent
(here / f"pids{sys.argv[-1]}.tmp").write_text(f"{__import__('os').getpid()} {child.pid}")
(here / f"pids{sys.argv[-1]}.tmp").rename(here / f"pids{sys.argv[-1]}")
time.sleep(99)
"""


def interrupt_when_started(folder: Path) -> None:
    """Sends SIGINT to this process once two runs are under way."""
    while len(list(folder.glob("pids?"))) < 2:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(WITH_CHILD)
    waiter = threading.Thread(target=interrupt_when_started, args=(tmp_path,), daemon=True)
    plan = find_plan([CONFIGS[0]], output=str(tmp_path / "out"), seeds=(1, 2, 3))
    said: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        waiter.start()
        with pytest.raises(KeyboardInterrupt):
            complete(plan, [sys.executable, str(script)], said.append, jobs=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(said) == 2 and not any("failed" in line for line in said)
    pids = [int(pid) for path in tmp_path.glob("pids?") for pid in path.read_text().split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):  # the grandchildren have nobody to wait for them
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not any(map(is_done, find_runs(plan)))


def test_the_log_has_a_command_that_can_be_pasted(tmp_path: Path, fake: list[str]) -> None:
    start(tmp_path, fake, "INPUT.MIN_SIZE_TRAIN", "(64, 96)", seeds=(1,))
    log = tmp_path / "out" / "runs" / "onenet_fcos_R18_FPN" / "seed1" / "compare.log"
    assert shlex.split(log.read_text())[3:] == calls(tmp_path)[0]


def test_an_output_that_cannot_be_written(tmp_path: Path, fake: list[str]) -> None:
    (tmp_path / "file").touch()
    for output in ("file", "file/below"):
        plan = find_plan(CONFIGS, output=str(tmp_path / output))
        with pytest.raises(ConfigError, match=rf"cannot write into .*{output} \(.*give a folder"):
            complete(plan, fake, print)
    if sys.platform == "linux":
        with pytest.raises(ConfigError, match="cannot write into /proc/x"), locked(Path("/proc/x")):
            pass


def test_a_train_command_without_results_fails(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"without writing .*model_final.pth"):
        start(tmp_path, [sys.executable, "-c", ""])


def test_finished_folders_stay_as_they_are(make_run, tmp_path: Path, fake: list[str]) -> None:
    whole, bare = make_run("whole"), make_run("bare")
    (Path(bare) / "inference" / "end_to_end.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "finished").rglob("*")}
    plan = find_plan([whole, bare], output=str(tmp_path / "out"))
    for _ in range(2):
        complete(plan, fake, lambda line: None)
        assert all(map(is_done, find_runs(plan)))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "finished").rglob("*")} == before
    (words,) = calls(tmp_path)
    assert words == [
        *("--config-file", f"{bare}/config.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", f"{bare}/model_final.pth"),
        *("OUTPUT_DIR", str(tmp_path / "out" / "runs" / "bare")),
    ]
    (Path(bare) / "model_final.pth").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=r"weights\.bytes"):
        find_runs(plan)


def test_what_cannot_be_compared(tmp_path: Path, fake: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST names 0"):
        start(tmp_path, fake, "DATASETS.TEST", "()")
    with pytest.raises(ConfigError, match=r"TEST\.END_TO_END\.ENABLED is False"):
        start(tmp_path, fake, "TEST.END_TO_END.ENABLED", "False")
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITTER"):
        start(tmp_path, fake, "SOLVER.MAX_ITTER", "1")


# A start whose train command never ends; the shell may have had it ignore SIGINT
HANGING = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from onenet.comparison import find_plan
from onenet.comparison.completion import complete_runs, locked
from onenet.comparison.runs import find_runs
plan = find_plan([sys.argv[1]], output=sys.argv[2])
wait = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(99)"
with locked(plan.output) as lock:
    complete_runs(find_runs(plan), [sys.executable, "-c", wait], lock)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl for SIGKILL, and /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(tmp_path: Path, fake: list[str], how: int) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HANGING, CONFIGS[0], str(out)],
        cwd=tmp_path,
        env=os.environ,
        stderr=subprocess.DEVNULL,
    )
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 120
    while not (pid_file.is_file() and pid_file.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    pid = int(pid_file.read_text())
    assert alive(pid)
    process.send_signal(how)
    process.wait(timeout=30)
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The folder is free again
    plan = find_plan([CONFIGS[0]], output=str(out))
    complete(plan, fake, lambda line: None)


def test_two_starts_at_once(make_run, tmp_path: Path, fake: list[str]) -> None:
    out = tmp_path / "out"
    during: list[str] = []
    said: list[str] = []

    def second_start(line: str) -> None:
        during.append(line)
        with pytest.raises(ConfigError, match="is in use"):
            with locked(out, said.append, patience=0.0):
                pass

    bare = make_run("bare")
    (Path(bare) / "inference" / "end_to_end.json").unlink()
    plan, options = find_plan([bare], output=str(out)), ReportOptions(speed_rounds=0)
    compare(plan, fake, command="", options=options, say=second_start)
    # While it evaluates, and while it times and writes
    assert "evaluation in" in during[0] and "Measuring speed and writing" in during[2]
    assert len(said) == len(during) == 4 and all(
        "in use by another start: waiting" in line for line in said
    )
    with locked(out, said.append, patience=0.0):
        assert len(said) == 4
