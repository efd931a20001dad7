"""ONNX files in ONNX Runtime, OpenVINO and onnxruntime-web, and LiteRT's files, on the CPU.

Each opener takes a file, the inputs' shapes (None for any; onnxruntime-web takes images and
image_sizes only) and the number of threads. What it gives maps arrays to arrays.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["Opener", "litert_opener", "onnxruntime_opener", "openvino_opener", "wasm_opener"]

_Run = Callable[..., Sequence[np.ndarray]]
Opener = Callable[[Path, Sequence[tuple[int, ...]] | None, int], _Run]


def onnxruntime_opener() -> Opener:
    """Raises ImportError where it is not installed."""
    import onnxruntime

    def open_file(file: Path, shapes: Sequence[tuple[int, ...]] | None, threads: int) -> _Run:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # Else its threads go on spinning, in the time of whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        names = [entry.name for entry in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))

    return open_file


def openvino_opener() -> Opener:
    """Raises ImportError where it is not installed."""
    import openvino

    def open_file(file: Path, shapes: Sequence[tuple[int, ...]] | None, threads: int) -> _Run:
        core = openvino.Core()
        model = core.read_model(str(file))
        if shapes is not None:
            model.reshape(dict(zip(model.inputs, map(list, shapes), strict=True)))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Else it computes in bfloat16 where the CPU can, which the others do not.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def run(*arrays: np.ndarray) -> list[np.ndarray]:
            results = request.infer(list(arrays), share_inputs=True, share_outputs=True)
            return [results[i] for i in range(len(results))]

        return run

    return open_file


def litert_opener() -> Opener:
    """For .tflite files, which have one size; smaller images are padded to it."""
    from ai_edge_litert.interpreter import Interpreter

    def open_file(file: Path, shapes: Sequence[tuple[int, ...]] | None, threads: int) -> _Run:
        interpreter = Interpreter(str(file), num_threads=threads)
        interpreter.allocate_tensors()
        images, sizes = (
            next(d for d in interpreter.get_input_details() if d["dtype"] == dtype)
            for dtype in (np.uint8, np.int64)
        )
        outputs = {  # converters give them other names, and another order
            (len(d["shape"]), d["dtype"]): d["index"] for d in interpreter.get_output_details()
        }
        wanted = [outputs[3, np.float32], outputs[2, np.float32], outputs[2, np.int64]]

        def run(pixels: np.ndarray, pixel_sizes: np.ndarray) -> list[np.ndarray]:
            gaps = np.subtract(images["shape"], pixels.shape)
            if (gaps < 0).any() or gaps[0]:
                raise ValueError("larger than the file's size")
            interpreter.set_tensor(images["index"], np.pad(pixels, [(0, gap) for gap in gaps]))
            interpreter.set_tensor(sizes["index"], pixel_sizes)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in wanted]

        return run

    return open_file


def wasm_opener(folder: Path) -> Opener:
    """For onnxruntime-web in Node.js; the pixels go through a pipe.

    Args:
        folder: ``node_modules/onnxruntime-web`` of ``npm install onnxruntime-web``.
    """

    def open_file(file: Path, shapes: Sequence[tuple[int, ...]] | None, threads: int) -> _Run:
        command = ["node", Path(__file__).with_name("wasm.mjs"), folder, file, str(threads)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # Else it would outlive `run` in a list of subprocess: Node.js ends as its stdin is closed
        stdin, process.stdin = process.stdin, None

        def read(dtype: type, *shape: int) -> np.ndarray:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            content = process.stdout.read(size)
            if len(content) < size:
                lines = process.communicate()[1].decode(errors="replace").splitlines()
                reason = next((line for line in lines if line.startswith("Error")), "it ended")
                raise RuntimeError(f"onnxruntime-web: {reason}")
            return np.frombuffer(bytearray(content), dtype).reshape(shape)

        def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
            for array in (np.array(images.shape[:3], np.int32), images, sizes):
                stdin.write(np.ascontiguousarray(array))
            stdin.flush()
            n, k = len(images), int(read(np.int32, 1)[0])
            return [read(np.float32, n, k, 4), read(np.float32, n, k), read(np.int64, n, k)]

        read(np.int32, 1)  # the model is loaded
        return run

    return open_file
