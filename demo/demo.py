#!/usr/bin/env python
"""Detects on images, a video or a webcam with a trained checkpoint, and draws what it finds.

python demo/demo.py --weights output/digits/model_final.pth --input a.jpg 'folder/*.png' \\
    --output pictures [--config-file configs/digits/recommended_R18_FPN.yaml] [KEY value ...]

Images that cannot be read are left out, and told at the end; the exit code is 1 then. Without
--output the pictures are shown in windows: any key goes on, Esc or q ends.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from onenet import Detector
from onenet.cli.image_files import (
    find_images,
    is_file_name,
    make_folder,
    plan_outputs,
    split_overrides,
)
from onenet.cli.predict import add_threshold, detect_and_draw, load_detector, predict_images
from onenet.utils.errors import ConfigError, DataError, exit_with_one_sentence

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}  # those that OpenCV's own packages can write
WINDOW = "OneNet"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="", help="of the training (default: the one in the checkpoint)"
    )
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
    add_threshold(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    args = parser.parse_args(words)
    if args.input is not None:
        args.input, overrides = split_overrides(args.input)
        args.opts = overrides + args.opts
        if not args.input:
            parser.error("argument --input: expected at least one image")
    return args


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
    detector: Detector,
    capture: cv2.VideoCapture,
    output: Path | None,
) -> None:
    fps = capture.get(cv2.CAP_PROP_FPS)
    writer, number = None, 0
    try:
        for number, frame in enumerate(frames(capture), start=1):
            picture, words = detect_and_draw(detector, frame)
            print(f"frame {number}: {words}")
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

    detector = load_detector(args)
    if args.input is not None:
        predict_images(detector, images, outputs, lambda picture: show(picture, 0))
    else:
        run_on_video(detector, capture, first_output)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
