"""``onenet-detect``: detects on images, videos and webcams from the command line."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .coco import Annotations, image_ids_of_names, write_json
from .detector import Detector
from .errors import AnnotationsError, printable
from .jobs import WINDOW, Job, Quit, Run, plural, run_jobs
from .metadata import ModelMetadata
from .sources import Source, UsageError, expand, output_names

try:
    import av
except ImportError:  # only video files need it
    av = None  # type: ignore[assignment]
try:
    import cv2
except ImportError:  # only webcams and --show need it
    cv2 = None  # type: ignore[assignment]

__all__ = ["main"]

_EPILOG = """\
inputs:
  street.jpg           an image, in any format of Pillow
  images/              the images of a folder, not those of folders within
  'images/**/*.jpg'    a pattern, in quotes
  drive.mp4            a video
  0, webcam:0          the first webcam; Ctrl-C, or q in the window, ends it

exit code: 0 all done, 1 some or all inputs failed (listed at the end), 2 the command line or the
model is wrong, 130 interrupted, 141 nobody reads the output any more; what was done is kept
"""
_DEVICES = {
    "auto": None,
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_INTERRUPTED, _BROKEN_PIPE = 130, 141  # 128 and the number of the signal, as in a shell


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: arguments, without the program's name; None for the process's.
    """
    args = _parser().parse_args(argv)
    _silence()
    try:
        detector = _detector(args)
        run, jobs = _plan(args, detector)
    except ValueError as error:  # all errors of this package are
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    try:
        interrupted = _execute(run, jobs, args.json)
        _report_failures(run)
    except BrokenPipeError:  # the reader of stdout or stderr has gone, as in "| head -1"
        with suppress(BrokenPipeError):
            _report_failures(run)
        _drop_output()
        return _BROKEN_PIPE
    return _INTERRUPTED if interrupted else int(bool(run.failures))


def _detector(args: argparse.Namespace) -> Detector:
    is_auto = args.threshold == "auto"
    threshold = None if is_auto else args.threshold
    detector = Detector(args.model, threshold=threshold, providers=_providers(args.device))
    if is_auto and detector.predictor.metadata.thresholds is None:
        raise UsageError(
            f"--threshold is auto, but {args.model} has no calibrated thresholds: calibrate them"
            " when exporting, or give a number from 0 to 1."
        )
    return detector


def _silence() -> None:
    """Without what Pillow and OpenCV log of a bad file: what matters is in the ImageError."""
    warnings.filterwarnings("ignore", module="PIL")
    if cv2 is None:
        return
    older = getattr(cv2, "setLogLevel", None)  # OpenCV 4.6 has only this one, 5 only the other
    (older or cv2.utils.logging.setLogLevel)(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onenet-detect",
        description="Detects objects with an exported OneNet.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="the exported model, an ONNX file")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="see below")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="draw the detections there")
    parser.add_argument(
        "--json",
        type=_file,
        metavar="FILE",
        help="write all detections there, whatever the threshold, in COCO's results format",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO annotations to take image ids and, by the classes' names, category ids from",
    )
    parser.add_argument(
        "--threshold",
        type=_threshold,
        help="lowest score that is shown: a number, or auto for each class's calibrated one"
        " (default: auto where the model has them, else 0.3)",
    )
    parser.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="images at once (default: 1)"
    )
    parser.add_argument("--show", action="store_true", help="show the detections in a window")
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or an execution provider of ONNX Runtime by name (default: auto)",
    )
    return parser


def _file(text: str) -> Path:
    with _argument_error(text, "the name of a file"):
        if text.endswith(("/", os.sep)):  # which Path would leave out
            raise ValueError
    return Path(text)


def _threshold(text: str) -> float | str:
    if text == "auto":
        return "auto"
    with _argument_error(text, "a number from 0 to 1, or auto"):
        value = float(text)
        if not 0 <= value <= 1:
            raise ValueError
    return value


def _positive(text: str) -> int:
    with _argument_error(text, "a whole number from 1"):
        value = int(text)
        if value < 1:
            raise ValueError
    return value


@contextmanager
def _argument_error(text: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None


def _providers(device: str) -> list[str] | None:
    return _DEVICES[device] if device in _DEVICES else [device]


def _plan(args: argparse.Namespace, detector: Detector) -> tuple[Run, list[Job]]:
    """The jobs, and the run with the failures of inputs that are none; makes the folders.

    Raises:
        UsageError: the outputs would overwrite something, or cannot be.
        AnnotationsError: the file of annotations is missing or broken, or not of this model.
    """
    if args.annotations and not args.json:
        raise UsageError("--annotations is for the ids in --json: give --json too.")
    sources = expand(args.inputs)
    _check_packages(args, sources)
    outputs = [args.output / n if args.output else None for n in output_names(sources)]
    annotations = Annotations.read(args.annotations) if args.annotations else None
    category_ids = (
        _category_ids(detector.predictor.metadata, annotations, args) if args.json else None
    )
    image_ids, failures = _image_ids(sources, annotations)
    jobs = [
        Job(source, image_ids[source], output)
        for source, output in zip(sources, outputs, strict=True)
        if source in image_ids
    ]
    _check_outputs(args, sources, jobs)
    if args.show:
        _open_window()
    return Run(detector, args.batch, args.show, category_ids, failures=failures), jobs


def _check_packages(args: argparse.Namespace, sources: list[Source]) -> None:
    webcams = [source for source in sources if isinstance(source.location, int)]
    if cv2 is None and (args.show or webcams):
        raise UsageError(
            "Webcams and --show need OpenCV, which cannot be imported: pip install opencv-python."
        )
    videos = [source for source in sources if not source.is_image]
    if av is None and (len(videos) > len(webcams) or (webcams and args.output)):
        raise UsageError(
            "Video files, and --output of webcams, need PyAV, which cannot be imported: pip install"
            " av."
        )


def _category_ids(
    metadata: ModelMetadata, annotations: Annotations | None, args: argparse.Namespace
) -> Sequence[int]:
    """The ids that the annotations have for the model's classes; without annotations, its own."""
    ids = metadata.category_ids
    if annotations is not None:
        return annotations.find_category_ids(metadata.class_names, ids)
    if ids is None:
        raise UsageError(
            f"{args.model} does not have the category ids that --json needs: give annotations"
            " of its data set with --annotations, or export it again where the data set is."
        )
    return ids


def _image_ids(
    sources: list[Source], annotations: Annotations | None
) -> tuple[dict[Source, int | str], list[str]]:
    """The id of each source, and why some have none."""
    ids: dict[Source, int | str] = {}
    failures: list[str] = []
    images = [source for source in sources if source.is_image]
    paths = [Path(str(source)) for source in images]
    if annotations is None:
        ids.update(zip(images, image_ids_of_names(paths), strict=True))
    else:
        for source, path in zip(images, paths, strict=True):
            try:
                ids[source] = annotations.find_image_id(path)
            except AnnotationsError as error:
                failures.append(str(error))
    videos = [source for source in sources if not source.is_image]
    names = Counter(source.name for source in videos)
    ids.update({v: v.name if names[v.name] == 1 else str(v) for v in videos})
    return ids, failures


def _check_outputs(args: argparse.Namespace, sources: list[Source], jobs: list[Job]) -> None:
    """Makes the folders; raises UsageError where a result would overwrite an input or cannot be."""
    read = [Path(args.model), *([args.annotations] if args.annotations else [])]
    read += [source.location for source in sources if isinstance(source.location, Path)]
    inputs = {path.resolve() for path in read}
    written = [job.output for job in jobs if job.output] + ([args.json] if args.json else [])
    for path in written:
        if path.resolve() in inputs:
            raise UsageError(f"{path} is an input and would be overwritten: write elsewhere.")
    if args.output:
        _make_folder(args.output)
    if args.json:
        _make_folder(args.json.parent)
    for path in written:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: give another name of a file.")


def _make_folder(folder: Path) -> None:
    """Makes a folder unless it is there, and tries to write a file in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be made ({error.strerror}): choose another."
        ) from None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".onenet-detect-") as file:
            file.write(b"a full disk refuses this")
    except OSError as error:
        raise UsageError(
            f"No file can be written in the folder {folder} ({error.strerror}): choose another."
        ) from None


def _open_window() -> None:
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error:
        raise UsageError(
            "--show needs an OpenCV with windows: replace opencv-python-headless by opencv-python,"
            " or use --output."
        ) from None


def _execute(run: Run, jobs: list[Job], json_path: Path | None) -> bool:
    """Runs the jobs, writes the results however that ends, prints the speed.

    Returns:
        Whether the user has interrupted it.
    """
    start = time.perf_counter()
    interrupted = False
    try:
        run_jobs(run, jobs)
    except Quit:
        pass
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: what was done until now is kept", file=sys.stderr)
    finally:
        _write_results(run, json_path)
    _report_speed(run, time.perf_counter() - start)
    return interrupted


def _write_results(run: Run, path: Path | None) -> None:
    if path is None:
        return
    try:
        write_json(path, run.results)
    except OSError as error:
        run.fail(OSError(f"{path} cannot be written ({error.strerror}): choose another file."))


def _report_speed(run: Run, elapsed: float) -> None:
    if run.frames:
        print(
            f"{plural(run.frames, 'image')}, {plural(run.objects, 'detection')};"
            f" {run.frames / elapsed:.1f} images a second",
            flush=True,
        )


def _report_failures(run: Run) -> None:
    if run.failures:
        print(f"{plural(len(run.failures), 'input')} failed:", file=sys.stderr)
        for failure in run.failures:
            print(f"  {printable(failure)}", file=sys.stderr)


def _drop_output() -> None:
    """Sends stdout and stderr nowhere where nobody reads them: Python's last flush would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
