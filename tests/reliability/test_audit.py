"""No code of this repository hands foreign data to eval, pickle, unsafe yaml or a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = ("projects", "benchmarks", "tools", "demo", "configs", "train_net.py", "setup.py")

FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "importlib.import_module",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "pickle._Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.Loader",
    "yaml.FullLoader",
    "yaml.UnsafeLoader",
    "torch.load",  # but for calls with weights_only=True
    "torch.jit.load",
    "torch.export.load",
    "torch.hub.load",
    "numpy.load",  # but for calls with allow_pickle=False
    "detectron2.checkpoint.DetectionCheckpointer",  # unpickles .pkl
    "detectron2.config.LazyConfig.load",
    "xml.dom.minidom.parse",
    "shell=True",
    "merge_from_file",  # but for calls with allow_unsafe=False
}

SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "merge_from_file": ("allow_unsafe", False),
}

ALLOWED = {
    (
        "projects/OneNet/onenet/checkpoint/checkpointer.py",
        "detectron2.checkpoint.DetectionCheckpointer",
    ): ("the base of OneNetCheckpointer, which reads files in its place"),
    ("projects/OneNet/onenet/checkpoint/unpickler.py", "pickle._Unpickler"): (
        "the base of one that knows NumPy's arrays alone, and makes them itself"
    ),
    ("projects/OneNet/onenet/export/formats.py", "torch.export.load"): (
        "of the file that the same command has just written, to check it"
    ),
    ("projects/OneNet/onenet/export/formats.py", "torch.jit.load"): (
        "of the file that the same command has just written, to check it"
    ),
    ("tools/lazyconfig_train_net.py", "detectron2.config.LazyConfig.load"): (
        "a LazyConfig is a program, as SECURITY.md says"
    ),
}


def _imports(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _dotted(node: ast.AST, imports: dict[str, str]) -> str:
    """The full name that an expression stands for; "" for no name."""
    if isinstance(node, ast.Name):
        return imports.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, imports)
        return f"{base or '?'}.{node.attr}"
    return ""


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each forbidden thing that the source of a module mentions."""
    tree = ast.parse(source)
    imports = _imports(tree)
    safe = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func, imports)
        name = name if name in FORBIDDEN else name.rpartition(".")[2]
        values = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if name in SAFE_WITH and values.get(SAFE_WITH[name][0]) is SAFE_WITH[name][1]:
            safe.add(node.func)
        if values.get("shell"):
            yield node.lineno, "shell=True"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and node not in safe:
            name = _dotted(node, imports)
            if isinstance(node, ast.Attribute) and node.attr == "merge_from_file":
                name = node.attr
            if name in FORBIDDEN:
                yield node.lineno, name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("eval(text)", "eval"),
        ("from os import system as run\nrun('ls')", "os.system"),
        ("import pickle as p\np.load(file)", "pickle.load"),
        ("import yaml\nread = yaml.unsafe_load", "yaml.unsafe_load"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("import torch\ntorch.load(path)", "torch.load"),
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "numpy.load"),
        ("cfg.merge_from_file(path)", "merge_from_file"),
        ("get_cfg().merge_from_file(path)", "merge_from_file"),
        ("import subprocess\nsubprocess.run(words, shell=True)", "shell=True"),
        ("import torch.jit\ntorch.jit.load(path)", "torch.jit.load"),
    ],
)
def test_the_audit_finds(source: str, name: str) -> None:
    assert name in [found for _, found in findings(source)]


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "cfg.merge_from_file(path, allow_unsafe=False)",
        "import re\nre.compile(text)",
        "import subprocess\nsubprocess.run(words, shell=False)",
        "import yaml\nyaml.safe_load(text)",
    ],
)
def test_the_audit_leaves_alone(source: str) -> None:
    assert not list(findings(source))


def test_no_source_runs_foreign_code(repo_root: Path) -> None:
    files = [
        file
        for name in SOURCES
        for file in (
            [repo_root / name] if name.endswith(".py") else (repo_root / name).rglob("*.py")
        )
    ]
    assert len(files) > 80
    found = {}
    for file in files:
        where = file.relative_to(repo_root).as_posix()
        for line, name in findings(file.read_text(encoding="utf-8")):
            found.setdefault((where, name), line)
    assert {key: line for key, line in found.items() if key not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found), "an exception that is no longer needed"
