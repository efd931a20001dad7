"""Values of keys that no run can have are errors when the config is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onenet.engine import load_config
from onenet.utils.errors import ConfigError

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/digits/onenet_fcos_R18_FPN.yaml")
NO_DATA = ["MODEL.ONENET.NUM_CLASSES", "2", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("TEST.EVAL_PERIOD", "-1"),
        ("TEST.DETECTIONS_PER_IMAGE", "0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MIN_SIZE_TRAIN", "(0,)"),
        ("INPUT.MIN_SIZE_TRAIN", "('a',)"),
        ("SOLVER.WEIGHT_DECAY", "-1.0"),
        ("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler"),
        ("TEST.AUG.ENABLED", "True"),
        ("INPUT.MAX_SIZE_TEST", "0"),
        ("MODEL.RESNETS.DEPTH", "19"),
        ("MODEL.DEVICE", "gpu"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"),
        ("MODEL.PIXEL_MEAN", "[1.0]"),
        ("SOLVER.BASE_LR", "-1.0"),
        ("SOLVER.STEPS", "(200, 100)"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
        ("INPUT.RANDOM_FLIP", "both"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "256"),
    ],
)
def test_values_that_no_run_can_have(key: str, value: str) -> None:
    value_seen = re.escape(value.strip("()[]"))
    with pytest.raises(ConfigError, match=rf"{key} is \W*{value_seen}.*(give|set|choose)"):
        load_config(CONFIG, [*NO_DATA, key, value])


@pytest.mark.parametrize("names", ["['res3', 'res6']", "[]"])
def test_feature_maps_that_the_resnet_does_not_have(names: str) -> None:
    told = rf"FPN.IN_FEATURES is {re.escape(names)}.*which are .*'res4', 'res5'"
    with pytest.raises(ConfigError, match=told):
        load_config(CONFIG, [*NO_DATA, "MODEL.FPN.IN_FEATURES", names])


def test_a_range_of_sizes_has_two_ends() -> None:
    opts = ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)"]
    with pytest.raises(ConfigError, match="give two sizes"):
        load_config(CONFIG, [*NO_DATA, *opts])
