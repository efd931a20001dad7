"""train_net.py under torchrun, whose second worker dies once; run by test_launchers.py."""

import os
import sys
from pathlib import Path

import fault_injection

from onenet.engine import argument_parser, launch_workers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from train_net import main

if __name__ == "__main__":
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        fault_injection.die_in_training(6)
    launch_workers(main, argument_parser().parse_args())
