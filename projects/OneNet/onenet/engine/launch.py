"""Launching of workers."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

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
    if comm.get_world_size() == 1:
        main(args)
        return
    try:
        main(args)
        comm.synchronize()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        _end_process(error.code if isinstance(error.code, int) else int(error.code is not None))
    _end_process(0)


def _end_process(exit_code: int) -> NoReturn:
    """Ends a worker without finalising the interpreter.

    Threads of the process groups, which Detectron2 and DDP keep alive, may otherwise abort the
    process at exit ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
