#!/usr/bin/env python
"""Measures what the padding of a batch does to the detections: AP and scores, no times.

python benchmarks/padding.py --config output/own_data/config.yaml
    --weights output/own_data/model_final.pth [--batch 8] [--set KEY value ...]

A batch pads its images to a common size, and group norm's statistics see the padding. The test set
is evaluated with images one at a time, then in batches of images of unlike sizes, in the order of
the data set: is it worth masking the padding in those statistics?
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from torch import nn

from common import make_parser, record
from onenet.comparison.tables import DASH, Table, markdown_table
from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine.evaluators import build_evaluator
from onenet.predictor import Predictor, load_predictor_config
from onenet.utils.errors import ConfigError, exit_with_one_sentence


class BestScores(DatasetEvaluator):
    """Keeps the best score of each image, 0 where nothing was found.

    Attributes:
        scores: by image id.
    """

    def __init__(self) -> None:
        self.scores: dict[Any, float] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """See :class:`detectron2.evaluation.DatasetEvaluator`."""
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].scores
            self.scores[image["image_id"]] = float(found.max()) if len(found) else 0.0


def evaluate(cfg: CfgNode, model: nn.Module, batch: int) -> tuple[dict[str, float], dict]:
    """COCO's metrics of the first test set in batches of a size, and the images' best scores."""
    name, best = cfg.DATASETS.TEST[0], BestScores()
    mapper = OneNetDatasetMapper(cfg, is_train=False)
    loader = build_detection_test_loader(cfg, name, mapper=mapper, batch_size=batch)
    evaluator = DatasetEvaluators([build_evaluator(cfg, name), best])
    return inference_on_dataset(model, loader, evaluator)["bbox"], best.scores


def changes(scores: dict, alone: dict) -> dict[str, float]:
    """Mean and maximum of what the images' best scores differ by."""
    differences = np.abs([score - alone[image] for image, score in scores.items()])
    return {"mean": float(differences.mean()), "max": float(differences.max())}


def table(content: Mapping[str, Any]) -> str:
    """AP alone and in padded batches, and what the images' best scores change by."""
    rows = [
        [
            *("" if i else run["title"], str(row["batch"])),
            *(f"{row[key]:.2f}" for key in ("AP", "AP50")),
            *(f"{row['change'][key]:.3f}" if i else DASH for key in ("mean", "max")),
        ]
        for run in content["runs"]
        for i, row in enumerate(run["rows"])
    ]
    scores = ["mean change of an image's best score", "largest change"]
    return markdown_table(Table(["what", "images at once", "AP", "AP50", *scores], rows))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--set", nargs="+", default=[], metavar=("KEY", "VALUE"))
    args = parser.parse_args()
    cfg = load_predictor_config(args.config, args.set).clone()
    if not cfg.DATASETS.TEST:
        raise ConfigError(f"{args.config} has no DATASETS.TEST, or it is not there: set it.")
    model = Predictor(cfg, args.weights).model
    cfg.defrost()
    cfg.TEST.END_TO_END.ENABLED = False
    rows, alone = [], {}
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        for batch in (1, args.batch):
            metrics, scores = evaluate(cfg, model, batch)
            alone = alone or scores
            row = {"batch": batch, "AP": metrics["AP"], "AP50": metrics["AP50"]}
            rows.append({**row, "change": changes(scores, alone)})
    title = f"{Path(args.config).stem}, {cfg.DATASETS.TEST[0]}, {len(alone)} images"
    record(args.json, "padding", rows, table, title=title)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
