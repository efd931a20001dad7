#!/usr/bin/env python
"""Installs OneNet with given versions in fresh environments, runs tests there, prints a table.

python tools/support_matrix.py \\
    --run python3.11 2.14.1 0.29.1 wheel \\
    --run python3.11 2.6.0 0.21.0 path/to/detectron2

Each run names a Python, the versions of torch and torchvision, and Detectron2: "wheel" for what
tools/install_detectron2.py installs, or a clone of the official repository, which is built. All
other packages are what pip chooses for setup.py's ranges. The environment, up to 7 GB, lies in the
folder for temporary files and is removed before the next run begins. Ends with 1 if a run failed.
Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Import and configs, heads, matcher, criterion, whole models, training and resuming, export.
TESTS = [
    "tests/test_configs.py",
    "tests/test_costs.py",
    "tests/test_heads.py",
    "tests/test_matcher.py",
    "tests/test_criterion.py",
    "tests/test_meta_arch.py",
    "tests/test_postprocess.py",
    "tests/test_engine.py",
    "tests/export",
]

VERSIONS = """
import importlib.metadata, json, platform, detectron2, torch, torchvision
names = ("numpy", "onnx", "onnxruntime")
print(json.dumps({
    "python": platform.python_version(),
    "torch": torch.__version__,
    "torchvision": torchvision.__version__,
    "detectron2": detectron2.__version__,
    **{name: importlib.metadata.version(name) for name in names},
}))
"""


class StepError(Exception):
    """A step of a run failed; its last line of output."""


@dataclass
class Row:
    """A line of the table."""

    wanted: list[str]  # as on the command line
    versions: dict[str, str]
    counts: tuple[int, int, int] | None = None  # passed, failed, skipped
    seconds: tuple[float, float] = (0.0, 0.0)  # installation, tests
    error: str = ""
    failures: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether tests ran and none failed."""
        return self.counts is not None and self.counts[0] > 0 and self.counts[1] == 0

    def cells(self) -> list[str]:
        """The columns of HEADER."""
        python, torch, torchvision, detectron2 = self.wanted
        get = self.versions.get
        result = [str(count) for count in self.counts] if self.counts else [self.error, "", ""]
        return [
            get("python", python),
            get("torch", torch),
            get("torchvision", torchvision),
            f"{get('detectron2', '')} {detectron2}".strip(),
            get("numpy", ""),
            f"{get('onnx', '')} / {get('onnxruntime', '')}",
            *result,
            f"{self.seconds[0]:.0f}",
            f"{self.seconds[1]:.0f}",
        ]


HEADER = [
    *("Python", "torch", "torchvision", "Detectron2", "numpy", "onnx / onnxruntime"),
    *("passed", "failed", "skipped", "s to install", "s of tests"),
]


def call(*words: str | Path, log: Path, cwd: Path) -> str:
    """Runs a command, its output at the end of a log; returns what it said on stdout.

    Raises:
        StepError: it ended with another exit code than 0.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(map(str, words))}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise StepError(f"{words[0]}: {lines[-1]}")
    return done.stdout


def copy_tree(repository: Path, target: Path, log: Path) -> None:
    """The files of a working tree that git does not ignore; of a bare repository, its HEAD."""
    target.mkdir()
    git = ("git", "-C", repository)
    archive = target.parent / "tree.tar"
    if call(*git, "rev-parse", "--is-bare-repository", log=log, cwd=target).strip() == "true":
        call(*git, "archive", "--output", archive, "HEAD", log=log, cwd=target)
    else:
        names = call(*git, "ls-files", "-z", "-co", "--exclude-standard", log=log, cwd=target)
        there = [name for name in names.split("\0") if name and (repository / name).is_file()]
        listing = target.parent / "names"
        listing.write_text("\0".join(there), encoding="utf-8")
        tar = ("tar", "-C", repository, "--null", "--files-from", listing)
        call(*tar, "-cf", archive, log=log, cwd=target)
    call("tar", "-xf", archive, log=log, cwd=target)
    archive.unlink()


def install_detectron2(source: str, python: Path, folder: Path, log: Path) -> str:
    """Installs Detectron2 and returns what the table calls it."""
    tree = folder / "onenet"
    if source == "wheel":
        call(python, tree / "tools" / "install_detectron2.py", log=log, cwd=folder)
        return "(wheel)"
    repository = Path(source).resolve()
    copy_tree(repository, folder / "detectron2-source", log)
    pip = (python, "-m", "pip", "install", "--quiet")
    build = (*pip, "--no-build-isolation", "--no-deps", folder / "detectron2-source")
    call(*build, log=log, cwd=folder)
    commit = call("git", "-C", repository, "rev-parse", "HEAD", log=log, cwd=folder)
    return f"(official, {commit[:10]}, built)"


def run_tests(tests: list[str], python: Path, folder: Path, log: Path, row: Row) -> None:
    """Runs the tests in the copied tree, and fills in what came of them."""
    report = folder / "report.xml"
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    try:
        call(*pytest, *tests, log=log, cwd=folder / "onenet")
    except StepError:
        if not report.is_file():
            raise
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    row.counts = (total - failed - skipped, failed, skipped)
    row.failures = tuple(
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    )


def run(wanted: list[str], tests: list[str], log: Path) -> Row:
    """Installs and tests one combination; what goes wrong is in the row."""
    interpreter, torch, torchvision, detectron2 = wanted
    row = Row(wanted, {})
    with tempfile.TemporaryDirectory(prefix="onenet_matrix_") as name:
        folder = Path(name)
        python = folder / "venv" / "bin" / "python"
        start = time.perf_counter()
        try:
            call(interpreter, "-m", "venv", folder / "venv", log=log, cwd=folder)
            copy_tree(ROOT, folder / "onenet", log)
            pip = (python, "-m", "pip", "install", "--quiet", "--no-cache-dir")
            pins = (f"torch=={torch}", f"torchvision=={torchvision}")
            # Detectron2's build needs torch, setuptools and wheel ahead of it.
            call(*pip, "setuptools<81", "wheel", *pins, log=log, cwd=folder)
            call(*pip, *pins, "-e", f"{folder / 'onenet'}[dev,opencv]", log=log, cwd=folder)
            label = install_detectron2(detectron2, python, folder, log)
            row.wanted = [interpreter, torch, torchvision, label]
            row.versions = json.loads(
                call(python, "-W", "ignore", "-c", VERSIONS, log=log, cwd=folder)
            )
            installed = time.perf_counter()
            row.seconds = (installed - start, 0.0)
            run_tests(tests, python, folder, log, row)
            row.seconds = (installed - start, time.perf_counter() - installed)
        except (StepError, OSError) as error:
            row.error = str(error)
    return row


def table(rows: list[Row]) -> str:
    """The rows in markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        nargs=4,
        action="append",
        required=True,
        metavar=("PYTHON", "TORCH", "TORCHVISION", "DETECTRON2"),
        help="one combination; may be given several times",
    )
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files, folders or tests")
    parser.add_argument("--log", type=Path, default=Path("support_matrix.log"), help="all output")
    args = parser.parse_args()
    rows = []
    for wanted in args.run:
        print(f"{' '.join(wanted)} ...", file=sys.stderr, flush=True)
        rows.append(run(wanted, args.tests, args.log.resolve()))
        for failure in rows[-1].failures:
            print(f"  failed: {failure}", file=sys.stderr, flush=True)
        print(table(rows), flush=True)
    sys.exit(not all(row.is_good for row in rows))


if __name__ == "__main__":
    main()
