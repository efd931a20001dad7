"""The batch that fits into memory, for SOLVER.IMS_PER_BATCH 0."""

from __future__ import annotations

import logging
import math
import multiprocessing
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ..modeling.backbone.features import without_pretrained
from ..utils.errors import ConfigError
from ..utils.registry import num_classes_node
from .solver import build_optimizer

__all__ = ["choose_batch", "largest_batch"]

logger = logging.getLogger(__name__)

_NUM_BOXES = 20  # of each image
_FREE_SHARE = 0.1  # of a GPU's memory that stays free, for EMA, DDP and fragmentation
_USED_SHARE = 0.8  # of the available memory, without a GPU
# Of a container, in version 2 and 1
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def choose_batch(cfg: CfgNode) -> int:
    """Finds the largest of SOLVER.REFERENCE_BATCH, half of it, a quarter, ... that fits.

    The main process decides for all workers: their GPUs are taken to be alike.

    Raises:
        ConfigError: no batch fits, or can be shared by the workers.
    """
    reference, num_workers = cfg.SOLVER.REFERENCE_BATCH, comm.get_world_size()
    least = num_workers * cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS
    halves = [reference >> k for k in range(reference.bit_length())]
    batches = sorted(batch for batch in halves if batch % num_workers == 0 and batch >= least)
    if not batches:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is 0, and neither SOLVER.REFERENCE_BATCH ({reference}) nor a"
            f" half or quarter of it is a multiple of {num_workers} workers with {least} images or"
            " more; give SOLVER.IMS_PER_BATCH."
        )
    chosen = _in_child_process(cfg, batches, num_workers) if comm.is_main_process() else 0
    return comm.all_gather(chosen)[0]


def _in_child_process(cfg: CfgNode, batches: Sequence[int], num_workers: int) -> int:
    """Calls :func:`largest_batch` in a process of its own, which ends with the memory it took.

    It takes part in no communication of the workers, and its peak of memory is the training's.
    """
    logger.info(f"SOLVER.IMS_PER_BATCH is 0: trying batches of {batches[0]} to {batches[-1]}.")
    limit = math.inf
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        limit = _USED_SHARE * _available_memory() / comm.get_local_size()
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=logging.disable) as pool:
            chosen = pool.submit(largest_batch, cfg, batches, num_workers, limit).result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH is 0, and the process that tried batches was ended, for want of"
            " memory maybe; give SOLVER.IMS_PER_BATCH."
        ) from error
    if not chosen:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is 0, but even a batch of {batches[0]} does not fit into memory:"
            " lower INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN, or set"
            " MODEL.ONENET.ACTIVATION_CHECKPOINTING True."
        )
    return chosen


def largest_batch(cfg: CfgNode, batches: Sequence[int], num_workers: int, limit: float) -> int:
    """Makes training steps of one worker with rising batches, as long as they fit.

    A GPU says when its memory is full. A process without a GPU would be killed, so there a batch is
    tried only if it fits in proportion to the peak of the one before.

    Args:
        cfg: the config; weights are random.
        batches: of all workers together, rising.
        num_workers: among whom a batch is shared.
        limit: bytes that this process may take; for training without a GPU.

    Returns:
        The largest batch that fits; 0 if not even the smallest does.
    """
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    fits, images_before = 0, 0
    try:
        model = build_model(without_pretrained(cfg)).train()
        optimizer = build_optimizer(cfg, model)
        for batch in batches:
            images = math.ceil(batch / num_workers / cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS)
            if fits and not on_gpu and _peak_memory() * images / images_before > limit:
                break
            inputs = [_largest_input(cfg) for _ in range(images)]
            for _ in range(1 if fits else 2):  # the first step makes the optimizer's state
                _step(model, optimizer, inputs, cfg.SOLVER.AMP.ENABLED)
            if on_gpu:
                free, total = torch.cuda.mem_get_info(model.device)
                if free < _FREE_SHARE * total:
                    break
                torch.cuda.empty_cache()
            fits, images_before = batch, images
    except torch.OutOfMemoryError:
        pass
    return fits


def _step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: list[dict], amp: bool
) -> None:
    with EventStorage(), torch.autocast("cuda", enabled=amp):
        losses = model(inputs)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # weights that diverge would end the trial
    optimizer.step()


def _largest_input(cfg: CfgNode) -> dict[str, Any]:
    """An input of the model as large as a batch of the config can pad images to."""
    long = cfg.INPUT.MAX_SIZE_TRAIN
    short = min(max(cfg.INPUT.MIN_SIZE_TRAIN), long)
    if cfg.INPUT.CROP.ENABLED or not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        short = long  # a batch may have a wide and a tall image
    node = num_classes_node(cfg)
    num_classes = cfg.MODEL[node].NUM_CLASSES if node is not None else 1
    corners = torch.rand(_NUM_BOXES, 2, 2) * torch.tensor([long, short])
    boxes = torch.cat((corners.amin(1), corners.amax(1)), dim=1)
    classes = torch.randint(num_classes, (_NUM_BOXES,))
    instances = Instances((short, long), gt_boxes=Boxes(boxes), gt_classes=classes)
    image = torch.zeros(3, short, long, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": short, "width": long}


def _peak_memory() -> int:
    """The most bytes that this process has had; getrusage's may be those of its parent."""
    return _bytes(Path("/proc/self/status"), "VmHWM")


def _available_memory() -> float:
    """Bytes that processes can take without swapping, on Linux; in a container up to its limit."""
    limits = [Path(path) for path in _CGROUP_LIMITS if Path(path).is_file()]
    texts = [path.read_text().strip() for path in limits]
    try:
        available = _bytes(Path("/proc/meminfo"), "MemAvailable")
        return min([available, *(float(text) for text in texts if text != "max")])
    except OSError as error:
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH is 0, which without a GPU needs Linux, where /proc tells how much"
            " memory there is; give SOLVER.IMS_PER_BATCH."
        ) from error


def _bytes(path: Path, name: str) -> int:
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)[1])
