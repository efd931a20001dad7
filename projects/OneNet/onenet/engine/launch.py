"""Launching of workers."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import multiprocessing

__all__ = ["launch_workers"]


def launch_workers(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Runs ``main(args)`` in the number of workers given on the command line.

    Args:
        main: picklable; calls ``sys.exit(message)`` on user errors.
        args: from ``detectron2.engine.default_argument_parser``.
    """
    try:
        launch(
            functools.partial(_run_worker, main),
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except multiprocessing.ProcessExitedException as error:
        if error.signal_name is None:
            sys.exit(1)  # the worker has printed the error
        sys.exit(
            f"error: worker {error.error_index} was ended by {error.signal_name}, and the others"
            " with it; the system does that where memory runs out. Start again with --resume."
        )


def _run_worker(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    main(args)
    if comm.get_world_size() > 1:
        # Otherwise gloo's threads may abort the process at exit
        comm.synchronize()
        torch.distributed.destroy_process_group()
