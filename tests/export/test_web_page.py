"""The page of ``onenet export --web`` in a headless Chromium: the runtime's detections."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onenet.cli import main
from onenet.export import ExportableOneNet, Metadata, write_exported, write_page
from onenet.utils.errors import ConfigError

STRONG, MILD = (0, 256), (64, 192)


class Isolated(http.server.SimpleHTTPRequestHandler):
    """With the headers that threads need."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("localhost", 0), partial(Isolated, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def open_page(url: str, requests: list[str], held: list | None = None):
    """Yields it when the model is there, or without, its request ``held`` to be continued."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        path = chromium or playwright.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("needs Chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        if held is not None:
            page.route("**/model.onnx", lambda route: held.append(route))
        page.goto(url)
        page.wait_for_selector(f"#status:has-text('{'Detects' if held is None else 'Loading'}')")
        yield page
        browser.close()


def detect(page, image: Path) -> tuple[np.ndarray, np.ndarray]:
    """All boxes and scores that the page lists."""
    page.evaluate("document.querySelector('#status').textContent = ''")
    page.set_input_files("#file", image)
    page.wait_for_selector("#status:has-text(' ms')")
    return listed(page)


def listed(page) -> tuple[np.ndarray, np.ndarray]:
    page.fill("#threshold", "0")
    items = page.evaluate(
        "[...document.querySelectorAll('#results li')]"
        ".map(item => `${item.dataset.score} ${item.dataset.box}`)"
    )
    rows = np.array([item.split() for item in items], dtype=float).reshape(-1, 5)
    return rows[:, 1:], rows[:, 0]


def shown(page) -> np.ndarray:
    """The picture on the page without boxes, (H, W, 3) uint8."""
    page.fill("#threshold", "1")
    height, width, pixels = page.evaluate(
        "[canvas.height, canvas.width, Array.from(canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data)]"
    )
    return np.array(pixels, dtype=np.uint8).reshape(height, width, 4)[:, :, :3].copy()


def check_same(found: tuple[np.ndarray, np.ndarray], expected) -> None:
    """Boxes within a pixel, scores within 0.01; equal scores may swap."""
    boxes, scores = found
    np.testing.assert_allclose(scores, expected.scores, atol=1e-2)
    clear = expected.boxes[expected.scores > expected.scores[-1] + 1e-2]
    distances = np.abs(boxes[:, None] - clear[None]).max(axis=2)
    assert len(clear) > 5 and distances.min(axis=0).max() < 1


@pytest.fixture
def ort_web(tmp_path_factory) -> Path:
    """Of the environment variable ONENET_ORT_WEB, since a test does not load from the network."""
    if "ONENET_ORT_WEB" not in os.environ:
        pytest.skip("needs ONENET_ORT_WEB, the folder of the npm package onnxruntime-web")
    return Path(os.environ["ONENET_ORT_WEB"])


@pytest.fixture
def model(build, tmp_path: Path) -> Path:
    cfg, network = build("digits/onenet_point_R18", "INPUT.MIN_SIZE_TEST", "96")
    names = [str(i) for i in range(network.head.num_classes)]
    path = tmp_path / "model.onnx"
    write_exported(ExportableOneNet(network), Metadata.from_model(cfg, network, names, None), path)
    return path


@pytest.mark.slow
def test_the_page_finds_what_the_runtime_finds(model, ort_web, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onenet_runtime").Detector(model, threshold=0)
    write_page(model, tmp_path / "page", ort_web)
    requests: list[str] = []
    with serve(tmp_path / "page") as url, open_page(url, requests) as page:
        for i, size in enumerate([(150, 200), (64, 40), (301, 120)]):  # smaller, larger, narrow
            small = torch.randint(256, (3, 1, 9, 7), dtype=torch.uint8)
            pixels = torch.nn.functional.interpolate(small.float(), size, mode="bilinear")
            image = tmp_path / f"{i}.png"
            Image.fromarray(pixels[:, 0].permute(1, 2, 0).byte().numpy()).save(image)
            check_same(detect(page, image), runtime(image))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert requests and all(x.startswith((url, "blob:", "data:")) for x in requests)


@pytest.mark.slow
def test_an_image_chosen_before_the_model_is_there(model, ort_web, tmp_path: Path) -> None:
    """It is shown, and detected on when the model is there, as again with another device."""
    runtime = pytest.importorskip("onenet_runtime").Detector(model, threshold=0)
    write_page(model, tmp_path / "page", ort_web)
    image, held = tmp_path / "image.png", []
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    with serve(tmp_path / "page") as url, open_page(url, [], held) as page:
        page.set_input_files("#file", image)
        page.wait_for_timeout(1000)
        assert "Loading" in page.inner_text("#status")
        assert page.evaluate("canvas.width") == 96
        held[0].continue_()
        page.wait_for_selector("#status:has-text(' ms')")
        check_same(listed(page), runtime(image))
        page.unroute("**/model.onnx")
        page.evaluate("document.querySelector('#results').replaceChildren()")
        page.dispatch_event("#device", "change")
        page.wait_for_selector("#results li")
        check_same(listed(page), runtime(image))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "suffix", "size", "levels"),
    [
        ("libvpx", ".webm", (160, 128), STRONG),
        ("libvpx", ".webm", (160, 128), MILD),
        ("h264", ".mp4", (160, 128), MILD),
        ("vp9", ".webm", (1280, 720), MILD),
    ],
)
def test_a_video_gives_what_the_runtime_finds_in_it(
    codec: str, suffix: str, size: tuple[int, int], levels, model, ort_web, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onenet_runtime").Detector(model, threshold=0)
    pytest.importorskip("av")
    from onenet_runtime.video import VideoReader

    video = write_video(tmp_path / f"video{suffix}", codec, size, levels)
    frames = list(VideoReader(video))
    assert len(frames) == 10
    write_page(model, tmp_path / "page", ort_web)
    requests: list[str] = []
    with serve(tmp_path / "page") as url, open_page(url, requests) as page:
        detect(page, video)
        page.evaluate("document.querySelector('#stop').click()")  # without waiting for rest
        while True:  # until no other frame comes between
            picture, found = shown(page), listed(page)
            if np.array_equal(picture, shown(page)):
                break
    check_same(found, runtime(picture))  # on the browser's frame, whatever its colours
    differences = [np.abs(picture.astype(int) - frame) for frame in frames]
    nearest = int(np.argmin([difference.mean() for difference in differences]))
    assert differences[nearest].mean() < 2 and differences[nearest].max() <= 5
    if levels == MILD:  # Chromium clips strong blues
        check_same(found, runtime(frames[nearest]))
    assert requests and all(x.startswith((url, "blob:", "data:")) for x in requests)


def write_video(path: Path, codec: str, size: tuple[int, int], levels: tuple[int, int]) -> Path:
    """Ten frames of smooth colours, channels between two levels."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for small in np.random.default_rng(0).integers(*levels, (10, 9, 7, 3), dtype=np.uint8):
            picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(ConfigError, match="no ONNX file|lacks the metadata"):
        write_page(file, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_options_of_a_checkpoint_are_refused_with_a_file(tmp_path: Path) -> None:
    file = str(tmp_path / "model.onnx")
    for option in (["--half"], ["--int8"], ["--output", file]):
        with pytest.raises(SystemExit, match="is exported already: give --web alone"):
            main(["export", file, "--web", str(tmp_path / "page"), *option])
    assert not (tmp_path / "page").exists()
