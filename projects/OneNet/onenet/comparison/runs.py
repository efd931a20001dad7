"""The runs of a plan: each detector with each seed, its resolved config and its folder.

``<output>/runs/<slug>/seed<k>`` is train_net.py's OUTPUT_DIR. It also gets ``run.json`` (resolved
settings, before the first start), ``compare.log`` (output) and ``done.json`` (after success).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_onenet_config
from ..engine import load_config
from ..utils.errors import ConfigError, DataError
from ..utils.files import read_json
from .plan import Entry, Plan

__all__ = ["Run", "by_name", "check_same_settings", "find_runs", "flat", "is_done", "record"]

# Output folder and device do not affect the meaning of a result
_NOT_COMPARED = {"OUTPUT_DIR", "MODEL.DEVICE"}


@dataclass(frozen=True)
class Run:
    """One detector with one seed."""

    entry: Entry
    seed: int  # of a finished run its config's; -1 for a random one
    cfg: CfgNode  # resolved
    folder: Path  # of inference/
    trained_in: Path  # of model_final.pth and metrics.json
    words: tuple[str, ...]  # arguments of train_net.py; empty if nothing is to be done

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def title(self) -> str:
        """Name and seed, for messages."""
        return f"{self.name}, seed {self.seed}" if self.seed >= 0 else self.name

    @property
    def weights(self) -> Path:
        """Path of the trained model."""
        return self.trained_in / "model_final.pth"

    @property
    def outputs(self) -> list[Path]:
        """Files that exist when the run is done."""
        return [self.weights, self.folder / "inference" / "end_to_end.json"]

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved config as plain values, without OUTPUT_DIR."""
        settings = yaml.safe_load(self.cfg.dump())
        del settings["OUTPUT_DIR"]
        return settings


def find_runs(plan: Plan) -> list[Run]:
    """Resolves the runs of a plan, by entry and seed.

    Raises:
        ConfigError, DataError: a config is wrong (see :func:`onenet.engine.load_config`) or has
            nothing to evaluate, or the folder has a run with other settings.
    """
    runs = []
    for entry in plan.entries:
        top = plan.output / "runs" / entry.slug
        if entry.folder:
            runs.append(_finished(entry, top))
        else:
            runs += [_to_train(entry, seed, top / f"seed{seed}") for seed in plan.seeds]
    for run in runs:
        _check_evaluation(run)
        check_same_settings(run)
    return runs


def by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by detector, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def _check_evaluation(run: Run) -> None:
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


def _to_train(entry: Entry, seed: int, folder: Path) -> Run:
    cfg = load_config(entry.config, [*entry.overrides, "SEED", str(seed)])
    words = (
        *("--config-file", entry.config, "--resume"),
        *(*entry.overrides, "OUTPUT_DIR", str(folder), "SEED", str(seed)),
    )
    return Run(entry, seed, cfg, folder, folder, words)


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
    """Whether a run is complete."""
    done = [run.folder / "done.json"] if run.words else []
    return all(path.is_file() for path in [*run.outputs, *done])


def record(run: Run) -> dict[str, Any]:
    """Content of ``run.json``, to check that a run may be continued."""
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
    """Checks the run's settings against an existing ``run.json``.

    Raises:
        ConfigError: they differ, or the file cannot be read.
    """
    path = run.folder / "run.json"
    if not run.words or not path.exists():
        return
    try:
        old = _compared(read_json(path))
    except (DataError, KeyError, TypeError) as error:  # not a file of this program
        raise ConfigError(
            f"{path} is broken; delete the folder {run.folder} to do this run anew ({error})."
        ) from error
    cfg = get_cfg()
    add_onenet_config(cfg)
    # Keys added since then had their default
    old = {**_compared({"settings": yaml.safe_load(cfg.dump())}), **old}
    new = _compared(record(run))
    changes = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ConfigError(
            f"{run.folder} was made with other settings ({'; '.join(changes[:3])}{more}); give"
            " another --output, or delete that folder."
        )


def _compared(content: dict[str, Any]) -> dict[str, Any]:
    """The settings of a ``run.json`` that must be equal, with flat keys."""
    values = flat({**content["settings"], "weights": content.get("weights", {})})
    return {key: value for key, value in values if key not in _NOT_COMPARED}


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Items of nested dicts, with keys joined by dots."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
