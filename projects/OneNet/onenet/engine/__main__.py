"""``python -m onenet.engine`` is train_net.py, where there is no checkout."""

from detectron2.engine import default_argument_parser

from . import launch_workers, main

if __name__ == "__main__":
    launch_workers(main, default_argument_parser().parse_args())
