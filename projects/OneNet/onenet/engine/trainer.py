"""Detectron2's trainer with OneNet's data, optimiser and evaluators."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

from ..checkpoint import OneNetCheckpointer
from ..data.loaders import TrainLoader, build_test_loader
from ..evaluation import carries_nms, record_weights, weights_digest, without_nms
from ..modeling.meta_arch import OneNet
from ..utils.errors import ConfigError, DataError, StopTraining, WithoutTraceback
from .accumulation import AccumulatingModel, accumulate_gradients
from .best import BestCheckpoint
from .class_names import dataset_class_names
from .config_loading import config_to_store
from .ema import EMAHook
from .evaluators import (
    NMS_OFF,
    build_evaluator,
    by_dataset,
    check_limits,
    note_dataset,
    results_folder,
)
from .faults import LossGuard, NamedWriter, naming_faults
from .progress import ProgressBar, has_terminal
from .resume import ResumableData, ResumableEvalHook, cut_metrics, share_buffers
from .solver import (
    build_optimizer,
    check_optimizer_state,
    group_settings,
    set_group_settings,
)
from .startup import last_checkpoint
from .tracking import Tracker, tracker_classes
from .training_pictures import TrainingPictures

__all__ = ["Trainer"]


@contextlib.contextmanager
def _name_missing_files() -> Iterator[None]:
    """Turns the error of a dataset's missing file into one that says where it is looked for."""
    try:
        yield
    except FileNotFoundError as error:
        root = os.getenv("DETECTRON2_DATASETS", "datasets")
        raise DataError(
            f"The dataset's file {error.filename} is missing; datasets are looked for in the folder"
            f" that the environment variable DETECTRON2_DATASETS names (now '{root}')."
        ) from error


_WITHOUT_TRACEBACK = WithoutTraceback()  # one object, which a logger adds only once


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with OneNet's loaders, optimiser, hooks and evaluators."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: from :func:`setup` or :func:`onenet.engine.load_config`.
        """
        # Not DefaultTrainer.__init__, which passes device ids to DDP even on a CPU
        TrainerBase.__init__(self)
        logging.getLogger("detectron2.engine.train_loop").addFilter(_WITHOUT_TRACEBACK)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._is_resumed = False
        self.ema: EMAHook | None = None  # build_hooks sets it
        self._trackers: list[Tracker] = []  # and these, in the main process

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        devices = None
        if cfg.MODEL.DEVICE != "cpu" and comm.get_world_size() > 1:
            # Detectron2's default is the local rank; srun may show each worker its own GPU alone
            devices = [torch.cuda.current_device()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        inner = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = inner(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.register_hooks(self.build_hooks())
        accumulate_gradients(self._trainer, cfg)
        if isinstance(loader, TrainLoader):  # a subclass may have another
            # After EMA, which copies the model with its hooks
            guard = LossGuard(self._trainer.model, loader, cfg.OUTPUT_DIR)
            self._trainer.register_hooks([guard])
            self.register_hooks([ResumableData(loader, any_world_size=cfg.SOLVER.ELASTIC)])

    @property
    def model(self) -> torch.nn.Module:
        """The trained model, without the wrapper of gradient accumulation."""
        model = self._trainer.model
        return model.module if isinstance(model, AccumulatingModel) else model

    @model.setter
    def model(self, model: torch.nn.Module) -> None:
        if isinstance(self._trainer.model, AccumulatingModel):
            self._trainer.model.module = model
        else:
            self._trainer.model = model

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's metrics writers, with errors that name the file, and those of WRITERS."""
        self._trackers = [tracker(self.cfg) for tracker in tracker_classes(self.cfg)]
        named = [NamedWriter(writer, self.cfg.OUTPUT_DIR) for writer in super().build_writers()]
        return [*named, *self._trackers]

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, with a progress bar if the output is a terminal.

        With SOLVER.EMA_DECAY they evaluate and save the average. A checkpoint's "model" is then the
        average; the weights to resume from are stored beside it.
        """
        cfg = self.cfg
        evaluated, first = self.model, []
        model = getattr(evaluated, "module", evaluated)  # without DDP
        if cfg.SOLVER.EMA_DECAY > 0:
            self.ema = EMAHook(model, cfg.SOLVER.EMA_DECAY)
            evaluated, first = self.ema.average, [self.ema]
        if cfg.VIS_PERIOD > 0 and isinstance(model, OneNet) and comm.is_main_process():
            first.append(TrainingPictures(model, cfg.VIS_PERIOD))
        # Detectron2 saves the hooks' state, which includes the trained weights of EMA
        self.checkpointer = OneNetCheckpointer(
            evaluated,
            cfg.OUTPUT_DIR,
            class_names=dataset_class_names(cfg.DATASETS.TRAIN),
            config=config_to_store(cfg),
            new_classes=True,
            input_format=cfg.INPUT.FORMAT,
            trainer=weakref.proxy(self),
        )

        def evaluate() -> dict:
            share_buffers(evaluated)
            self._last_eval_results = self.test(cfg, evaluated)
            return self._last_eval_results

        built, best = super().build_hooks(), None
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.EvalHook):
                built[i] = ResumableEvalHook(cfg.TEST.EVAL_PERIOD, evaluate, self._metrics_file)
                if cfg.TEST.BEST_METRIC and cfg.DATASETS.TEST:
                    best = BestCheckpoint(
                        cfg.TEST.BEST_METRIC,
                        period=cfg.TEST.EVAL_PERIOD,
                        patience=cfg.SOLVER.PATIENCE,
                        checkpointer=self.checkpointer,
                        metrics_file=self._metrics_file,
                    )
                    built.insert(i + 1, best)
                break
        if comm.is_main_process() and has_terminal():
            first.insert(0, ProgressBar(best))
        return [*first, *built]

    @property
    def _metrics_file(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")

    def resume_or_load(self, resume: bool = True) -> None:
        """See Detectron2's. With SOLVER.EMA_DECAY the average starts from the loaded weights.

        A resumed run uses the config's BASE_LR and other settings of the optimizer, not the
        checkpoint's.

        Raises:
            ConfigError: the weights do not fit; or the checkpoint to resume from is of another
                model, optimizer or other classes.
        """
        base_lrs = list(self.scheduler.base_lrs)
        settings = group_settings(self._trainer.optimizer)
        last = last_checkpoint(self.cfg) if resume else ""
        self.checkpointer.exact = bool(last)
        super().resume_or_load(resume)
        if last:
            self._check_same_classes(last)
            if changed := set_group_settings(self._trainer.optimizer, settings):
                logging.getLogger(__name__).info(
                    f"The config's SOLVER differs from before: goes on with {', '.join(changed)}."
                )
        elif not self.cfg.MODEL.WEIGHTS:
            self._warn_of_frozen()
        self._is_resumed = resume
        if self.scheduler.base_lrs != base_lrs:  # those of the checkpoint
            self.scheduler.base_lrs = base_lrs
            groups = self._trainer.optimizer.param_groups
            for group, base_lr, lr in zip(groups, base_lrs, self.scheduler.get_lr(), strict=True):
                group.update(initial_lr=base_lr, lr=lr)
            logging.getLogger(__name__).info(
                f"SOLVER.BASE_LR is another than before: goes on with {self.cfg.SOLVER.BASE_LR:g}."
            )
        if self.ema is not None and self.ema.steps == 0:  # no checkpoint, or one without average
            self.ema.model.load_state_dict(self.ema.average.state_dict())

    def _check_same_classes(self, checkpoint: str) -> None:
        before = self.checkpointer.loaded_class_names
        now = dataset_class_names(self.cfg.DATASETS.TRAIN)
        if before is None:
            logging.getLogger(__name__).warning(
                f"{checkpoint} does not have the names of its classes: that the training data has"
                " the same is not checked."
            )
        elif now is not None and before != now:
            raise ConfigError(
                f"--resume: {checkpoint} is of the classes {before}, but the training data has"
                f" {now}; start a new run with another OUTPUT_DIR, and the checkpoint as"
                " MODEL.WEIGHTS."
            )

    def _warn_of_frozen(self) -> None:
        pretrained = self.cfg.MODEL.TIMM.PRETRAINED and "timm" in self.cfg.MODEL.BACKBONE.NAME
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        if frozen and not pretrained:
            logging.getLogger(__name__).warning(
                f"MODEL.WEIGHTS is empty, but {len(frozen)} weights are frozen, the first is"
                f" {frozen[0]}: they stay random; set MODEL.BACKBONE.FREEZE_AT to 0."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See Detectron2's.

        Raises:
            ConfigError: the optimizer's state is missing, or not of this model.
        """
        state = state_dict.get("_trainer", {}).get("optimizer")
        check_optimizer_state(self._trainer.optimizer, state)
        super().load_state_dict(state_dict)

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
        """Evaluates on DATASETS.TEST; a detector with NMS again with its NMS off.

        With TEST.END_TO_END.ENABLED, the first pass writes score thresholds to
        ``<OUTPUT_DIR>/inference/thresholds.json`` (:mod:`onenet.evaluation.thresholds`), and the
        second pass writes to ``<OUTPUT_DIR>/inference/nms_off``. With ``evaluators`` there is only
        the first pass, without thresholds.

        Args:
            cfg: the config.
            model: with weights; may be wrapped in DDP.
            evaluators: one per dataset, instead of :meth:`build_evaluator`'s.

        Returns:
            Task -> metric -> value, below the datasets' names if there are several. The second pass
            adds the tasks "bbox_nms_off" and "end_to_end_nms_off". Only the main process has
            metrics.
        """
        with naming_faults(cfg.OUTPUT_DIR):
            results = super().test(cfg, model, evaluators)
            if evaluators is None and comm.is_main_process():
                for name in cfg.DATASETS.TEST:
                    note_dataset(cfg, name)
            if evaluators is not None or not cfg.TEST.END_TO_END.ENABLED or not cfg.DATASETS.TEST:
                return results
            if comm.is_main_process():
                digest = weights_digest(model)
                for name in cfg.DATASETS.TEST:
                    record_weights(results_folder(cfg, name), digest)
            if not carries_nms(model):
                return results
            logging.getLogger(__name__).info(
                "The detector carries NMS: once more, with NMS off. All that follows is without it."
            )
            evaluators = [build_evaluator(cfg, name, NMS_OFF) for name in cfg.DATASETS.TEST]
            with without_nms(model):
                nms_off = super().test(cfg, model, evaluators)
            for name, tasks in by_dataset(cfg, nms_off).items():
                by_dataset(cfg, results)[name].update(
                    {f"{task}_nms_off": metrics for task, metrics in tasks.items()}
                )
            return results

    def train(self) -> dict | None:
        """Trains, evaluates, and checks the last results against TEST.LIMITS.

        Returns:
            The results, in the main process and if TEST.EXPECTED_RESULTS is set.

        Raises:
            ConfigError, LimitError: see :func:`check_limits`; the model has been saved.
            TrainingError: NaN loss, full disk or lost worker.
        """
        if comm.is_main_process():
            cut_metrics(self._metrics_file, self.start_iter if self._is_resumed else math.inf)
        last = os.path.basename(last_checkpoint(self.cfg))
        if self.start_iter >= self.max_iter and last != "model_final.pth":
            # Interrupted between the last iteration's checkpoint and the equal model_final
            self.checkpointer.save("model_final", iteration=self.iter)
        for tracker in self._trackers:
            tracker.start(self._is_resumed)
        results = None
        with naming_faults(self.cfg.OUTPUT_DIR):
            try:
                results = super().train()
            except StopTraining:
                logging.getLogger(__name__).info(
                    f"{self.cfg.TEST.BEST_METRIC} has not risen for SOLVER.PATIENCE"
                    f" ({self.cfg.SOLVER.PATIENCE}) evaluations: the training ends here."
                )
                self.checkpointer.save("model_final", iteration=self.iter)
        self._tell_of_skipped()
        if self.cfg.TEST.LIMITS:
            check_limits(self.cfg, self._last_eval_results)
        return results

    def _tell_of_skipped(self) -> None:
        """Logs the images skipped by all workers since the run was started or resumed."""
        of_workers = comm.gather(getattr(self.data_loader, "skipped", {}))
        counts = sum(map(Counter, of_workers), Counter())
        if counts:
            logging.getLogger(__name__).warning(
                f"{len(counts)} images could not be used, and others took their place"
                f" {counts.total()} times: {' '.join(sorted(counts))}"
            )
