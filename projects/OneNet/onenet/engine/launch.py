"""Starting workers."""

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
    """Runs ``main(args)`` in as many workers as the command line asks for.

    Args:
        main: picklable; ends with ``sys.exit(sentence)`` on an error of the user's.
        args: what ``detectron2.engine.default_argument_parser`` parsed.
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
            sys.exit(1)  # the worker has said why
        sys.exit(
            f"error: worker {error.error_index} was ended by {error.signal_name}, and the others"
            " with it; the system does that where memory runs out. Start again with --resume."
        )


def _run_worker(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    main(args)
    if comm.get_world_size() > 1:
        # Else gloo's threads may abort the process as it ends
        comm.synchronize()
        torch.distributed.destroy_process_group()
