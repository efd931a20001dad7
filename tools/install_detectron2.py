#!/usr/bin/env python
"""Install Detectron2 into the running Python's environment, unless it has one already.

Detectron2 has no release under its own name on the package index. Its Python code is there as the
wheel ``sal-detectron2``, tagged for Python 3.10 and asking for numpy below 2, both of which are
stricter than the code is. It is therefore unpacked as it is, without its list of needs;
requirements.txt holds them. Its compiled extension ``detectron2._C``, which fits one Python and one
CUDA version only, is removed: OneNet does not use it. Standard library only.

    python tools/install_detectron2.py
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

WHEEL = "sal-detectron2==0.7.2"
SOURCE_BUILD = (
    f"{sys.executable} -m pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'"
)

# __version__ tells the package from a mere folder of that name (a clone of its repository).
FIND = "import detectron2; print(detectron2.__version__, 'in', detectron2.__path__[0])"
# What training imports.
CHECK = "import detectron2.engine, detectron2.modeling, detectron2.evaluation"


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh interpreter, away from the current folder and what lies in it."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=sys.prefix,
        capture_output=True,
        text=True,
    )


def last_line(text: str) -> str:
    """Return the last line that says something: of a traceback, the error."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def give_up(reason: str) -> None:
    """End with the reason and the way out."""
    sys.exit(
        f"{reason}\n"
        "The official source build needs a C++ compiler and does the same job:\n"
        f"    {SOURCE_BUILD}\n"
        "(more in INSTALL.md of facebookresearch/detectron2)"
    )


def main() -> None:
    """Install, check, and say what was done."""
    found = run_python(FIND)
    if found.returncode == 0:
        print(f"Detectron2 {found.stdout.strip()}: kept as it is.")
        return
    error = last_line(found.stderr)
    absent = ("No module named 'detectron2'", "has no attribute '__version__'")
    if not any(message in error for message in absent):
        give_up(f"There is a Detectron2 in {sys.prefix} that does not import ({error}).")

    paths = sysconfig.get_paths()
    if sys.prefix == sys.base_prefix and os.path.exists(
        os.path.join(paths["stdlib"], "EXTERNALLY-MANAGED")
    ):
        sys.exit(
            f"{sys.executable} belongs to the operating system: create and activate a virtual "
            "environment first (python3 -m venv .venv)."
        )

    print(f"Installing Detectron2 ({WHEEL}) ...", flush=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.10", "--implementation", "cp"]
    command += ["--abi", "none", "--platform", "any"]
    command += ["--target", paths["purelib"], WHEEL]
    if subprocess.run(command).returncode != 0:
        give_up(f"pip could not install {WHEEL}; its message stands above.")

    for extension in Path(paths["purelib"], "detectron2").glob("_C.*"):
        extension.unlink()
    check = run_python(CHECK)
    if check.returncode != 0:
        give_up(
            f"{WHEEL} was installed into {paths['purelib']} but does not import "
            f"({last_line(check.stderr)}); are the packages of requirements.txt installed?"
        )
    print(f"Detectron2 {run_python(FIND).stdout.strip()}: imports.")


if __name__ == "__main__":
    main()
