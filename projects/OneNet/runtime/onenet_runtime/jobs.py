"""The command line's work: detection on images and videos, drawings and results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .coco import to_results
from .detector import Detections, Detector
from .errors import ImageError, ModelError, printable
from .predictor import Found, keep
from .sources import Source
from .stream import batches, detect_files
from .video import DEFAULT_FPS, VideoReader, VideoWriter

try:
    import cv2
except ImportError:  # only webcams and --show need it
    cv2 = None  # type: ignore[assignment]

__all__ = ["WINDOW", "Job", "Quit", "Run", "plural", "run_jobs"]

WINDOW = "onenet-detect"


class Quit(Exception):
    """The user closed the window."""


@dataclass
class Job:
    """An input, and where its results go."""

    source: Source
    image_id: int | str  # of a video: its name, which those of its frames begin with
    output: Path | None


@dataclass
class Run:
    """What is to be done with each image or frame, and what has been."""

    detector: Detector
    batch: int
    show: bool
    category_ids: Sequence[int] | None  # for the results; None for no results
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    frames: int = 0
    objects: int = 0

    def keep(self, image: np.ndarray, found: Found, image_id: int | str) -> Detections:
        """Keeps all detections of an image for the results, returns those to show."""
        if self.category_ids is not None:
            self.results += to_results(found, image_id, self.category_ids)
        kept = keep(found, self.detector.thresholds)
        shown = Detections(image, kept, self.detector.class_names)
        self.frames += 1
        self.objects += len(shown)
        return shown

    def fail(self, error: Exception) -> None:
        """Notes a failed input."""
        self.failures.append(str(error))


def run_jobs(run: Run, jobs: list[Job]) -> None:
    """The images, then the videos."""
    _run_images(run, [job for job in jobs if job.source.is_image])
    for job in jobs:
        if not job.source.is_image:
            try:
                _run_video(run, job)
            except BrokenPipeError:  # an OSError, but of stdout
                raise
            except (ImageError, ModelError, OSError) as error:
                run.fail(error)


def _run_images(run: Run, jobs: list[Job]) -> None:
    paths = [str(job.source) for job in jobs]
    results = detect_files(run.detector.predictor, paths, run.batch)
    with closing(results):
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, ModelError):
                run.fail(ModelError(f"{job.source}: {result}"))
            elif isinstance(result, ImageError):
                run.fail(result)
            else:
                _show_image(run, job, run.keep(*result, job.image_id))


def _show_image(run: Run, job: Job, detections: Detections) -> None:
    print(printable(f"{job.source}: {_summary(detections.class_names)}"), flush=True)
    if job.output:
        try:
            detections.save(job.output)
        except OSError as error:
            run.fail(error)
    if run.show:
        _show(detections.draw(), wait=0)


def _summary(names: list[str]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
    return f"{plural(len(names), 'detection')}{f' ({counts})' if counts else ''}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _show(picture: np.ndarray, wait: int) -> None:
    """Shows an RGB picture for some milliseconds, 0 for until a key is pressed."""
    cv2.imshow(WINDOW, _swapped(picture))
    if cv2.waitKey(wait) & 0xFF in (ord("q"), 27):
        raise Quit


def _swapped(image: np.ndarray) -> np.ndarray:
    """RGB as BGR, which is OpenCV's order, or the other way round."""
    return np.ascontiguousarray(image[:, :, ::-1])


def _run_video(run: Run, job: Job) -> None:
    before, objects = run.frames, run.objects
    location = job.source.location
    try:
        with (
            _webcam(location) if isinstance(location, int) else _file(location) as (frames, fps),
            VideoWriter(job.output, fps) as writer,
        ):
            for batch in batches(enumerate(frames), run.batch):
                _run_frames(run, job, batch, writer)
    finally:
        if run.frames > before:
            count = plural(run.frames - before, "frame")
            detections = plural(run.objects - objects, "detection")
            print(printable(f"{job.source}: {count}, {detections}"), flush=True)
    if run.frames == before:
        raise ImageError(f"{job.source} has no frame that can be decoded: copy or convert it.")


@contextmanager
def _file(path: Path) -> Iterator[tuple[Iterable[np.ndarray], Fraction]]:
    """RGB frames, and how many there are in a second."""
    if not path.is_file():
        raise ImageError(f"{path} does not exist: check the path.")
    with closing(VideoReader(path)) as reader:
        yield reader, reader.fps
        if reader.fault:
            raise ImageError(reader.fault)


@contextmanager
def _webcam(number: int) -> Iterator[tuple[Iterable[np.ndarray], Fraction]]:
    """As :func:`_file`."""
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise ImageError(f"webcam{number} cannot be opened: check that it is in reach.")
        fps = capture.get(cv2.CAP_PROP_FPS)
        known = 1 <= fps <= 1000  # false for NaN, too
        yield _frames(capture), Fraction(fps).limit_denominator(1001) if known else DEFAULT_FPS
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        decoded, frame = capture.read()
        if not decoded:
            return
        yield _swapped(frame)


def _run_frames(
    run: Run, job: Job, batch: list[tuple[int, np.ndarray]], writer: VideoWriter
) -> None:
    fault = None
    frames: list[np.ndarray] = []
    for _, frame in batch:
        try:
            run.detector.predictor.check(frame, f"A frame of {job.source}")
        except ImageError as error:  # those before it are detected on
            fault = error
            break
        frames.append(frame)
    for (index, frame), found in zip(batch, run.detector.predictor(frames), strict=False):
        detections = run.keep(frame, found, f"{job.image_id}:{index}")
        if job.output or run.show:
            picture = detections.draw(len(frame))
            writer.write(picture)
            if run.show:
                _show(picture, wait=1)
    if fault:
        raise fault
