#!/usr/bin/env python
"""Detects on images, a video or a webcam with a trained checkpoint, and draws what it finds.

python demo/demo.py --config-file configs/digits/recommended_R18_FPN.yaml \\
    --weights output/digits/model_final.pth --input a.jpg 'folder/*.png' --output pictures \\
    [KEY value ...]

Images that cannot be read are left out, and told at the end; the exit code is 1 then. Without
--output the pictures are shown in windows: any key goes on, Esc or q ends.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import get_cfg
from detectron2.structures import Instances
from PIL import Image

from onenet.data.sample_images import IMAGE_SUFFIXES
from onenet.predictor import Predictor, keep, load_predictor_config
from onenet.utils.errors import ConfigError, DataError, exit_with_one_sentence, printable
from onenet.utils.visualizer import draw_detections, enlarged_height

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}  # those that OpenCV's own packages can write
SMALLEST_PICTURE = 384  # pixels of height; below, labels would hide the image
WINDOW = "OneNet"


def score_threshold(text: str) -> float | str:
    """A number in [0, 1], or "auto"."""
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither 'auto' nor a score from 0 to 1")
    return value


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of the training, a yaml file")
    parser.add_argument("--weights", default="", help="a checkpoint (default: MODEL.WEIGHTS)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders of images, or globs"
    )
    source.add_argument("--video-input", metavar="PATH", help="a video file")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument(
        "--output", help="a folder, or a file for a single image or video; default: windows"
    )
    parser.add_argument(
        "--threshold",
        type=score_threshold,
        default=None,
        metavar="auto|SCORE",
        help="lowest score shown; auto: for each class that of best F1, which the evaluation of"
        " these weights found (default: auto where it did, else 0.3)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    args = parser.parse_args(words)
    if args.input is not None:
        args.input, overrides = split_overrides(args.input)
        args.opts = overrides + args.opts
        if not args.input:
            parser.error("argument --input: expected at least one image")
    return args


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Splits what --input took into paths and the config overrides behind them."""
    nodes = set(get_cfg())
    for i, word in enumerate(words):
        if word.split(".")[0] in nodes and not os.path.exists(word):
            return words[:i], words[i:]
    return words, []


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders and globs name, in this order, each once."""
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():  # a name may have brackets
            matches = [path]
        else:
            matches = [
                Path(p) for p in sorted(glob.glob(text, recursive=True)) if os.path.isfile(p)
            ]
        if not matches:
            what = "the folder has no images" if path.is_dir() else "there is no such file"
            raise ConfigError(f"--input {text}: {what}.")
        found.update(dict.fromkeys(matches))
    return list(found)


def plan_outputs(images: Sequence[Path], output: str | None) -> list[Path | None]:
    """Where each image's picture goes; None for a window."""
    if output is None:
        return [None] * len(images)
    target = Path(output)
    known = target.suffix.lower() in IMAGE_SUFFIXES
    if is_file_name(target) and (known or len(images) == 1):
        if len(images) > 1:
            raise ConfigError(
                f"--output {output} is one file, but there are {len(images)} images; name a folder."
            )
        if not known:
            raise ConfigError(
                f"--output {output}: '{target.suffix}' is no type of image; use .png."
            )
        planned = [target]
    else:
        planned, taken = [], set()
        for image in images:
            name, number = f"{image.stem}.png", 1
            while name in taken:  # from another folder, or of another type
                number += 1
                name = f"{image.stem}_{number}.png"
            taken.add(name)
            planned.append(target / name)
    sources = {image.resolve() for image in images}
    for path in planned:
        if path.resolve() in sources:
            raise ConfigError(f"--output would overwrite the input {path}; name another folder.")
    return planned


def is_file_name(path: Path) -> bool:
    return bool(path.suffix) and not path.is_dir()


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: cannot make {folder} ({error.strerror}).") from error


def open_window() -> None:
    """Opens the window for the pictures.

    Raises:
        ConfigError: there is no screen, or OpenCV has been built without windows.
    """
    # With a GUI but without a screen OpenCV would end the process.
    no_screen = sys.platform.startswith("linux") and not (
        os.getenv("DISPLAY") or os.getenv("WAYLAND_DISPLAY")
    )
    try:
        if no_screen:
            raise ConfigError(
                "There is no screen to show pictures on; name a folder with --output."
            )
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise ConfigError(
            "This OpenCV has no windows (opencv-python-headless has none, opencv-python does);"
            " name a folder with --output."
        ) from error


def show(picture: np.ndarray, wait_ms: int) -> bool:
    """Shows an RGB picture for some time, 0 for until a key; False if the user wants to end."""
    cv2.imshow(WINDOW, np.ascontiguousarray(picture[:, :, ::-1]))
    return cv2.waitKey(wait_ms) not in (27, ord("q"))


def detect_and_draw(
    predictor: Predictor, image: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, Instances, float]:
    """The picture, the detections in it, and the seconds that detecting took."""
    start = time.perf_counter()
    detections = predictor(image)
    seconds = time.perf_counter() - start
    shown = keep(detections, thresholds)
    height = enlarged_height(image, SMALLEST_PICTURE)
    return draw_detections(image, shown, predictor.class_names, height), shown, seconds


def summary(shown: Instances, seconds: float) -> str:
    return f"{len(shown)} detection{'' if len(shown) == 1 else 's'} in {seconds:.2f} s"


def run_on_images(
    predictor: Predictor,
    images: Sequence[Path],
    outputs: Sequence[Path | None],
    thresholds: Sequence[float],
) -> None:
    failures = []
    for path, output in zip(images, outputs, strict=True):
        try:
            picture, shown, seconds = detect_and_draw(
                predictor, predictor.read(str(path)), thresholds
            )
        except DataError as error:
            failures.append(f"{path}: {error}")
            continue
        print(printable(f"{path}: {summary(shown, seconds)}"))
        if output is not None:
            try:
                Image.fromarray(picture).save(output)
            except OSError as error:
                failures.append(f"{path}: cannot write {output} ({error.strerror or error})")
        elif not show(picture, 0):
            break
    if failures:
        raise DataError(f"{len(failures)} of {len(images)} images failed:\n" + "\n".join(failures))


def frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames, RGB."""
    while True:
        there_is_one, frame = capture.read()
        if not there_is_one:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


def open_video(path: str | None) -> cv2.VideoCapture:
    """Opens a video file; without a path the first camera."""
    if path is not None and not os.path.isfile(path):
        raise ConfigError(f"--video-input: there is no file '{path}'.")
    capture = cv2.VideoCapture(0 if path is None else path)
    if not capture.isOpened():
        if path is None:
            raise ConfigError("--webcam: OpenCV finds no camera.")
        raise DataError(f"The video {path} cannot be read: OpenCV does not know its format.")
    return capture


def plan_video_output(source: str | None, output: str | None) -> Path | None:
    """Where the video goes; None for a window."""
    if output is None:
        return None
    target = Path(output)
    if not is_file_name(target):
        target = target / f"{Path(source).stem if source else 'webcam'}.mp4"
    if target.suffix.lower() not in CODECS:
        raise ConfigError(f"--output {output}: give a file that ends in {' or '.join(CODECS)}.")
    if source is not None and target.resolve() == Path(source).resolve():
        raise ConfigError(f"--output would overwrite the input {source}; name another file.")
    return target


def open_writer(path: Path, fps: float, picture: np.ndarray) -> cv2.VideoWriter:
    codec = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
    writer = cv2.VideoWriter(str(path), codec, fps, (picture.shape[1], picture.shape[0]))
    if not writer.isOpened():
        raise ConfigError(f"--output: OpenCV cannot write the video {path}.")
    return writer


def run_on_video(
    predictor: Predictor,
    capture: cv2.VideoCapture,
    output: Path | None,
    thresholds: Sequence[float],
) -> None:
    fps = capture.get(cv2.CAP_PROP_FPS)
    writer, number = None, 0
    try:
        for number, frame in enumerate(frames(capture), start=1):
            picture, shown, seconds = detect_and_draw(predictor, frame, thresholds)
            print(f"frame {number}: {summary(shown, seconds)}")
            if output is None:
                if not show(picture, 1):
                    break
                continue
            if writer is None:
                # Cameras may not know their rate
                writer = open_writer(output, fps if fps > 0 else 25.0, picture)
            writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
    except KeyboardInterrupt:  # how one stops a camera: what has been written is kept
        print("Stopped.")
        return
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if number == 0:  # OpenCV opens nearly everything
        raise DataError("OpenCV finds no frame in the video.")


def main(words: list[str] | None = None) -> None:
    args = parse_arguments(words)
    # What can be wrong is told before the model is loaded.
    if args.input is not None:
        images = find_images(args.input)
        outputs = plan_outputs(images, args.output)
        first_output = outputs[0]
    else:
        capture = open_video(args.video_input)
        first_output = plan_video_output(args.video_input, args.output)
    if first_output is None:
        open_window()
    else:
        make_folder(first_output.parent)

    predictor = Predictor(load_predictor_config(args.config_file, args.opts), args.weights)
    if args.threshold == "auto" and predictor.calibrated is None:
        raise ConfigError(f"--threshold auto: {predictor.calibration_note}")
    if args.threshold in (None, "auto"):
        print(predictor.calibration_note)
        args.threshold = None
    thresholds = predictor.thresholds(args.threshold)
    if args.input is not None:
        run_on_images(predictor, images, outputs, thresholds)
    else:
        run_on_video(predictor, capture, first_output, thresholds)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
