#!/usr/bin/env python
"""Trains and evaluates a LazyConfig (configs/lazy/*.py), with Detectron2's own parts.

python tools/lazyconfig_train_net.py --config-file configs/lazy/onenet_fcos_R50_FPN.py
python tools/lazyconfig_train_net.py --config-file ... train.max_iter=100 optimizer.lr=1e-4
"""

import argparse
import os

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from onenet.checkpoint import OneNetCheckpointer
from onenet.engine import argument_parser, launch_workers
from onenet.engine.elastic import goes_on, note_job
from onenet.utils.errors import ConfigError, exit_with_one_sentence


def evaluate(cfg: DictConfig, model: nn.Module) -> dict:
    """Runs the config's evaluator over its test set."""
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    print_csv_format(results)
    return results


def train(cfg: DictConfig, model: nn.Module, resume: bool) -> None:
    """Trains as ``cfg.train`` says."""
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = OneNetCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    all_hooks = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    if comm.is_main_process():
        all_hooks.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
    all_hooks.append(hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)))
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        all_hooks.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    trainer.register_hooks(all_hooks)

    resumed = resume and checkpointer.has_checkpoint()
    checkpointer.exact = resumed
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)


def main(args: argparse.Namespace) -> None:
    """What every worker runs."""
    with exit_with_one_sentence():
        if not os.path.isfile(args.config_file):
            raise ConfigError(f"--config-file: there is no file '{args.config_file}'.")
        cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
        if not torch.cuda.is_available():
            cfg.train.device = "cpu"
            cfg.train.ddp.device_ids = None
        elif comm.get_world_size() > 1:
            cfg.train.ddp.device_ids = [torch.cuda.current_device()]
        resume = args.resume or goes_on(cfg.train.output_dir)
        default_setup(cfg, args)
        model = instantiate(cfg.model).to(cfg.train.device)
        model = create_ddp_model(model, **cfg.train.ddp)
        if args.eval_only:
            if not cfg.train.init_checkpoint:
                raise ConfigError("--eval-only: name a checkpoint by train.init_checkpoint.")
            OneNetCheckpointer(model, exact=True).load(cfg.train.init_checkpoint)
            evaluate(cfg, model)
        else:
            note_job(cfg.train.output_dir)
            train(cfg, model, resume)


if __name__ == "__main__":
    launch_workers(main, argument_parser().parse_args())
