#!/usr/bin/env python
"""How much of rescoring is learnt: the same heads with other weights of rescoring, or with NMS.

python tools/ablate_rescoring.py --output ablation.json output/compare/digits/runs/recommended/seed*

Each argument is the folder of a finished run of a config with rescoring. Its model is evaluated on
the run's DATASETS.TEST with each variant; the head can be the same for all, since no gradient of
rescoring's loss reaches it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from onenet.checkpoint import read_checkpoint
from onenet.comparison.results import aggregate, describe_machine
from onenet.engine import Trainer, load_config
from onenet.modeling.rescoring import STARTS, UNITS
from onenet.utils.errors import ConfigError, exit_with_one_sentence
from onenet.utils.files import write_json

WEIGHTS = "rescoring.weights"
NMS = ["MODEL.ONENET.RESCORING.CANDIDATES", "0", "MODEL.ONENET.NMS_TEST", "True"]
BEFORE_NMS = 1000  # detections; the best of what NMS leaves are evaluated, as many as otherwise
# Name -> weights of suppression, votes and share; None for those of the checkpoint; NMS for none
VARIANTS = {
    "as trained": None,
    "at its start": STARTS["voting"],
    "a soft NMS, no votes": STARTS["soft_nms"],
    "NMS at 0.6 in its place": NMS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--output", required=True, help="the JSON file to write")
    args = parser.parse_args()
    with exit_with_one_sentence():
        setup_logger(name="onenet")
        rows = {name: [evaluate(run, name) for run in args.runs] for name in VARIANTS}
        learnt = [
            read_checkpoint(str(run / "model_final.pth"))["model"][WEIGHTS] for run in args.runs
        ]
        config = load_config(str(args.runs[0] / "config.yaml"), eval_only=True)
        content = {
            "dataset": config.DATASETS.TEST[0],
            "runs": [str(run) for run in args.runs],
            "machine": describe_machine(),
            "learnt": [(weights * torch.tensor(UNITS)).tolist() for weights in learnt],
            "variants": {
                name: {key: aggregate([r[key] for r in results]) for key in results[0]}
                for name, results in rows.items()
            },
        }
        write_json(args.output, content)


def evaluate(run: Path, variant: str) -> dict[str, float]:
    """The end-to-end metrics of a run's model under a variant."""
    weights = VARIANTS[variant]
    folder = run / "rescoring" / variant.replace(" ", "_")
    words = [*(NMS if weights is NMS else ()), "OUTPUT_DIR", str(folder)]
    cfg = load_config(str(run / "config.yaml"), words, eval_only=True)
    model = build_model(cfg)
    state = read_checkpoint(str(run / "model_final.pth"))["model"]
    if WEIGHTS not in state:
        raise ConfigError(f"{run} is no run with rescoring: model_final.pth lacks {WEIGHTS}.")
    if weights is NMS:
        del state[WEIGHTS]
        model.max_detections_per_image = BEFORE_NMS
        k = cfg.TEST.DETECTIONS_PER_IMAGE
        model.register_forward_hook(
            lambda model, inputs, found: [{"instances": f["instances"][:k]} for f in found]
        )
    elif weights is not None:
        state[WEIGHTS] = torch.tensor(weights) / torch.tensor(UNITS)
    model.load_state_dict(state)
    return Trainer.test(cfg, model)["end_to_end"]


if __name__ == "__main__":
    main()
