"""Plans of comparisons, from yaml files or command lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import OWN_DATA
from ..engine import path_value
from ..utils.errors import ConfigError
from ..utils.files import read_yaml

__all__ = ["Entry", "Plan", "find_plan"]

_OUTPUT = "output/compare"
_PLAN_KEYS = ("title", "output", "seeds", "overrides", "runs")
_ENTRY_KEYS = ("name", "config", "folder", "overrides", "note")
# Set for each run by the comparison
_OWN_KEYS = {"SEED": "the seeds", "OUTPUT_DIR": "the output folder"}


@dataclass(frozen=True)
class Entry:
    """One detector of a comparison: a config to train, or the folder of a finished run."""

    name: str
    config: str = ""
    folder: str = ""
    overrides: tuple[str, ...] = ()  # KEY, value, ...; the plan's first, then its own
    note: str = ""

    @property
    def slug(self) -> str:
        """The name as a folder name."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", self.name).strip("-") or "run"


@dataclass(frozen=True)
class Plan:
    """Detectors, seeds and the output folder of a comparison."""

    title: str
    output: Path
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]

    def changed(
        self,
        *,
        title: str | None = None,
        output: str | None = None,
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
    ) -> Plan:
        """A copy with options of the command line; overrides are added.

        Raises:
            ConfigError: see :func:`find_plan`.
        """
        more = _overrides(list(overrides), "The list of overrides")
        if more:
            _check_some_config(self.entries, "The list of overrides")
        return Plan(
            title=self.title if title is None else title,
            output=self.output if output is None else Path(output),
            seeds=self.seeds if seeds is None else _seeds(list(seeds), "--seeds"),
            entries=tuple(
                replace(e, overrides=e.overrides + more) if e.config else e for e in self.entries
            ),
        )


def find_plan(
    paths: Sequence[str],
    *,
    title: str | None = None,
    output: str | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """The plan that paths mean: a plan's yaml file, a folder of photos, or a list of configs and
    finished runs.

    A plan is read with yaml's safe loader. Its keys are ``title``, ``output`` (folder), ``seeds``
    (list), ``overrides`` (list ``KEY, value, ...`` for all configs) and ``runs``, a list of
    ``{name, config, overrides, note}`` or ``{name, folder, note}``. Required are ``output``,
    ``runs``, and in each run ``config`` or ``folder``. Configs and runs that are listed get the
    last part of their path as name.

    Args:
        paths: one or more, relative to the working directory, as those in a plan.
        title: of the page; None for the plan's, or a general one.
        output: folder of the comparison; None for the plan's, else ``output/compare`` or the
            folder of the photos' name in it.
        seeds: for each config; None for the plan's, else 1.
        overrides: ``KEY, value, ...`` for all configs, after the plan's.

    Raises:
        ConfigError: a path, key or value is wrong, or two runs have the same name; the message
            names it and the fix.
    """
    content, where = _content(paths)
    plan = _plan(content, where)
    return plan.changed(title=title, output=output, seeds=seeds, overrides=overrides)


def _content(paths: Sequence[str]) -> tuple[Any, str]:
    """A plan's content as in a yaml file, and where it is from."""
    for path in paths:
        if not Path(path).exists():
            raise ConfigError(
                f"There is no '{path}': no file, no folder, no key of the config; paths are"
                f" relative to {Path.cwd()}."
            )
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir() and not (first / "config.yaml").is_file():
        return _content_of_photos(paths[0]), paths[0]
    if len(paths) == 1 and first.is_file():
        content = read_yaml(paths[0])
        if not isinstance(content, dict) or set(content) & set(_PLAN_KEYS):
            return content, paths[0]
    runs = [{"folder" if Path(path).is_dir() else "config": path} for path in paths]
    return {"output": _OUTPUT, "runs": runs}, "the command line"


def _content_of_photos(folder: str) -> dict[str, Any]:
    """The recommended config, and FCOS with the same backbone, trained on a folder of photos."""
    name = Path(folder).resolve().name
    return {
        "title": f"OneNet and FCOS on {name}",
        "output": str(Path(_OUTPUT) / name),
        "overrides": ["DATASETS.FOLDER", path_value(folder)],
        "runs": [
            {"name": "OneNet, recommended", "config": str(OWN_DATA / "recommended.yaml")},
            {"name": "FCOS", "config": str(OWN_DATA / "baseline_fcos.yaml")},
        ],
    }


def _plan(content: Any, where: str) -> Plan:
    _check_keys(content, _PLAN_KEYS, where)
    for key in ("output", "runs"):
        if not content.get(key):
            raise ConfigError(f"{where} has no '{key}'; add it.")
    if not isinstance(content["runs"], list):
        raise ConfigError(
            f"{where}: 'runs' must be a list of {{name, config}} or {{name, folder}}, but is a"
            f" {type(content['runs']).__name__}; start each run with '- '."
        )
    common = _overrides(content.get("overrides"), f"{where}, 'overrides'")
    entries = [
        _entry(run, common, f"{where}, run number {i}")
        for i, run in enumerate(content["runs"], start=1)
    ]
    # Different names may give one folder, on some file systems also if only the case differs
    counts = Counter(entry.slug.lower() for entry in entries)
    for entry in entries:
        if counts[entry.slug.lower()] > 1:
            raise ConfigError(
                f"{where} has two runs of the name '{entry.name}' (or of names that make the same"
                f" folder name '{entry.slug}'); give each its own 'name' in a plan."
            )
    if common:
        _check_some_config(entries, f"{where}, 'overrides'")
    return Plan(
        title=_text(content, "title", where) or "Detectors compared",
        output=Path(_text(content, "output", where)),
        seeds=_seeds(content.get("seeds", [1]), f"{where}, 'seeds'"),
        entries=tuple(entries),
    )


def _check_some_config(entries: Sequence[Entry], where: str) -> None:
    if not any(entry.config for entry in entries):
        raise ConfigError(
            f"{where} changes nothing, since all runs are finished and none is trained; remove it."
        )


def _entry(run: Any, common: tuple[str, ...], where: str) -> Entry:
    _check_keys(run, _ENTRY_KEYS, where)
    config, folder = _text(run, "config", where), _text(run, "folder", where)
    if bool(config) == bool(folder):
        has = "both 'config' and 'folder'" if config else "neither 'config' nor 'folder'"
        raise ConfigError(f"{where} has {has}; give a config to train, or a finished run's folder.")
    if config and not Path(config).is_file():
        raise ConfigError(
            f"{where} names '{config}', where there is no config file and no folder; paths are"
            f" relative to {Path.cwd()}."
        )
    for needed in ("config.yaml", "model_final.pth") if folder else ():
        if not (Path(folder) / needed).is_file():
            raise ConfigError(
                f"{where} names the folder '{folder}', which has no {needed}; give the OUTPUT_DIR"
                " of a finished training, or one folder of photos alone."
            )
    if folder and run.get("overrides"):
        raise ConfigError(
            f"{where}: 'overrides' change nothing in the finished run {folder}; remove them."
        )
    overrides = common + _overrides(run.get("overrides"), f"{where}, 'overrides'")
    name = Path(config).stem if config else Path(folder).resolve().name
    return Entry(
        name=_text(run, "name", where) or name,
        config=config,
        folder=folder,
        overrides=overrides if config else (),
        note=_text(run, "note", where),
    )


def _check_keys(node: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(node, dict):
        raise ConfigError(
            f"{where} must hold keys and values, but is a {type(node).__name__}; the keys are"
            f" {', '.join(known)}."
        )
    for key in node:
        if key not in known:
            raise ConfigError(
                f"{where} has the unknown key '{key}'; remove it, or use one of {', '.join(known)}."
            )


def _text(node: dict[str, Any], key: str, where: str) -> str:
    value = node.get(key)
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):  # a number may be a name
        raise ConfigError(
            f"{where}: '{key}' must be a text, but is a {type(value).__name__}; put it in quotes."
        )
    return str(value)


def _seeds(values: Any, where: str) -> tuple[int, ...]:
    right = isinstance(values, list) and values and all(type(v) is int and v >= 0 for v in values)
    if not right or len(set(values)) < len(values):
        raise ConfigError(
            f"{where} is {values!r}; give one or more different whole numbers, 0 or greater."
        )
    return tuple(values)


def _overrides(values: Any, where: str) -> tuple[str, ...]:
    """Checks the form of a list ``KEY, value, ...``; keys are checked with the config."""
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) % 2:
        raise ConfigError(
            f"{where} must be pairs KEY, value, ..., but is {values!r}; give each key its value."
        )
    for key in values[::2]:
        if not isinstance(key, str):
            raise ConfigError(
                f"{where} has {key!r} in the place of a key; give pairs KEY, value, ..., in one"
                " list."
            )
        if key in _OWN_KEYS:
            raise ConfigError(
                f"{where} sets {key}, which a comparison takes from {_OWN_KEYS[key]}; remove it."
            )
    return tuple(str(value) for value in values)
