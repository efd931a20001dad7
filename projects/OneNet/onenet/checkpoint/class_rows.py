"""Weights of the class predictor, taken over by the names of the classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["CLASS_PREDICTOR", "keep_class_rows"]

CLASS_PREDICTOR = "head.cls_score."  # in Detectron2's heads, too

logger = logging.getLogger(__name__)


def keep_class_rows(
    state: dict[str, Tensor],
    initial: Mapping[str, Tensor],
    before: Sequence[str],
    now: Sequence[str],
) -> None:
    """Gives the classes of a checkpoint their places in a model of other classes.

    Rows of the class predictor whose class the model has, too, are copied to its place; the model's
    other rows stay as initialised. Nothing changes if the names are equal, or if the predictor is
    of another kind.

    Args:
        state: the checkpoint's; its class predictor is replaced.
        initial: the model's state dict. The predictor has A rows for each of K classes, in the
            order (A, K).
        before: names of the checkpoint's classes.
        now: names of the model's classes.
    """
    places = {name: i for i, name in enumerate(before)}
    new = [i for i, name in enumerate(now) if name in places]
    old = [places[now[i]] for i in new]
    replaced = {}
    for key, start in initial.items():
        if not key.startswith(CLASS_PREDICTOR) or not start.dim():
            continue
        num_anchors, rest = divmod(len(start), len(now))
        wanted = (num_anchors * len(before), *start.shape[1:])
        if key not in state or state[key].shape != wanted or rest:
            return
        rows = start.clone().unflatten(0, (num_anchors, len(now)))
        loaded = state[key].to(rows).unflatten(0, (num_anchors, len(before)))
        rows[:, new] = loaded[:, old]
        replaced[key] = rows.flatten(0, 1)
    if not replaced or list(before) == list(now):
        return
    state.update(replaced)
    fresh = [name for name in now if name not in places]
    logger.info(
        "Class predictor: weights of the checkpoint's classes of the same names are kept"
        f" ({', '.join(now[i] for i in new) or 'none'}); the others start as initialised"
        f" ({', '.join(fresh) or 'none'})."
    )
