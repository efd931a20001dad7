"""Soft positives that fade (one-to-few, o2f, arXiv 2303.11567): many learn first, one at the end.

Shape legend: ``N`` images, ``M`` samples, ``K`` classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from .errors import ConfigError
from .heads import DensePredictions
from .matcher import Matcher

__all__ = ["OneToFew"]


@dataclass(frozen=True)
class OneToFew:
    """Class targets between 0 and 1 for the samples that are nearly as cheap as the positive one.

    An object's ``num_samples`` cheapest samples have the target T * p / max p: p is the sample's
    score of the object's class, the maximum is over the object's samples, and T falls in a straight
    line from ``start`` to ``end`` until ``num_iterations``, then stays. With T at 0 the targets are
    those of one-to-one assignment. (The paper ends at 0.2, and so keeps some duplicates.)

    Attributes:
        num_samples: of each object, the positive one included.
        start: T at the first iteration, in [0, 1].
        end: T from ``num_iterations`` on, in [0, 1].
        num_iterations: how long T falls.
    """

    num_samples: int = 8
    start: float = 0.6
    end: float = 0.0
    num_iterations: int = 1

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a number makes no sense.
        """
        if self.num_samples < 1 or self.num_iterations < 1:
            raise ConfigError(
                f"MODEL.ONENET.ONE_TO_FEW: NUM_SAMPLES is {self.num_samples}, and it lasts for"
                f" {self.num_iterations} iterations; both must be 1 or more."
            )
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ConfigError(
                f"MODEL.ONENET.ONE_TO_FEW: START is {self.start} and END {self.end}; give targets"
                " from 0 to 1."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> OneToFew | None:
        """Reads ``cfg.MODEL.ONENET.ONE_TO_FEW``; None where it is not enabled."""
        few = cfg.MODEL.ONENET.ONE_TO_FEW
        if not few.ENABLED:
            return None
        if few.UNTIL <= 0:
            raise ConfigError(
                f"MODEL.ONENET.ONE_TO_FEW.UNTIL is {few.UNTIL}; give a part of SOLVER.MAX_ITER,"
                " above 0."
            )
        num_iterations = max(1, round(few.UNTIL * cfg.SOLVER.MAX_ITER))
        return cls(few.NUM_SAMPLES, few.START, few.END, num_iterations)

    def degree(self, iteration: int) -> float:
        """T at an iteration, from 0."""
        done = min(iteration / self.num_iterations, 1.0)
        return self.start + (self.end - self.start) * done

    @torch.no_grad()
    def targets(
        self,
        predictions: DensePredictions,
        gt_instances: list[Instances],
        matcher: Matcher,
        iteration: int,
    ) -> Tensor | None:
        """The soft targets of a batch.

        Args:
            predictions: of N images.
            gt_instances: N Instances with ``gt_boxes`` and ``gt_classes``.
            matcher: tells the cheapest samples, see :meth:`onenet.matcher.Matcher.match_many`.
            iteration: of the training, from 0.

        Returns:
            (N, M, K) in [0, 1], 0 where no object is near; None once T is 0.
        """
        degree = self.degree(iteration)
        if degree == 0:
            return None
        targets = torch.zeros_like(predictions.pred_logits)
        matches = matcher.match_many(predictions, gt_instances, self.num_samples)
        for target, logits, gt, (samples, objects) in zip(
            targets, predictions.pred_logits, gt_instances, matches, strict=True
        ):
            classes = gt.gt_classes[objects]
            scores = logits[samples, classes].sigmoid().nan_to_num(nan=0.0)
            best = scores.new_zeros(len(gt)).scatter_reduce(0, objects, scores, reduce="amax")
            # A sample belongs to one object, so that no target is written twice.
            ratio = scores / best[objects].clamp(min=torch.finfo(scores.dtype).tiny)
            target[samples, classes] = degree * ratio
        return targets
