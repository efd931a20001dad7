"""``python -m onenet.engine`` is train_net.py, where there is no checkout."""

from . import argument_parser, launch_workers, main

if __name__ == "__main__":
    launch_workers(main, argument_parser().parse_args())
