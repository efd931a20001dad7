"""Set-up and trainer: Detectron2's own, with OneNet's config, data and optimiser."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock
from urllib.parse import urlparse

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, default_setup, defaults, hooks, launch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import multiprocessing

from ..checkpoint import OneNetCheckpointer
from ..checkpoint.convert import pip_weights, torchvision_url
from ..config import load_config
from ..data.loaders import TrainLoader, build_test_loader
from ..evaluation import (
    CrowdHumanEvaluator,
    EndToEndEvaluator,
    carries_nms,
    record_weights,
    weights_digest,
    without_nms,
)
from ..modeling.backbone.features import without_pretrained
from ..modeling.meta_arch import OneNet
from ..utils.errors import ConfigError, DataError, LimitError, WithoutTraceback
from .accumulation import AccumulatingModel, accumulate_gradients
from .ema import EMAHook
from .faults import LossGuard, NamedWriter, naming_faults, tell_once_of_lost_logs
from .resume import (
    ResumableData,
    ResumableEvalHook,
    cut_metrics,
    end_half_row,
    share_buffers,
)
from .solver import build_optimizer
from .training_pictures import TrainingPictures

__all__ = ["Trainer", "build_evaluator", "check_limits", "launch_workers", "setup"]


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


def setup(args: argparse.Namespace) -> CfgNode:
    """Loads the config that the command line names, and starts the loggers.

    Args:
        args: what ``detectron2.engine.default_argument_parser`` parsed.

    Returns:
        The frozen config; of a run that is resumed, without pre-trained weights to download.

    Raises:
        ConfigError, DataError: see :func:`onenet.config.load_config`; or MODEL.WEIGHTS, or the
            checkpoint to resume from, is no file; or OUTPUT_DIR cannot be made.
    """
    # What loading has to say goes to the terminal; the log file's place is known only afterwards.
    setup_logger(distributed_rank=comm.get_rank(), name="onenet")
    cfg = load_config(args.config_file, args.opts, eval_only=args.eval_only)
    _check_weights(cfg, args.resume)
    for name in cfg.DATASETS.TEST:
        _check_evaluator(name)
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_DIR: the folder '{cfg.OUTPUT_DIR}' cannot be made ({error.strerror}); name"
            " another one, or see to what is in its way."
        ) from error
    # A log file that cannot be written is told of below
    quiet = mock.patch.object(logging, "raiseExceptions", False)
    with naming_faults(cfg.OUTPUT_DIR), quiet:
        default_setup(cfg, args)
        setup_logger(
            cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="onenet", configure_stdout=False
        )
    tell_once_of_lost_logs()
    if not torch.cuda.is_available():
        logging.getLogger(__name__).info("There is no GPU: running on the CPU.")
    return without_pretrained(cfg) if args.resume and _last_checkpoint(cfg) else cfg


def _last_checkpoint(cfg: CfgNode) -> str:
    """The checkpoint that --resume goes on from; "" where there is none yet."""
    note = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not os.path.isfile(note):
        return ""
    with open(note, encoding="utf-8", errors="replace") as file:
        return os.path.join(cfg.OUTPUT_DIR, file.read().strip())


def _check_weights(cfg: CfgNode, resume: bool) -> None:
    weights = cfg.MODEL.WEIGHTS
    if resume and (last := _last_checkpoint(cfg)):
        if not os.path.isfile(last):
            raise ConfigError(
                f"--resume: {os.path.join(cfg.OUTPUT_DIR, 'last_checkpoint')} names '{last}', and"
                " there is no such file; write the name of another checkpoint into it, or delete"
                " it to start anew."
            )
        return  # MODEL.WEIGHTS is not used
    if weights.startswith("torchvision://"):
        torchvision_url(weights)  # raises where there is no such network
    if weights.startswith("pip://"):
        pip_weights(weights)  # raises where the package is not installed
    if weights and not urlparse(weights).scheme and not os.path.isfile(weights):
        raise ConfigError(
            f"MODEL.WEIGHTS: there is no file '{weights}'; give a checkpoint's path, or '' to"
            " start from random weights."
        )


def _check_evaluator(dataset_name: str) -> None:
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in ("coco", "crowdhuman"):
        raise DataError(
            f"Dataset '{dataset_name}' has evaluator_type '{evaluator_type}', for which there is no"
            " evaluator; 'coco' suits any dataset of boxes, 'crowdhuman' one of a single class."
        )
    if evaluator_type == "crowdhuman":
        CrowdHumanEvaluator(dataset_name=dataset_name)  # it checks the number of classes


_NMS_OFF = os.path.join("inference", "nms_off")


def _results_folder(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> str:
    """Where the evaluators of a dataset write; see :func:`build_evaluator`."""
    output_dir = os.path.join(cfg.OUTPUT_DIR, folder)
    if len(set(cfg.DATASETS.TEST)) > 1:
        # A json set's name is its path.
        output_dir = os.path.join(output_dir, re.sub(r"[^\w.-]+", "_", dataset_name).strip("_"))
    return output_dir


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """The evaluators for a dataset, by its metadata's ``evaluator_type``.

    Args:
        cfg: TEST.END_TO_END.ENABLED puts an :class:`onenet.evaluation.EndToEndEvaluator` beside
            COCOEvaluator. The type "crowdhuman" adds a
            :class:`onenet.evaluation.CrowdHumanEvaluator`.
        dataset_name: a registered dataset.
        folder: below OUTPUT_DIR, for what they write; with several datasets each has its own
            folder in there.

    Raises:
        DataError: there is none for that type, or none for its number of classes.
    """
    _check_evaluator(dataset_name)
    output_dir = _results_folder(cfg, dataset_name, folder)
    # COCO's own limit is 100; crowds need more.
    max_dets = max(cfg.TEST.DETECTIONS_PER_IMAGE, 100)
    evaluators: list[DatasetEvaluator] = [
        COCOEvaluator(
            dataset_name, tasks=("bbox",), output_dir=output_dir, max_dets_per_image=max_dets
        )
    ]
    if MetadataCatalog.get(dataset_name).evaluator_type == "crowdhuman":
        evaluators.append(CrowdHumanEvaluator(dataset_name=dataset_name, output_dir=output_dir))
    end_to_end = cfg.TEST.END_TO_END
    if end_to_end.ENABLED:
        evaluators.append(
            EndToEndEvaluator(
                dataset_name=dataset_name,
                output_dir=output_dir,
                nms_thresh=end_to_end.NMS_THRESH,
                iou_thresh=end_to_end.IOU_THRESH,
                max_dets_per_image=max_dets,
                calibrates=folder != _NMS_OFF,  # thresholds are for the detector as configured
            )
        )
    return DatasetEvaluators(evaluators)


def _by_dataset(cfg: CfgNode, results: dict) -> dict[str, dict]:
    """What ``Trainer.test`` returned, by dataset; for a single one it leaves that level out."""
    names = list(dict.fromkeys(cfg.DATASETS.TEST))
    return {names[0]: results} if len(names) == 1 else results


def check_limits(cfg: CfgNode, results: dict) -> None:
    """Checks the results against TEST.LIMITS, in the main process, which alone has them.

    Args:
        cfg: from :func:`setup` or :func:`onenet.config.load_config`.
        results: what ``Trainer.test`` returned.

    Raises:
        ConfigError: a limit's task or metric is not among the results.
        LimitError: a metric is beyond its limit, or nan; with one sentence for each.
    """
    if not comm.is_main_process():
        return
    broken = []
    for dataset_name, tasks in _by_dataset(cfg, results).items():
        for task, metric, direction, limit in cfg.TEST.LIMITS:
            known, what = (tasks[task], "metric") if task in tasks else (tasks, "task")
            if metric not in tasks.get(task, {}):
                raise ConfigError(
                    f"TEST.LIMITS names '{task}/{metric}', but the results on '{dataset_name}' have"
                    f" no such {what}; there is {', '.join(known)}."
                )
            value = tasks[task][metric]
            keeps = value <= limit if direction == "max" else value >= limit  # never for nan
            if not keeps:
                broken.append(
                    f"TEST.LIMITS: {task}/{metric} on '{dataset_name}' is {value:.4f}; the"
                    f" {direction}imum allowed is {limit}."
                )
    if broken:
        raise LimitError("\n".join(broken))


@contextlib.contextmanager
def _name_missing_files() -> Iterator[None]:
    """Turns the missing file of a dataset into an error that says how to find it."""
    try:
        yield
    except FileNotFoundError as error:
        root = os.getenv("DETECTRON2_DATASETS", "datasets")
        raise DataError(
            f"The dataset's file {error.filename} is missing; datasets are looked for in the folder"
            f" that the environment variable DETECTRON2_DATASETS names (now '{root}')."
        ) from error


_WITHOUT_TRACEBACK = WithoutTraceback()  # one object, which a logger takes only once


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with OneNet's mapper, optimiser and evaluator."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: from :func:`setup` or :func:`onenet.config.load_config`.
        """
        logging.getLogger("detectron2.engine.train_loop").addFilter(_WITHOUT_TRACEBACK)
        create_ddp_model = defaults.create_ddp_model
        if cfg.MODEL.DEVICE == "cpu":
            # Detectron2 names the worker's GPU to DDP, which refuses that for a model on the CPU.
            create_ddp_model = functools.partial(create_ddp_model, device_ids=None)
        self._is_resumed = False
        self.ema: EMAHook | None = None  # build_hooks, which Detectron2 calls, sets it
        with mock.patch.object(defaults, "create_ddp_model", create_ddp_model):
            super().__init__(cfg)
        accumulate_gradients(self._trainer, self.cfg)
        loader = self.data_loader
        if isinstance(loader, TrainLoader):  # a subclass may have another
            # Behind the average, which copies the model with the hooks it has
            guard = LossGuard(self._trainer.model, loader, cfg.OUTPUT_DIR)
            self._trainer.register_hooks([guard])
            self.register_hooks([ResumableData(loader)])

    @property
    def model(self) -> torch.nn.Module:
        """What is trained, as Detectron2's, also where its batches come in pieces."""
        model = self._trainer.model
        return model.module if isinstance(model, AccumulatingModel) else model

    @model.setter
    def model(self, model: torch.nn.Module) -> None:
        if isinstance(self._trainer.model, AccumulatingModel):
            self._trainer.model.module = model
        else:
            self._trainer.model = model

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers of metrics, whose errors name the file."""
        return [NamedWriter(writer, self.cfg.OUTPUT_DIR) for writer in super().build_writers()]

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; with SOLVER.EMA_DECAY the average is what they evaluate and save.

        A checkpoint's "model" is the average then, so that whoever reads it, gets that; the weights
        to go on training from are beside it.
        """
        cfg = self.cfg
        evaluated, first = self.model, []
        model = self.model
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        if cfg.SOLVER.EMA_DECAY > 0:
            self.ema = EMAHook(model, cfg.SOLVER.EMA_DECAY)
            evaluated, first = self.ema.average, [self.ema]
        if cfg.VIS_PERIOD > 0 and isinstance(model, OneNet) and comm.is_main_process():
            first.append(TrainingPictures(model, cfg.VIS_PERIOD))
        # Detectron2's trainer saves the hooks' state: there are the trained weights of an average.
        self._set_checkpointer(evaluated)

        def evaluate() -> dict:
            share_buffers(evaluated)
            self._last_eval_results = self.test(cfg, evaluated)
            return self._last_eval_results

        built = super().build_hooks()
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.EvalHook):
                built[i] = ResumableEvalHook(cfg.TEST.EVAL_PERIOD, evaluate, self._metrics_file)
        return [*first, *built]

    @property
    def _metrics_file(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")

    def _set_checkpointer(self, model: torch.nn.Module) -> None:
        """Puts ours in the place of Detectron2's, before hooks take it."""
        self.checkpointer = OneNetCheckpointer(
            model,
            self.cfg.OUTPUT_DIR,
            new_classes=True,
            input_format=self.cfg.INPUT.FORMAT,
            trainer=weakref.proxy(self),
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """See Detectron2's; with SOLVER.EMA_DECAY the average starts from the same weights.

        A run that is resumed takes the config's BASE_LR, in place of the one it began with.
        """
        base_lrs = list(self.scheduler.base_lrs)
        super().resume_or_load(resume)
        self._is_resumed = resume
        if self.scheduler.base_lrs != base_lrs:  # those of the checkpoint
            self.scheduler.base_lrs = base_lrs
            groups = self._trainer.optimizer.param_groups
            for group, base_lr, lr in zip(groups, base_lrs, self.scheduler.get_lr(), strict=True):
                group.update(initial_lr=base_lr, lr=lr)
            logging.getLogger(__name__).info(
                f"SOLVER.BASE_LR is another than before: goes on with {self.cfg.SOLVER.BASE_LR:g}."
            )
        if self.ema is not None and self.ema.steps == 0:  # nothing, or a checkpoint without average
            self.ema.start_from(self.ema.average)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See :func:`onenet.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """See :class:`onenet.data.loaders.TrainLoader`."""
        with _name_missing_files():
            return TrainLoader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """See :func:`onenet.data.loaders.build_test_loader`."""
        with _name_missing_files():
            return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See :func:`build_evaluator`."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: torch.nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> dict:
        """Evaluates; a detector that carries NMS a second time, with NMS off.

        Where TEST.END_TO_END.ENABLED, the first pass leaves the classes' score thresholds in
        ``<OUTPUT_DIR>/inference/thresholds.json`` (:mod:`onenet.evaluation.thresholds`), and the
        second is made, which writes to ``<OUTPUT_DIR>/inference/nms_off``. Evaluators that the
        caller brings see the first only, and leave no thresholds.

        Args:
            cfg: its DATASETS.TEST says on what.
            model: with its weights; may be wrapped for several workers.
            evaluators: in place of :meth:`build_evaluator`'s, one a dataset.

        Returns:
            Task -> metric -> value, with several datasets below their names. The second pass adds
            the tasks "bbox_nms_off" and "end_to_end_nms_off". Without metrics in all but the main
            process.
        """
        with naming_faults(cfg.OUTPUT_DIR):
            return cls._test(cfg, model, evaluators)

    @classmethod
    def _test(
        cls, cfg: CfgNode, model: torch.nn.Module, evaluators: list[DatasetEvaluator] | None
    ) -> dict:
        results = super().test(cfg, model, evaluators)
        wanted = evaluators is None and cfg.TEST.END_TO_END.ENABLED and cfg.DATASETS.TEST
        if wanted and comm.is_main_process():
            digest = weights_digest(model)
            for name in cfg.DATASETS.TEST:
                record_weights(_results_folder(cfg, name), digest)
        if wanted and carries_nms(model):
            logging.getLogger(__name__).info(
                "The detector carries NMS: once more, with NMS off. All that follows is without it."
            )
            evaluators = [build_evaluator(cfg, name, _NMS_OFF) for name in cfg.DATASETS.TEST]
            with without_nms(model):
                nms_off = super().test(cfg, model, evaluators)
            for name, tasks in _by_dataset(cfg, nms_off).items():
                _by_dataset(cfg, results)[name].update(
                    {f"{task}_nms_off": metrics for task, metrics in tasks.items()}
                )
        return results

    def train(self) -> dict | None:
        """Trains, evaluates, and checks the last results against TEST.LIMITS.

        Returns:
            The results, in the main process and where TEST.EXPECTED_RESULTS names some.

        Raises:
            ConfigError, LimitError: see :func:`check_limits`; the model is saved by then.
            TrainingError: the loss is no number, the disk is full, or another worker has ended.
        """
        if comm.is_main_process():
            if self._is_resumed:
                cut_metrics(self._metrics_file, self.start_iter)
            else:
                end_half_row(self._metrics_file)
        last = os.path.basename(_last_checkpoint(self.cfg))
        if self.start_iter >= self.max_iter and last != "model_final.pth":
            # Cut off between the last iteration's checkpoint and the final one, which is the same
            self.checkpointer.save("model_final", iteration=self.iter)
        with naming_faults(self.cfg.OUTPUT_DIR):
            results = super().train()
        self._tell_of_skipped()
        if self.cfg.TEST.LIMITS:
            check_limits(self.cfg, self._last_eval_results)
        return results

    def _tell_of_skipped(self) -> None:
        """The count of INPUT.ON_BAD_IMAGE "skip", of all workers, since the start or resuming."""
        of_workers = comm.gather(getattr(self.data_loader, "skipped", {}))
        counts = sum(map(Counter, of_workers), Counter())
        if counts:
            logging.getLogger(__name__).warning(
                f"{len(counts)} images could not be used, and others took their place"
                f" {counts.total()} times: {' '.join(sorted(counts))}"
            )
