"""tools/count_flops.py: what a part costs in inference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def count(*words: str) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "tools/count_flops.py", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "projects" / "OneNet")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    flops, parameters = re.findall(r"[0-9.]+", done.stdout)
    return float(flops), float(parameters)


def test_training_costs_nothing_and_a_convolution_does() -> None:
    config = "configs/digits/onenet_fcos_R18_FPN.yaml"
    plain = count(config, "64")
    assert plain[0] > 0 and plain[1] > 0
    assert count(config, "64", "MODEL.ONENET.ONE_TO_MANY.CENTER_RADIUS", "1.5") == plain
    deeper = count(config, "64", "MODEL.ONENET.HEAD.NUM_CONVS", "3")
    assert deeper[0] > plain[0] and deeper[1] > plain[1]
