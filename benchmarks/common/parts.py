"""What the parts of one call of a detector take, from Detectron2's input to its output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from detectron2.modeling.meta_arch import fcos, retinanet
from torch import Tensor, nn

from onenet.modeling import meta_arch, postprocess

from .timing import round_order

__all__ = ["PARTS", "Stopwatch", "time_parts"]

PARTS = ("preprocess", "backbone", "head", "rescoring", "top-k + decode", "NMS", "rest")
"""In the order of the call; "rest" is what belongs to no other part."""


class Stopwatch:
    """Adds up what functions take, each without what it calls of the others.

    Attributes:
        parts: milliseconds by name.
    """

    def __init__(
        self,
        synchronize: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            synchronize: waits until the device has done what it was told.
            clock: seconds.
        """
        self.parts: dict[str, float] = {}
        self._synchronize, self._clock = synchronize, clock
        self._inner = 0.0  # of what the running function has called so far

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is added to ``parts[name]``."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._synchronize()
            inner_before, self._inner = self._inner, 0.0
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._synchronize()
                took = 1000 * (self._clock() - start)
                self.parts[name] = self.parts.get(name, 0.0) + took - self._inner
                self._inner = inner_before + took

        return watched


def time_parts(
    models: Mapping[str, nn.Module],
    batches: Sequence[Tensor],
    rounds: int,
    warm_up: int = 3,
    synchronize: Callable[[], object] = lambda: None,
    pause: float = 0.01,
) -> dict[str, list[dict[str, float]]]:
    """Times the parts of every detector once a round, as :func:`common.measure` does.

    Each is waited for: on a GPU they take longer together than the call alone.

    * "preprocess": normalisation, and the batch of the images;
    * "backbone";
    * "head": OneNet's puts the outputs of all levels behind each other;
    * "rescoring": of a OneNet that has it;
    * "top-k + decode": OneNet's top-k, scores and boxes of the batch; FCOS's and RetinaNet's score
      threshold, top-k and boxes, by image and level;
    * "NMS", where there is one;
    * "rest": Instances, and their scaling to the output's size; OneNet's look for NaN and inf; in
      FCOS and RetinaNet anchors (which OneNet's head keeps), the levels' transposition, the scores
      of all samples, and the choice of what NMS left.

    Args:
        models: OneNet, FCOS or RetinaNet in evaluation mode, by any name.
        batches: (N, 3, H, W) uint8 each, on the models' device; taken in turn.
        rounds: that count.
        warm_up: rounds before them that do not.
        synchronize: waits until the device has done what it was told.
        pause: seconds of sleep before each model, for the threads of the last one to fall asleep.

    Returns:
        For each model a dictionary a round: milliseconds of each of :data:`PARTS`.
    """
    times: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for i in range(warm_up + rounds):
        inputs = [{"image": image} for image in batches[i % len(batches)]]
        for name in round_order(list(models), i):
            time.sleep(pause)
            stopwatch = Stopwatch(synchronize)
            with torch.inference_mode(), _watched(models[name], stopwatch) as model:
                model(inputs)
                stopwatch.parts = dict.fromkeys(PARTS, 0.0)
                model(inputs)
            if i >= warm_up:
                times[name].append(stopwatch.parts)
    return times


@contextmanager
def _watched(model: nn.Module, stopwatch: Stopwatch) -> Iterator[Callable[..., Any]]:
    """The model's call, whose parts add to the stopwatch's."""
    places = [
        (model, "preprocess_image", "preprocess"),
        (model.backbone, "forward", "backbone"),
        (model.head, "forward", "head"),
        *((module, "batched_nms", "NMS") for module in (postprocess, fcos, retinanet)),
    ]
    if not isinstance(model, meta_arch.OneNet):
        places.append((model, "_decode_multi_level_predictions", "top-k + decode"))
    else:
        places.append((meta_arch, "select_top_k", "top-k + decode"))
        if model.rescoring is not None:
            places.append((model.rescoring, "forward", "rescoring"))
    with ExitStack() as stack:
        for owner, attribute, name in places:
            function = stopwatch.watch(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, function))
        yield stopwatch.watch("rest", model)
