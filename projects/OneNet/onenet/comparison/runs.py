"""The runs of a plan: each detector with each seed, its resolved config and its folder.

Layout: ``<output>/runs/<slug>/seed<k>`` is train_net.py's OUTPUT_DIR. Before the first start it
gets ``run.json``, the resolved settings; after a success ``done.json``; ``compare.log`` has the
output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_onenet_config
from ..engine import load_config
from ..utils.errors import ConfigError
from .plan import Entry, Plan

__all__ = ["Run", "by_name", "check_same_settings", "find_runs", "flat", "is_done", "record"]

# Where a result is written and on which device it is computed does not change what it means.
_NOT_COMPARED = {"OUTPUT_DIR", "MODEL.DEVICE"}


@dataclass(frozen=True)
class Run:
    """One detector with one seed."""

    entry: Entry
    seed: int  # of a finished run: its config's; -1 stands for a random one
    cfg: CfgNode  # resolved
    folder: Path  # where inference/ is, or will be
    trained_in: Path  # where model_final.pth and metrics.json are, or will be
    words: tuple[str, ...]  # for train_net.py; none if there is nothing to do

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def title(self) -> str:
        """Name and seed, for messages."""
        return f"{self.name}, seed {self.seed}" if self.seed >= 0 else self.name

    @property
    def weights(self) -> Path:
        """The trained model."""
        return self.trained_in / "model_final.pth"

    @property
    def outputs(self) -> list[Path]:
        """The files that are there when the run is done."""
        return [self.weights, self.folder / "inference" / "end_to_end.json"]

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved config as plain values, without OUTPUT_DIR."""
        settings = yaml.safe_load(self.cfg.dump())
        del settings["OUTPUT_DIR"]
        return settings


def find_runs(plan: Plan) -> list[Run]:
    """The runs of a plan, entry by entry and seed by seed, each with its resolved config.

    Raises:
        ConfigError, DataError: a config cannot be used (see :func:`onenet.engine.load_config`), has
            nothing to evaluate, or an earlier start used other settings for the same folder.
    """
    runs = []
    for entry in plan.entries:
        top = plan.output / "runs" / entry.slug
        found = [_finished(entry, top)] if entry.folder else _to_train(entry, plan.seeds, top)
        for run in found:
            _check_evaluation(run)
            check_same_settings(run)
        runs += found
    return runs


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each detector, one a seed, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def _check_evaluation(run: Run) -> None:
    """Raises if the config does not lead to the results that are compared."""
    count = len(run.cfg.DATASETS.TEST)
    if count != 1:
        raise ConfigError(
            f"{run.name}: DATASETS.TEST names {count} datasets, but a comparison is on one; name"
            " one, or give DATASETS.TEST_JSON and DATASETS.TEST_IMAGE_ROOT."
        )
    if run.words and not run.cfg.TEST.END_TO_END.ENABLED:
        raise ConfigError(
            f"{run.name}: TEST.END_TO_END.ENABLED is False, so that there are no results to"
            " compare; set it to True."
        )


def _to_train(entry: Entry, seeds: Sequence[int], top: Path) -> list[Run]:
    runs = []
    for seed in seeds:
        folder = top / f"seed{seed}"
        overrides = (*entry.overrides, "SEED", str(seed))
        cfg = load_config(entry.config, [*overrides])
        words = (
            *("--config-file", entry.config, "--resume"),
            *(*entry.overrides, "OUTPUT_DIR", str(folder), "SEED", str(seed)),
        )
        runs.append(Run(entry, seed, cfg, folder, folder, words))
    return runs


def _finished(entry: Entry, top: Path) -> Run:
    source = Path(entry.folder)
    config = str(source / "config.yaml")
    cfg = load_config(config, eval_only=True)
    if (source / "inference" / "end_to_end.json").is_file():
        return Run(entry, cfg.SEED, cfg, source, source, ())
    words = (
        *("--config-file", config, "--eval-only"),
        *("MODEL.WEIGHTS", str(source / "model_final.pth"), "OUTPUT_DIR", str(top)),
    )
    return Run(entry, cfg.SEED, cfg, top, source, words)


def is_done(run: Run) -> bool:
    """Whether a run's results are complete."""
    done = [run.folder / "done.json"] if run.words else []
    return all(path.is_file() for path in [*run.outputs, *done])


def record(run: Run) -> dict[str, Any]:
    """What ``run.json`` says: by what the run may be continued."""
    content: dict[str, Any] = {
        "config": run.entry.config or run.entry.folder,
        "overrides": list(run.entry.overrides),
        "seed": run.seed,
        "settings": run.settings,
    }
    if run.entry.folder:
        stat = run.weights.stat()
        content["weights"] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return content


def check_same_settings(run: Run) -> None:
    """Checks the run's settings against those in ``run.json``, if an earlier start wrote it.

    Raises:
        ConfigError: they differ, or the file cannot be read.
    """
    path = run.folder / "run.json"
    if not run.words:
        return
    try:
        old = _compared(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); make it readable, or give another --output."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # not what is written
        raise ConfigError(
            f"{path} is broken; delete the folder {run.folder} to do this run anew."
        ) from error
    cfg = get_cfg()
    add_onenet_config(cfg)
    # A key that is younger than the run had its default's effect then.
    old = {**_compared({"settings": yaml.safe_load(cfg.dump())}), **old}
    new = _compared(record(run))
    changes = [
        f"{key} was {old.get(key, _ABSENT)!r}, now {new.get(key, _ABSENT)!r}"
        for key in sorted({*old, *new})
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ConfigError(
            f"{run.folder} was made with other settings ({'; '.join(changes[:3])}{more}); give"
            " another --output, or delete that folder."
        )


def _compared(content: dict[str, Any]) -> dict[str, Any]:
    """What must be equal of a ``run.json``, with flat keys."""
    values = flat({**content["settings"], "weights": content.get("weights", {})})
    return {key: value for key, value in values if key not in _NOT_COMPARED}


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, with their keys joined by dots."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
