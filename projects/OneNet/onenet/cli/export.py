"""``onenet export``: writes a trained OneNet as ONNX, torch.export or TorchScript, or as a page."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from ..export import FORMATS, ExportOptions, check_output, export_checked, write_page
from ..predictor import load_predictor_config
from ..utils.errors import ConfigError
from .image_files import make_folder

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options, which tools/export.py has too."""
    parser.add_argument(
        "--output",
        type=Path,
        help="file that ends in " + ", ".join(f"{k} ({v})" for k, v in FORMATS.items()),
    )
    parser.add_argument(
        "--web",
        type=Path,
        metavar="FOLDER",
        help="write a page that runs the .onnx file in the browser; WEIGHTS may be such a file",
    )
    parser.add_argument(
        "--ort-web",
        type=Path,
        metavar="FOLDER",
        help="of the npm package onnxruntime-web, for --web (default: npm fetches it)",
    )
    parser.add_argument("--half", action="store_true", help="float16 in backbone and head")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="int8 in the convolutions of backbone and head (.onnx); needs --calibration and a"
        " validation set, for the loss of AP",
    )
    parser.add_argument(
        "--calibration", metavar="FOLDER", help="images of the training set, for --int8"
    )
    parser.add_argument(
        "--images", help="folder with images for the check (default: the first of DATASETS.TEST)"
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="compare the AP on DATASETS.TEST as well; with --half it decides alone",
    )
    parser.add_argument(
        "--thresholds",
        default="auto",
        help="file with calibrated thresholds, 'none', or 'auto': the ones that an evaluation of"
        " these weights left beside them (default)",
    )
    parser.add_argument(
        "--box-tolerance",
        type=float,
        help="share of an image's longer side (default: 0.001; in float16 0.005)",
    )
    parser.add_argument("--score-tolerance", type=float, help="(default: 0.0001; in float16 0.01)")
    parser.add_argument(
        "--ap-tolerance",
        type=float,
        help="(default: 0.1; in float16 0.3 and in int8 0.5, where a higher AP is no failure)",
    )


def run(args: argparse.Namespace) -> None:
    """Exports ``args.weights``; see :func:`onenet.export.export_checked`."""
    if args.web and args.weights.endswith(".onnx"):
        if args.output or args.half or args.int8:
            raise ConfigError(
                f"{args.weights} is exported already: give --web alone, or a checkpoint for"
                " --output, --half and --int8."
            )
        _write_page(args, Path(args.weights))
        return
    if args.web and args.output is None:
        make_folder(args.web)
        args.output = args.web / "model.onnx"
    if args.output is None:
        raise ConfigError("Give --output FILE, --web FOLDER, or both.")
    if args.web and args.output.suffix != ".onnx":
        raise ConfigError(f"--web needs an .onnx file, and --output is {args.output}.")
    check_output(args.output)
    config_file, opts = args.config_file or args.weights, [*args.opts, "MODEL.DEVICE", "cpu"]
    cfg = load_predictor_config(config_file, opts)
    options = ExportOptions(
        precision=_precision(args),
        calibration=args.calibration,
        images=args.images,
        evaluate=args.evaluate,
        thresholds=args.thresholds,
        box_tolerance=args.box_tolerance,
        score_tolerance=args.score_tolerance,
        ap_tolerance=args.ap_tolerance,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs `finally`, as Ctrl-C does
    export_checked(cfg, args.weights, args.output, options)
    if args.web:
        _write_page(args, args.output)


def _write_page(args: argparse.Namespace, model: Path) -> None:
    make_folder(args.web)
    write_page(model, args.web, args.ort_web)
    print(f"Wrote {args.web}; serve it with: python -m http.server -d {args.web}")


def _precision(args: argparse.Namespace) -> str:
    if args.half and args.int8:
        raise ConfigError("--half and --int8 exclude each other.")
    if args.int8 != bool(args.calibration):
        raise ConfigError("--int8 and --calibration FOLDER need each other.")
    if args.int8 and args.output.suffix != ".onnx":
        raise ConfigError(f"--int8 writes .onnx only, and --output is {args.output}.")
    return "int8" if args.int8 else "float16" if args.half else "float32"
