"""Runs a part of the tests in fresh environments with other versions of torch and Detectron2.

pip install nox
nox                            # the wheel of Detectron2 that tools/install_detectron2.py installs
nox -- path/to/detectron2      # with a clone of the official repository, which is built
nox -k 2.7.1                   # one version of torch

All other packages are what pip chooses for setup.py's ranges. An environment takes up to 7 GB, and
is removed at the end of its session.
"""

import shutil

import nox

nox.options.default_venv_backend = "venv"

# Configs, costs, heads, matchers, criterion, whole models, training and resuming, export
TESTS = [
    *(
        "tests/config/test_configs.py",
        "tests/modeling/test_costs.py",
        "tests/modeling/test_heads.py",
    ),
    *(
        "tests/modeling/test_matcher.py",
        "tests/modeling/test_criterion.py",
        "tests/modeling/test_meta_arch.py",
    ),
    *("tests/modeling/test_postprocess.py", "tests/engine/test_engine.py", "tests/export"),
]


@nox.session
@nox.parametrize(
    ("torch", "torchvision"), [("2.14.1", "0.29.1"), ("2.7.1", "0.22.1"), ("2.6.0", "0.21.0")]
)
def support_matrix(session: nox.Session, torch: str, torchvision: str) -> None:
    try:
        pins = (f"torch=={torch}", f"torchvision=={torchvision}")
        # Detectron2's build needs torch, setuptools and wheel ahead of it
        session.install("setuptools<81", "wheel", *pins)
        session.install(*pins, "-e", ".[dev,opencv]")
        if session.posargs:
            session.install("--no-build-isolation", "--no-deps", *session.posargs)
        else:
            session.run("python", "tools/install_detectron2.py")
        session.run("python", "-m", "pip", "list")
        session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    finally:
        shutil.rmtree(session.virtualenv.location)
