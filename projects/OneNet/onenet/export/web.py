"""A static page that runs an exported detector in the browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import ConfigError

__all__ = ["write_page"]

_PACKAGE = "onnxruntime-web@1.30.0"
_ORT_FILES = [  # of its folder dist: for the CPU, and for WebGPU
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
]


def write_page(model: Path, folder: Path, ort_web: Path | None = None) -> None:
    """Writes the page, the model and onnxruntime-web into a folder, for any static server.

    Args:
        model: an .onnx file of :func:`onenet.export.write_exported`.
        folder: is made; files of an earlier page there are replaced.
        ort_web: folder of the npm package onnxruntime-web; None to fetch it with ``npm pack``.

    Raises:
        ConfigError: the model is no exported ONNX file, or onnxruntime-web is not to be had.
    """
    metadata = _read_metadata(model)
    with _ort_package(ort_web) as package:
        missing = [name for name in _ORT_FILES if not (package / "dist" / name).is_file()]
        if missing:
            raise ConfigError(f"--ort-web: {package} lacks dist/{missing[0]}; name {_PACKAGE}.")
        shutil.copytree(Path(__file__).with_name("page"), folder, dirs_exist_ok=True)
        (folder / "ort").mkdir(exist_ok=True)
        for name in _ORT_FILES:
            shutil.copyfile(package / "dist" / name, folder / "ort" / name)
    if model.resolve() != (folder / "model.onnx").resolve():
        shutil.copyfile(model, folder / "model.onnx")
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")


def _read_metadata(model: Path) -> dict[str, object]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        entries = onnx.load(model).metadata_props
    except (OSError, DecodeError) as error:
        raise ConfigError(f"{model} is no ONNX file that can be read ({error}).") from error
    metadata = {entry.key: json.loads(entry.value) for entry in entries}
    if "onenet_format" not in metadata:
        raise ConfigError(f"{model} is no OneNet of `onenet export`: it lacks the metadata.")
    return metadata


@contextmanager
def _ort_package(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, _PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            raise ConfigError(
                f"npm cannot fetch {_PACKAGE} ({reason.strip().splitlines()[-1]}): name its folder"
                " with --ort-web."
            ) from error
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "package"
