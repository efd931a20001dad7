"""Resumable train loader, and loaders that can skip broken images.

Detectron2's train loader restarts its image order with every process, and its augmentations depend
on the state of global generators. Here a sample depends only on the run's seed and its number in
the stream, whichever process loads it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.errors import ConfigError, DataError, ImageError
from .mapper import OneNetDatasetMapper
from .record_checks import (
    check_annotations,
    has_objects,
    warn_of_records,
    warn_of_training_set,
)

__all__ = ["TrainLoader", "build_test_loader", "load_records", "seed_random"]

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any]]

_TRIES = 100  # images tried in place of a broken one
_SKIPPED = "skipped"  # a sample's key: messages about the images that it replaces


def seed_random(*numbers: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators by non-negative integers."""
    torch.manual_seed(_seed_numpy(*numbers))


def _seed_numpy(*numbers: int) -> int:
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    return seed


@contextlib.contextmanager
def _random_of(*numbers: int) -> Iterator[None]:
    """Seeds the CPU's global generators, and restores their state afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed_numpy(*numbers))
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


class _Samples(Dataset):
    """Samples of an endless stream, by (number in the stream, index of the record)."""

    def __init__(self, records: Dataset, mapper: Mapper, seed: int, skips: bool) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._skips = skips

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        number, index = place
        with _random_of(self._seed, number):
            if not self._skips:
                return self._mapper(self._records[index])
            return self._first_that_loads(index)

    def _first_that_loads(self, index: int) -> dict[str, Any]:
        skipped: list[str] = []
        for _ in range(_TRIES):
            try:
                return {**self._mapper(self._records[index]), _SKIPPED: skipped}
            except ImageError as error:
                skipped.append(str(error))
            index = int(np.random.randint(len(self._records)))
        raise DataError(
            f"INPUT.ON_BAD_IMAGE is 'skip', but none of {_TRIES} images could be read; the last:"
            f" {skipped[-1]}"
        )


class _Batches(Sampler):
    """Batches of indices for :class:`_Samples`.

    With `is_wide`, a batch has images of one orientation only, as in Detectron2.
    """

    def __init__(
        self, indices: Sampler, batch_size: int, is_wide: np.ndarray | None, start: int
    ) -> None:
        self._indices = indices
        self._batch_size = batch_size
        self._is_wide = is_wide
        self._start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all(), self._start, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        groups: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for count, index in enumerate(self._indices):
            group = groups[self._is_wide is not None and bool(self._is_wide[index])]
            group.append((count * world_size + rank, index))
            if len(group) == self._batch_size:
                yield group.copy()
                group.clear()


class TrainLoader:
    """Endless training batches; batch n depends only on config, seed and n.

    So a resumed run sees the same images with the same augmentations as an uninterrupted one, for
    any DATALOADER.NUM_WORKERS. Batches before the first one are skipped without reading images.

    Attributes:
        seed: of order and augmentations; SEED, or drawn. May be set before iterating.
        start: number of the first batch. May be set before iterating.
        batch: the last batch.
        skipped: with INPUT.ON_BAD_IMAGE "skip", the message about each broken image -> number of
            replacements.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None) -> None:
        """
        Args:
            cfg: DATASETS.TRAIN is loaded at once.
            mapper: raises :class:`onenet.utils.errors.ImageError` for broken images; by default
                :class:`onenet.data.mapper.OneNetDatasetMapper`.

        Raises:
            ConfigError: SOLVER.IMS_PER_BATCH is not divisible by the number of workers.
            DataError: no image has an object that is no crowd region; or an object has no valid box
                or class.
        """
        world_size = comm.get_world_size()
        self._batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, world_size)
        if self._batch_size < 1 or rest:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} workers"
                f" cannot share; give a multiple of {world_size}."
            )
        self._cfg = cfg
        self._mapper = mapper or OneNetDatasetMapper(cfg, is_train=True)
        records = load_records(cfg)
        self._is_wide = None
        if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
            self._is_wide = np.array([r.get("width", 0) > r.get("height", 0) for r in records])
        self._records = DatasetFromList(records, copy=False)  # compact, shared by all processes
        self.seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
        self.start = 0
        self.batch: list[dict[str, Any]] = []
        self.skipped: dict[str, int] = {}

    def _sampler(self) -> Sampler:
        cfg = self._cfg.clone()
        cfg.defrost()
        cfg.SEED = self.seed  # the seed of one of Detectron2's samplers
        with _random_of(self.seed):  # the seed of the others
            return build_detection_train_loader.from_config(
                cfg, mapper=self._mapper, dataset=self._records
            )["sampler"]

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        skips = self._cfg.INPUT.ON_BAD_IMAGE == "skip"
        loader = DataLoader(
            _Samples(self._records, self._mapper, self.seed, skips),
            batch_sampler=_Batches(self._sampler(), self._batch_size, self._is_wide, self.start),
            num_workers=self._cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            generator=torch.Generator().manual_seed(self.seed),  # not the global generator
        )
        for batch in loader:
            for sample in batch:
                for sentence in sample.pop(_SKIPPED, ()):
                    if sentence not in self.skipped:
                        logger.warning(f"Skipped: {sentence}")
                    self.skipped[sentence] = self.skipped.get(sentence, 0) + 1
            self.batch = batch
            yield batch


def load_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """Loads and checks DATASETS.TRAIN, in Detectron2's standard format.

    Raises:
        DataError: there is nothing to learn, or an object has no valid box or class.
    """
    try:
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    except AssertionError as error:
        if not any(words in str(error) for words in ("No valid data", "is empty")):
            raise
        records = []
    if not has_objects(records):
        raise DataError(
            f"No image of {', '.join(cfg.DATASETS.TRAIN)} has an object that is no crowd region, so"
            " that there is nothing to learn; add annotations, or set iscrowd to 0 where it is 1"
            " for single objects."
        )
    check_annotations(records, cfg)
    warn_of_records(records, cfg, cfg.DATASETS.TRAIN)
    warn_of_training_set(records, cfg)
    return records


def _or_skipped(mapper: Mapper, record: dict[str, Any]) -> dict[str, Any]:
    """Maps a record; a message instead of a broken image."""
    try:
        return mapper(record)
    except ImageError as error:
        return {_SKIPPED: [str(error)]}


class _WithoutBroken:
    """A test loader that skips broken images and logs them at the end."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        skipped, num_images = [], 0
        for batch in self._loader:
            num_images += len(batch)
            for sample in batch:
                skipped.extend(sample.get(_SKIPPED, ()))
            if whole := [sample for sample in batch if _SKIPPED not in sample]:
                yield whole
        # All workers take part, whatever their number of images
        counts = comm.all_gather((skipped, num_images))
        sentences = [sentence for of_worker, _ in counts for sentence in of_worker]
        if sentences:
            logger.warning(
                f"{len(sentences)} of {sum(count for _, count in counts)} images could not be read,"
                f" and count as images in which nothing was found: {' '.join(sentences)}"
            )
        if sentences and len(sentences) == sum(count for _, count in counts):
            raise DataError(f"No image could be read; the first: {sentences[0]}")


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader | _WithoutBroken:
    """Detectron2's test loader with :class:`onenet.data.mapper.OneNetDatasetMapper`.

    With INPUT.ON_BAD_IMAGE "skip", broken images are skipped. Evaluators count them as images
    without detections, so that metrics are not overestimated.

    Args:
        cfg: the config.
        dataset_name: a registered dataset.

    Raises:
        DataError: it has no images, or an object without a valid box or class.
    """
    mapper: Mapper = OneNetDatasetMapper(cfg, is_train=False)
    skips = cfg.INPUT.ON_BAD_IMAGE == "skip"
    if skips:
        mapper = functools.partial(_or_skipped, mapper)
    try:
        parts = build_detection_test_loader.from_config(cfg, dataset_name, mapper=mapper)
    except AssertionError as error:
        if "is empty" not in str(error):
            raise
        raise DataError(f"The dataset '{dataset_name}' has no images; add some.") from error
    check_annotations(parts["dataset"], cfg)
    warn_of_records(parts["dataset"], cfg, [dataset_name])
    loader = build_detection_test_loader(**parts)
    return _WithoutBroken(loader) if skips else loader
