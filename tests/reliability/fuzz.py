#!/usr/bin/env python
"""Runs the fuzz tests for as long as is asked for, guided by coverage where Atheris is installed.

python tests/reliability/fuzz.py --list
python tests/reliability/fuzz.py odgt --seconds 300 [--corpus FOLDER]

Atheris (pip install atheris) is not among the requirements. Without it, random choices take its
place. What fails is raised with its traceback, and the bytes that lead to it are kept; --replay
FILE runs them again. docs/fuzzing.md has what was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RELIABILITY, RUNTIME = ROOT / "tests" / "reliability", ROOT / "tests" / "runtime"
Image.MAX_IMAGE_PIXELS = 2**19  # images of more than twice as many would only take long
os.environ.setdefault("TQDM_DISABLE", "1")
MAX_BYTES = 8192  # of Hypothesis' choices


def load_targets() -> dict[str, Callable[[bytes], bytes | None]]:
    """The tests by name, each as a function of the bytes that its choices are made from."""
    targets = {}
    for path, names in (
        (RELIABILITY / "test_fuzz.py", None),
        (RUNTIME / "test_runtime_fuzz.py", ["image_files"]),
    ):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for key, test in vars(module).items():
            name = key.removeprefix("test_")
            if name != key and hasattr(test, "hypothesis") and (names is None or name in names):
                targets[name] = test.hypothesis.fuzz_one_input
    return targets


class Counted:
    """A target that tells every ten seconds how often the bytes were enough for an example."""

    def __init__(self, name: str, target: Callable[[bytes], bytes | None]) -> None:
        self.name = name
        self.target = target
        self.calls = self.examples = 0
        self.start = self.told = time.monotonic()

    def __call__(self, data: bytes) -> None:
        self.calls += 1
        self.examples += self.target(data) is not None
        now = time.monotonic()
        if now - self.told >= 10:
            self.told = now
            what = f"{self.examples:,} examples of {self.calls:,} inputs"
            print(f"{self.name}: {what} in {now - self.start:.0f} s", flush=True)


def run_random(target: Counted, seconds: float, seed: int) -> None:
    """Runs a target on random bytes."""
    generator = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = generator.randbytes(generator.randrange(MAX_BYTES))
        try:
            target(data)
        except Exception:
            Path("crash-random").write_bytes(data)
            raise


def run_guided(target: Counted, seconds: float, seed: int, corpus: Path) -> None:
    """Runs a target by Atheris, which ends the process."""
    import atheris

    corpus.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for number in range(64):  # else it begins with inputs too short for any example
        data = generator.randbytes(generator.randrange(MAX_BYTES))
        (corpus / f"random_{number}").write_bytes(data)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-seed={seed}"]
    options += ["-len_control=0", "-timeout=60", "-verbosity=0", str(corpus)]
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?")
    parser.add_argument("--list", action="store_true", help="print the targets' names")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reach new code")
    parser.add_argument("--replay", type=Path, help="run the bytes of this file only")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if importlib.util.find_spec("onenet_runtime") is None:
        sys.path.insert(0, str(ROOT / "projects" / "OneNet" / "runtime"))
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None:
        targets = load_targets()
    else:
        with atheris.instrument_imports(include=["onenet", "onenet_runtime"]):
            targets = load_targets()
    if args.list:
        print("\n".join(targets))
        return
    if args.target not in targets:
        parser.error(f"name one of: {', '.join(targets)}")
    target = Counted(args.target, targets[args.target])
    if args.replay:
        target(args.replay.read_bytes())
        return
    if atheris is None:
        run_random(target, args.seconds, args.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run_guided(target, args.seconds, args.seed, args.corpus or Path(folder))


if __name__ == "__main__":
    main()
