"""Short runs of train_net.py in processes that can be killed; no tests.

Importing PyTorch and Detectron2 takes most of the time of so short a run. So one process imports
them, and each run is a fork of it, which costs milliseconds.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from detectron2.engine import default_argument_parser
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES = 10
MAX_ITER = 12
PERIOD = 4  # of checkpoints

# The recommended model, as narrow as can be, and the average of its weights.
TINY = [
    "--config-file", str(ROOT / "configs" / "digits" / "recommended_R18_FPN.yaml"),
    "MODEL.DEVICE", "cpu",
    "MODEL.RESNETS.DEPTH", "50",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "4",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "4",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "2",
    "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.ONENET.HEAD.CONV_DIM", "32",
    "MODEL.ONENET.HEAD.NUM_CONVS", "1",
    "DATALOADER.NUM_WORKERS", "0",
    "DATALOADER.ASPECT_RATIO_GROUPING", "True",
    "SOLVER.EMA_DECAY", "0.9",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.WARMUP_ITERS", "2",
    "SOLVER.MAX_ITER", str(MAX_ITER),
    "SOLVER.CHECKPOINT_PERIOD", str(PERIOD),
    "TEST.EVAL_PERIOD", "0",
    "INPUT.MIN_SIZE_TRAIN", "(32, 40, 48)",
    "INPUT.MIN_SIZE_TEST", "32",
    "INPUT.RANDOM_FLIP", "horizontal",
    "SEED", "7",
]  # fmt: skip


def make_set(folder: Path) -> list[str]:
    """Noisy images, wide ones and high ones, with a bright square each; config words for it."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(1, NUM_IMAGES + 1):
        height, width = ((48, 64), (64, 48))[i % 2]
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        x, y, side = (int(v) for v in rng.integers(4, 24, size=3))
        pixels[y : y + side, x : x + side] = 255
        name = f"{i}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": i, "file_name": name, "height": height, "width": width})
        box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": 1 + i % 2, **box})
    categories = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return [
        word
        for key in ("TRAIN", "TEST")
        for word in (f"DATASETS.{key}_JSON", str(path))
        + (f"DATASETS.{key}_IMAGE_ROOT", str(folder / "images"))
    ]


def tensors(folder: Path, name: str = "model_final.pth") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by their path in it: model, trained weights, optimiser."""
    content = torch.load(folder / name, weights_only=True)
    found: dict[str, torch.Tensor] = {}

    def walk(prefix: str, node: object) -> None:
        if isinstance(node, torch.Tensor):
            found[prefix] = node
        elif isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}", value)

    walk("", content)
    return found


def differences(one: dict, other: dict) -> list[str]:
    """Names of the tensors that are not equal to the bit."""
    same = one.keys() & other.keys()
    return sorted((one.keys() ^ other.keys()) | {k for k in same if not one[k].equal(other[k])})


def _load_train_net() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_train_net = _load_train_net()


def _run(output: Path, before: Callable[..., None] | None, given: tuple, words: list[str]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data loaders, as in a run by itself
    output.mkdir(parents=True, exist_ok=True)
    file = os.open(output / "terminal.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    if before is not None:
        before(*given)
    words = [*words, "OUTPUT_DIR", str(output)]
    _train_net.main(default_argument_parser().parse_args(words))


class Runs:
    """Starts runs on a set of images as forks of one process.

    Attributes:
        config_file: of all runs; that of :data:`TINY` unless it is set.
    """

    def __init__(self, data: list[str]) -> None:
        """
        Args:
            data: words for the config, from :func:`make_set`.
        """
        from multiprocessing import forkserver  # which Windows does not have

        self._data = data
        self.config_file: str | Path = TINY[1]
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        # A process with several threads must not be forked; Python 3.11 does not hand sys.path on.
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        with mock.patch.dict(os.environ, env):
            forkserver.ensure_running()

    def start(
        self,
        output: Path,
        *words: str,
        resume: bool = False,
        eval_only: bool = False,
        before: Callable[..., None] | None = None,
        given: tuple = (),
    ) -> BaseProcess:
        """Starts a run.

        Args:
            output: its OUTPUT_DIR; ``terminal.txt`` in it has what it prints.
            *words: options and overrides, behind those of :data:`TINY`.
            resume: whether it goes on with what lies in there.
            eval_only: whether it only evaluates.
            before: called in its process beforehand, for fault injection.
            given: arguments for that.
        """
        options = ["--config-file", str(self.config_file)]
        options += ["--resume"] * resume + ["--eval-only"] * eval_only
        words = [*options, *TINY[2:], *self._data, *words]
        process = self._context.Process(target=_run, args=(output, before, given, words))
        process.start()
        return process

    def finish(self, output: Path, *words: str, timeout: float = 120, **options: object) -> int:
        """The exit code of a run; a negative one is the number of a signal."""
        process = self.start(output, *words, **options)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"the run in {output} did not end within {timeout} s")
        return process.exitcode


def terminal(output: Path) -> str:
    """What the runs with this OUTPUT_DIR printed."""
    return (output / "terminal.txt").read_text()


def error_of(output: Path) -> str:
    """The one sentence that a run ended with."""
    lines = [line for line in terminal(output).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, terminal(output)[-3000:]
    return lines[0]
