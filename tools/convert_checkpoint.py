#!/usr/bin/env python
"""Converts a checkpoint of the paper's authors to this project, with a report.

python tools/convert_checkpoint.py ORIGINAL.pth \\
    --config-file configs/coco/onenet_fcos_R50_FPN.yaml --output converted.pth \\
    [--report report.txt] [KEY value ...]

The file is read without running code in it. File and model must match in all tensors; otherwise
nothing is written. The report lists names, shapes and conversion of each tensor. See also
docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from detectron2.modeling import build_model

from onenet.checkpoint import OneNetCheckpointer, read_checkpoint
from onenet.checkpoint.convert import Conversion, is_original
from onenet.predictor import load_predictor_config
from onenet.utils.errors import ConfigError, exit_with_one_sentence
from onenet.utils.files import whole_file, write_whole


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("original", help="a .pth file of the authors' code")
    parser.add_argument("--config-file", required=True, help="of the same model in this project")
    parser.add_argument("--output", required=True, type=Path, help="the converted checkpoint")
    parser.add_argument("--report", type=Path, help="text file for the report (default: printed)")
    parser.add_argument("opts", nargs="*", help="config overrides: KEY value ...")
    return parser.parse_intermixed_args()


def convert(original: str, config_file: str, opts: list[str]) -> Conversion:
    """Converts a file for the config's model, which it must fill exactly.

    Raises:
        ConfigError: the config is wrong, or the file is not of the authors' code or of this model.
    """
    if not os.path.isfile(original):
        raise ConfigError(f"There is no file '{original}'.")
    state = read_checkpoint(original)["model"]
    if not is_original(state):
        first = next(iter(state), "none")
        raise ConfigError(
            f"The file {original} is no checkpoint of the authors' code: its {len(state)} tensors"
            f" have other names (the first: {first})."
        )
    cfg = load_predictor_config(config_file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    checkpointer = OneNetCheckpointer(build_model(cfg))
    checkpointer.load(original, checkpointables=[])
    return checkpointer.conversion


def main() -> None:
    args = parse_arguments()
    with exit_with_one_sentence():
        for path in filter(None, (args.output, args.report)):
            if not path.parent.is_dir():
                raise ConfigError(f"There is no folder '{path.parent}' to write {path.name} into.")
            if path.is_dir():
                raise ConfigError(f"'{path}' is a folder; give the path of a file to write.")
        conversion = convert(args.original, args.config_file, args.opts)
        table = conversion.table()
        if args.report is None:
            print(table)
        try:
            if args.report is not None:
                write_whole(str(args.report), table.encode())
            with whole_file(str(args.output)) as file:
                torch.save({"model": conversion.state}, file)
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be written ({error.strerror}): make room, or name"
                " another file."
            ) from error
    print(f"{args.output}: from {conversion.origin}, {conversion.summary()}.")


if __name__ == "__main__":
    main()
