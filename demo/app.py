#!/usr/bin/env python
"""A page in the browser: drop an image, move the threshold, switch NMS on and off.

python demo/app.py --weights output/photos/model_best.pth [--port 7860] [--host 127.0.0.1] \\
    [--config-file configs/digits/recommended_R18_FPN.yaml] [KEY value ...]

Needs Gradio: pip install 'gradio>=6'.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from onenet.evaluation import carries_nms, without_nms
from onenet.modeling.meta_arch import OneNet
from onenet.predictor import Predictor, keep, load_predictor_config
from onenet.utils.errors import ConfigError, DataError, exit_with_one_sentence
from onenet.utils.visualizer import draw_detections, enlarged_height

SMALLEST_PICTURE = 640  # pixels of height; the page scales it to its width
HINT = "Drop an image into the field, or click on it to choose one."


@dataclass(frozen=True)
class Found:
    """What the model says about an image; thresholds come afterwards.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        without_nms: detections, best first, in pixels of the image.
        with_nms: those of them that class-wise NMS leaves.
        seconds: that the model took without NMS.
    """

    image: np.ndarray
    without_nms: Instances
    with_nms: Instances
    seconds: float


class Demo:
    """What the page shows, without the page."""

    def __init__(self, cfg: CfgNode, weights: str = "") -> None:
        """Takes the arguments of :class:`onenet.predictor.Predictor`, and raises what it does."""
        self.predictor = Predictor(cfg, weights)
        model = self.predictor.model
        self.starts_with_nms = carries_nms(model)
        self.limit = model.max_detections_per_image
        if isinstance(model, OneNet):  # NMS follows the limit
            model.nms_thresh = self.nms_thresh = cfg.MODEL.ONENET.NMS_THRESH_TEST
        else:  # The limit follows NMS: here it follows the thresholds, so that none is missing
            model.max_detections_per_image = None
            self.nms_thresh = model.test_nms_thresh

    @property
    def start_threshold(self) -> float:
        """Where the slider starts: the median of the classes' thresholds."""
        return round(statistics.median(self.predictor.thresholds()), 2)

    def detect(self, path: str | None) -> Found | str:
        """Runs the model on an image file, without NMS and with it.

        Args:
            path: of the file; None for none.

        Returns:
            What it found, or the sentence to show instead.
        """
        if path is None:
            return HINT
        try:
            image = self.predictor.read(path)
            start = time.perf_counter()
            with without_nms(self.predictor.model):
                detections = self.predictor(image)
            seconds = time.perf_counter() - start
            # Twice, since NMS comes before boxes are cut at the image's border.
            return Found(image, detections, self.predictor(image), seconds)
        except DataError as error:
            return f"**{error}**"

    def select(self, found: Found, threshold: float | None, nms: bool) -> tuple[Instances, str]:
        """Applies thresholds and NMS, without running the model.

        Args:
            found: from :meth:`detect`.
            threshold: for all classes; None for one a class, see
                :meth:`onenet.predictor.Predictor.thresholds`.
            nms: whether NMS follows.

        Returns:
            The detections left, best first, and what to say about them.
        """
        # Class-wise NMS removes for the sake of better scores of the same class only: before or
        # behind the thresholds it leaves the same.
        thresholds = self.predictor.thresholds(threshold)
        above, survivors = keep(found.without_nms, thresholds), keep(found.with_nms, thresholds)
        left = survivors if nms else above
        shown = left[: self.limit]
        removed = len(above) - len(survivors)
        text = (
            f"**{len(shown)} detection{'' if len(shown) == 1 else 's'}.**"
            f" NMS {'removed' if nms else 'would remove'}"
            f" {f'{removed} of {len(above)}' if removed else 'nothing'}"
            f" (IoU above {self.nms_thresh:g}, within a class)."
        )
        if len(shown) < len(left):
            text += f" The {self.limit} best are shown."
        return shown, f"{text} The model took {found.seconds:.2f} s."

    def show(
        self, found: Found | str, threshold: float | None, nms: bool
    ) -> tuple[np.ndarray | None, str]:
        """Draws what :meth:`select` leaves.

        Args:
            found: from :meth:`detect`.
            threshold: see :meth:`select`.
            nms: see :meth:`select`.

        Returns:
            The picture, RGB, or None, and what to say about it.
        """
        if isinstance(found, str):
            return None, found
        shown, text = self.select(found, threshold, nms)
        height = enlarged_height(found.image, SMALLEST_PICTURE)
        return draw_detections(found.image, shown, self.predictor.class_names, height), text


def import_gradio() -> Any:
    """The optional package.

    Raises:
        ConfigError: it is missing, or too old.
    """
    advice = "the page needs version 6 or later: pip install 'gradio>=6'"
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"Gradio cannot be imported ({error}); {advice}.") from error
    if int(gradio.__version__.split(".")[0]) < 6:
        raise ConfigError(f"Gradio is {gradio.__version__}; {advice}.")
    return gradio


def build_page(demo: Demo) -> Any:
    """The page, a ``gradio.Blocks``; see :func:`import_gradio` for errors."""
    gr = import_gradio()
    predictor = demo.predictor

    def redraw(
        found: Found | str, threshold: float, calibrated: bool, nms: bool
    ) -> tuple[np.ndarray | None, str]:
        return demo.show(found, None if calibrated else threshold, nms)

    def upload(
        path: str | None, threshold: float, calibrated: bool, nms: bool
    ) -> tuple[Found | str, np.ndarray | None, str]:
        found = demo.detect(path)
        return found, *redraw(found, threshold, calibrated, nms)

    # Uploads are deleted an hour later.
    with gr.Blocks(title="OneNet", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {type(predictor.model).__name__}\nObject detection, with NMS as a switch.")
        found = gr.State(HINT)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Image", file_types=["image"], type="filepath", height=160)
                threshold = gr.Slider(
                    0, 1, demo.start_threshold, step=0.01, label="Score threshold, all classes"
                )
                calibrated = gr.Checkbox(
                    predictor.calibrated is not None,
                    label="Calibrated thresholds, one a class",
                    info="Those of best F1; moving the slider switches them off.",
                    visible=predictor.calibrated is not None,
                )
                nms = gr.Checkbox(demo.starts_with_nms, label="NMS")
                text = gr.Markdown(HINT)
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    height="75vh",
                    buttons=["fullscreen", "download"],  # not "share", which uploads
                )
        settings = [threshold, calibrated, nms]
        # Gradio runs one event of a kind at a time: the network, which only this one needs, has
        # one user at a time.
        file.change(upload, [file, *settings], [found, picture, text])
        threshold.input(lambda: False, None, calibrated, queue=False)
        gr.on(
            [threshold.change, calibrated.change, nms.change],
            redraw,
            [found, *settings],
            [picture, text],
            trigger_mode="always_last",
            show_progress="hidden",
        )
    return page


def serve(page: Any, host: str, port: int) -> None:
    """Shows the page until it is interrupted.

    Raises:
        ConfigError: the port is taken.
    """
    gr = import_gradio()
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # no images kept in the browser
    # Fonts of the browser's own machine: the default theme's come from Google.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            theme=theme,
            footer_links=[],
            ssr_mode=False,  # else it would start node, where there is one
            quiet=True,  # it would advertise public links
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ConfigError(
            f"The page cannot be served at {host}:{port}: the port is taken, or the address not"
            " this machine's; choose others with --port and --host."
        ) from error
    print(f"Open {page.local_url} in a browser; Ctrl+C ends.", flush=True)
    page.block_thread()


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="", help="of the training (default: the one in the checkpoint)"
    )
    parser.add_argument("--weights", default="", help="a checkpoint (default: MODEL.WEIGHTS)")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY value ...")
    return parser.parse_args(words)


def load_demo(args: argparse.Namespace) -> Demo:
    """The demo of the command line's checkpoint."""
    if not args.weights and not args.config_file:
        raise ConfigError("Name a checkpoint with --weights.")
    config_file, with_data = args.config_file or args.weights, bool(args.config_file)
    return Demo(load_predictor_config(config_file, args.opts, with_data), args.weights)


def main(words: Sequence[str] | None = None) -> None:
    args = parse_arguments(words)
    import_gradio()  # before the model is loaded
    demo = load_demo(args)
    print(demo.predictor.calibration_note)
    serve(build_page(demo), args.host, args.port)


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
