"""Launching of workers, or joining those that torchrun, Kubernetes or srun has started."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch
from detectron2.engine import DEFAULT_TIMEOUT, default_argument_parser, launch
from detectron2.utils import comm
from torch import distributed, multiprocessing

from ..utils.errors import ConfigError, DataError, LimitError, exit_with_one_sentence
from .elastic import cannot_start, refuse_restarts
from .job import Worker, find_worker, meet

__all__ = ["argument_parser", "launch_workers"]

_OPTIONS = ("num_gpus", "num_machines", "machine_rank", "dist_url")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's, with None for what is not given of --num-gpus, --num-machines, ...

    So :func:`launch_workers` can tell a contradiction from a default.
    """
    parser = default_argument_parser()
    parser.set_defaults(**dict.fromkeys(_OPTIONS))
    return parser


def launch_workers(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Runs ``main(args)`` in the number of workers given on the command line.

    Where a launcher has started this process as one of several workers (:mod:`onenet.engine.job`),
    it joins them and does not return.

    Args:
        main: picklable; calls ``sys.exit(message)`` on user errors.
        args: from :func:`argument_parser`.
    """
    if cannot_start():
        sys.exit(1)  # a worker has printed the error before torchrun's restart
    try:
        with exit_with_one_sentence():
            if (args.num_gpus or 0) < 0:
                raise ConfigError(
                    f"--num-gpus is {args.num_gpus}; give 1 or more, or leave it out."
                )
            worker = find_worker(os.environ)
            if worker is not None and not _spawns_itself(worker, args):
                _check_options(worker, args)
                _join(main, args, worker)
    except SystemExit as error:
        refuse_restarts()
        is_first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
        sys.exit(error.code if is_first else 1)
    given = {name: getattr(args, name) for name in _OPTIONS}
    defaults = {name: default_argument_parser().get_default(name) for name in _OPTIONS}
    options = {n: defaults[n] if value is None else value for n, value in given.items()}
    try:
        launch(
            functools.partial(_run_worker, main),
            options.pop("num_gpus"),
            **options,
            args=(args,),
        )
    except multiprocessing.ProcessExitedException as error:
        if error.signal_name is None:
            sys.exit(1)  # the worker has printed the error
        sys.exit(
            f"error: worker {error.error_index} was ended by {error.signal_name}, and the others"
            " with it; the system does that where memory runs out. Start again with --resume."
        )


def _spawns_itself(worker: Worker, args: argparse.Namespace) -> bool:
    """Whether srun started one process a machine, of which each is to spawn its workers."""
    machine = (args.num_machines, args.machine_rank or 0)
    is_alone = worker.launcher != "torchrun" and worker.local_size == 1
    return is_alone and bool(args.dist_url) and machine == (worker.world_size, worker.rank)


def _check_options(worker: Worker, args: argparse.Namespace) -> None:
    """Raises if an option contradicts the launcher."""
    machines, machine = (n // worker.local_size for n in (worker.world_size, worker.rank))
    values = (worker.local_size, machines, machine, f"tcp://{worker.master}")
    for name, value in zip(_OPTIONS, values, strict=True):
        given, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if given not in (None, value):
            raise ConfigError(
                f"{option} is {given}, but {worker.launcher} started this as one of"
                f" {worker.world_size} workers, {worker.local_size} on each machine, which is"
                f" {option} {value}; leave {option} out, or start without {worker.launcher}."
            )


def _join(
    main: Callable[[argparse.Namespace], None], args: argparse.Namespace, worker: Worker
) -> NoReturn:
    """Runs ``main(args)`` as one of the launcher's workers."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(_device(worker))
    try:
        store = meet(worker)
        distributed.init_process_group(
            "NCCL" if has_gpu else "GLOO",
            store=store,
            rank=worker.rank,
            world_size=worker.world_size,
            timeout=DEFAULT_TIMEOUT,
        )
    except RuntimeError as error:
        # Not a user's error for torchrun: another worker may have been lost
        traceback.print_exc()
        print(
            f"error: {worker.launcher}: worker {worker.rank} of {worker.world_size} cannot meet the"
            f" others at {worker.master} ({type(error).__name__}); see that this address can be"
            " reached from all machines, and that all workers run.",
            file=sys.stderr,
        )
        _end_process(1)
    comm.create_local_process_group(worker.local_size)
    comm.synchronize()
    _run_worker(main, args, store)
    raise AssertionError  # _run_worker ends the process


def _device(worker: Worker) -> int:
    """The worker's GPU; each worker may see its own alone."""
    count = torch.cuda.device_count()
    if count == 1:
        return 0
    if worker.local_rank >= count:
        raise ConfigError(
            f"{worker.launcher} started {worker.local_size} workers on a machine with {count} GPUs;"
            f" start {count}."
        )
    return worker.local_rank


def _run_worker(
    main: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    store: distributed.Store | None = None,
) -> None:
    """Runs ``main(args)`` as one of several workers, and ends the process.

    Args:
        main, args: see :func:`launch_workers`.
        store: of the workers of another launcher, which tell a sentence once.
    """
    if comm.get_world_size() == 1 and store is None:
        main(args)
        return
    try:
        main(args)
        comm.synchronize()
    except SystemExit as error:
        if isinstance(error.code, str) and _is_first_to_tell(error.code, store):
            print(error.code, file=sys.stderr)
        if isinstance(error.__cause__, (ConfigError, DataError, LimitError)):
            refuse_restarts()
        _end_process(error.code if isinstance(error.code, int) else int(error.code is not None))
    except Exception:
        if store is None:
            raise
        traceback.print_exc()
        _end_process(1)
    _end_process(0)


def _is_first_to_tell(message: str, store: distributed.Store | None) -> bool:
    try:
        return store is None or store.add(f"onenet told: {message}", 1) == 1
    except RuntimeError:  # it was in a worker that has ended
        return True


def _end_process(exit_code: int) -> NoReturn:
    """Ends a worker without finalising the interpreter.

    Threads of the process groups, which Detectron2 and DDP keep alive, may otherwise abort the
    process at exit ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
