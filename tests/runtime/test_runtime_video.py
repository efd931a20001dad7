"""Video files: colours, damage, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from onenet_runtime import ImageError

av = pytest.importorskip("av")
from onenet_runtime.video import VideoReader, VideoWriter  # noqa: E402

BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
UNTAGGED = {}
TAGS_709, TAGS_601 = (
    dict.fromkeys(("colorspace", "color_primaries", "color_trc"), x) for x in (1, 6)
)


@pytest.fixture
def planes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, U and V of 48 x 64 pixels, none of which gives a colour outside RGB's range."""
    random = np.random.default_rng(0)
    y = random.integers(90, 160, (48, 64), dtype=np.uint8)
    return y, *random.integers(110, 146, (2, 24, 32), dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes frames of yuv420p without loss."""

    def write(planes, tags: dict[str, int], scale: int) -> Path:
        path = tmp_path / "video.mkv"
        planes = [np.kron(plane, np.ones((scale, scale), np.uint8)) for plane in planes]
        height, width = planes[0].shape
        stacked = np.concatenate([plane.reshape(-1, width) for plane in planes])
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=Fraction(15, 2))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for name, value in tags.items():
                setattr(stream.codec_context, name, value)
            for _ in range(3):
                frame = av.VideoFrame.from_ndarray(stacked, format="yuv420p")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


def to_rgb(planes, weights: tuple[float, float]) -> np.ndarray:
    """ITU-R BT.601 and BT.709, limited range; each colour sample stands for 2 x 2 pixels."""
    y, u, v = (plane.astype(float) for plane in planes)
    u, v = (np.kron(plane - 128, np.ones((2, 2))) * 255 / 224 for plane in (u, v))
    red, blue = weights
    r = (y - 16) * 255 / 219 + 2 * (1 - red) * v
    b = (y - 16) * 255 / 219 + 2 * (1 - blue) * u
    g = ((y - 16) * 255 / 219 - red * r - blue * b) / (1 - red - blue)
    return np.stack([r, g, b], axis=2)


@pytest.mark.parametrize(
    ("tags", "scale", "weights"),
    [
        (UNTAGGED, 1, BT601),
        (UNTAGGED, 15, BT709),
        ({"colorspace": 1}, 1, BT601),
        (TAGS_709, 1, BT709),
        (TAGS_601, 15, BT601),
    ],
)
def test_colours_are_exact(write, planes, tags: dict[str, int], scale: int, weights) -> None:
    """OpenCV's are up to three levels darker; without all tags, the height decides."""
    reader = VideoReader(write(planes, tags, scale))
    frames = list(reader)
    reader.close()
    expected = np.kron(to_rgb(planes, weights), np.ones((scale, scale, 1)))
    assert len(frames) == 3 and reader.fps == Fraction(15, 2) and reader.fault is None
    assert frames[0].dtype == np.uint8 and frames[0].flags.c_contiguous
    assert np.abs(frames[0] - expected).max() < 1.01


@pytest.mark.parametrize(("degrees", "cosine", "sine"), [(90, 0, 1), (180, -1, 0), (270, 0, -1)])
def test_videos_of_phones_are_upright(tmp_path: Path, degrees: int, cosine: int, sine: int) -> None:
    """ISO/IEC 14496-12, 8.3.2: the matrix of "tkhd" turns the picture clockwise for display."""
    path = tmp_path / "video.mp4"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:], picture[24:, :32] = (200, 40, 90), (30, 120, 220), 128
    with VideoWriter(path, Fraction(10)) as writer:
        writer.write(picture)
    data = path.read_bytes()
    start = data.index(b"tkhd") + 44  # behind times, number, duration, layer and volume
    matrix = np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 16384]) * 65536
    path.write_bytes(data[:start] + matrix.astype(">i4").tobytes() + data[start + 36 :])
    reader = VideoReader(path)
    frames = list(reader)
    reader.close()
    expected = np.rot90(picture, -degrees // 90)
    assert len(frames) == 1 and frames[0].shape == expected.shape
    for y in (8, -8):
        for x in (8, -8):
            np.testing.assert_allclose(frames[0][y, x], expected[y, x], atol=8)


def test_written_videos_keep_size_rate_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    picture = np.zeros((49, 65, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (200, 40, 90), (30, 120, 220)
    with VideoWriter(path, Fraction(15, 2)) as writer:
        writer.write(picture)
        writer.write(picture[:20, ::2])  # of another size
    reader = VideoReader(path)
    frames = list(reader)
    reader.close()
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc)
    assert reader.fps == Fraction(15, 2) and tags == (1, 1, 1)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 2
    for frame in frames:
        np.testing.assert_allclose(frame[10:40, 8:24].mean((0, 1)), (200, 40, 90), atol=6)
        np.testing.assert_allclose(frame[10:40, 40:56].mean((0, 1)), (30, 120, 220), atol=6)


def test_without_frames_nothing_is_written(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", Fraction(10)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="out.mp4 cannot be written .No such file"):
        with VideoWriter(tmp_path / "gone" / "out.mp4", Fraction(10)) as writer:
            writer.write(np.zeros((8, 8, 3), np.uint8))


def test_a_full_disk_does_not_hide_an_interrupt(tmp_path: Path) -> None:
    class Full:
        def encode(self) -> None:
            raise OSError(28, "No space left on device")

    def write(error: type[BaseException] | None) -> None:
        with VideoWriter(tmp_path / "out.mp4", Fraction(10)) as writer:
            writer.write(np.zeros((8, 8, 3), np.uint8))
            writer._stream = Full()
            if error:
                raise error

    with pytest.raises(OSError, match="No space left"):
        write(None)
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt)


def test_damage_is_told_behind_the_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for picture in np.random.default_rng(0).integers(256, size=(12, 48, 64, 3), dtype=np.uint8):
            writer.write(picture)
    data = bytearray(path.read_bytes())
    first = data.index(b"mdat") + len(data) // 3
    data[first : first + 300] = bytes(300)
    path.write_bytes(data)
    reader = VideoReader(path)
    assert 0 < len(list(reader)) <= 12
    assert "video.mp4 is damaged" in str(reader.fault)


def test_no_video(tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ImageError, match="has no video in it"):
        VideoReader(sound)


def test_names_with_a_colon_are_no_protocols(write, planes, tmp_path: Path) -> None:
    path = write(planes, UNTAGGED, 1).rename(tmp_path / "http:x.mkv")
    reader = VideoReader(path)
    assert len(list(reader)) == 3
    reader.close()


def test_frames_of_too_many_pixels_are_refused(write, planes, monkeypatch) -> None:
    monkeypatch.setattr("onenet_runtime.video._MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(ImageError, match="more pixels than are read"):
        VideoReader(write(planes, UNTAGGED, 1))
