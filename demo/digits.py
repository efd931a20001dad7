#!/usr/bin/env python
"""From nothing to a trained, evaluated and pictured OneNet, on the digits set, in minutes.

python demo/digits.py [--config-file configs/digits/...] [--output FOLDER] [KEY value ...]

Continues a run that was interrupted; a second start of a finished one only evaluates it again.
"""

import argparse
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from onenet.data.mapper import OneNetDatasetMapper
from onenet.engine import Trainer, load_config
from onenet.evaluation.inspection import inspect_assignment
from onenet.evaluation.inspection_pictures import draw_assignment
from onenet.utils.errors import exit_with_one_sentence
from onenet.utils.visualizer import draw_detections, tile

ROOT = Path(__file__).resolve().parents[1]


class ProgressBar(HookBase):
    """Shows iteration, speed, time left and loss in one line, and times the training."""

    minutes = 0.0

    def before_train(self) -> None:
        self.start = time.perf_counter()
        self.bar = tqdm(
            initial=self.trainer.start_iter, total=self.trainer.max_iter, desc="training", unit="it"
        )

    def after_step(self) -> None:
        self.bar.update()
        if self.trainer.iter % 20 == 19:
            loss = self.trainer.storage.history("total_loss").median(20)
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.bar.close()  # the evaluation comes next
            self.minutes = (time.perf_counter() - self.start) / 60

    def after_train(self) -> None:
        self.bar.close()


def log_to_file(output_dir: str) -> None:
    """Sends the libraries' log to ``log.txt``, and only its warnings to the terminal."""
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    for name in ("detectron2", "fvcore", "onenet"):
        setup_logger(output_dir, name=name, configure_stdout=False).addHandler(warnings)


@torch.no_grad()
def draw_pictures(cfg: CfgNode, model: torch.nn.Module, folder: Path) -> None:
    """Writes predictions.png (ground truth above, predictions below) and assignment.png."""
    model.eval()
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=True)[:6]
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    # The training mapper gives the objects too; without augmentation but the resize to test size
    mapper = OneNetDatasetMapper(
        is_train=True,
        augmentations=OneNetDatasetMapper.from_config(cfg, is_train=False)["augmentations"],
        image_format=cfg.INPUT.FORMAT,
    )
    truth, predicted, assigned = [], [], []
    for record in records:
        inputs = mapper(record)
        image = np.ascontiguousarray(inputs["image"].permute(1, 2, 0).numpy())
        truth.append(draw_detections(image, inputs["instances"], names))
        here = {**inputs, "height": image.shape[0], "width": image.shape[1]}
        detections = model([here])[0]["instances"].to("cpu")
        predicted.append(draw_detections(image, detections[detections.scores > 0.3], names))
        assigned.append(draw_assignment(inspect_assignment(model, inputs), image))
    for name, rows in {
        "predictions.png": [truth, predicted],
        "assignment.png": [assigned[:3], assigned[3:]],
    }.items():
        cv2.imwrite(str(folder / name), tile(rows)[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config-file", default=str(ROOT / "configs" / "digits" / "recommended_R18_FPN.yaml")
    )
    parser.add_argument("--output", help="folder of the run (default: output/demo/<config's name>)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    args = parser.parse_args()
    folder = Path(args.output or Path("output", "demo", Path(args.config_file).stem))
    cfg = load_config(args.config_file, [*args.opts, "OUTPUT_DIR", str(folder)])
    log_to_file(str(folder))

    print(f"Training {args.config_file} on the {cfg.MODEL.DEVICE}; details in {folder / 'log.txt'}")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    bar = ProgressBar()
    trainer.register_hooks([bar])
    trainer.train()
    results = trainer._last_eval_results["bbox"]
    draw_pictures(cfg, trainer.model, folder)
    print(
        f"\nAP {results['AP']:.1f}, AP50 {results['AP50']:.1f} on {cfg.DATASETS.TEST[0]} (digits"
        f" never seen in training), {'with' if cfg.MODEL.ONENET.NMS_TEST else 'without'} NMS;"
        f" training took {bar.minutes:.1f} minutes on the {cfg.MODEL.DEVICE}"
        f" ({trainer.max_iter - trainer.start_iter} iterations)."
        f"\nPredictions under the ground truth: {folder / 'predictions.png'}"
        f"\nEach object's one positive sample:  {folder / 'assignment.png'}"
    )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
