"""Video files by PyAV: frames in the colours that browsers show, and .mp4 files in H.264."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from .errors import ImageError

try:
    import av
except ImportError:  # only videos need it
    av = None  # type: ignore[assignment]

__all__ = ["DEFAULT_FPS", "VideoReader", "VideoWriter"]

DEFAULT_FPS = Fraction(30)  # of a video that does not tell
_BT709, _UNSPECIFIED = 1, 2  # of FFmpeg's matrix, primaries and transfer
_LIMITED = 1  # FFmpeg's AVCOL_RANGE_MPEG
_HD_HEIGHT = 720  # from which browsers take an untagged video for BT.709, else for BT.601
_MOST_PIXELS = 178_956_970  # of a frame: Pillow's limit for images
# FFmpeg's default is quicker, and some levels of 255 darker than browsers
_EXACT = "flags=neighbor+accurate_rnd+full_chroma_int"


class VideoReader:
    """The first video stream of a file, to be read once.

    Args:
        path: of the file.

    Attributes:
        fps: frames a second, 30 where the file does not tell.
        fault: behind the last frame, why some are missing or wrong; None if none is known to be.

    Raises:
        ImageError: it cannot be opened, has no video or one of an unknown codec, or its frames
            have too many pixels.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        convert = "check that it is a video, and convert it to .mp4 with H.264."
        try:
            self._container = av.open(_url(path))
        except (av.FFmpegError, UnicodeError) as error:
            raise ImageError(f"{path} cannot be opened ({_reason(error)}): {convert}") from None
        streams = self._container.streams.video
        context = streams[0].codec_context if streams else None
        fault = None
        if not streams:
            fault = "has no video in it: check that it is the right file."
        elif context is None:
            fault = f"has a codec that this PyAV does not know: {convert}"
        elif context.width * context.height > _MOST_PIXELS:
            fault = "has frames of more pixels than are read of an image: make it smaller."
        if fault:
            self.close()
            raise ImageError(f"{path} {fault}")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate
        self.fps = rate if rate and 0 < rate <= 1000 else DEFAULT_FPS
        self.fault: str | None = None
        self._kind: tuple[object, ...] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames that can be decoded, upright, (H, W, 3) RGB uint8."""
        damaged = False
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    damaged = True
                    continue
                damaged |= any(frame.is_corrupt for frame in frames)
                yield from map(self._to_rgb, frames)
        except av.FFmpegError as error:
            self.fault = f"{self._path} cannot be read on ({_reason(error)}): copy it again."
        if damaged and not self.fault:
            self.fault = f"{self._path} is damaged, frames are missing or wrong: copy it again."

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._kind, self._graph = kind, _rgb_graph(frame, self._stream)
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def close(self) -> None:
        """Closes the file."""
        self._container.close()


def _rgb_graph(frame: av.VideoFrame, stream: av.VideoStream) -> av.filter.Graph:
    """FFmpeg's filters that turn frames like this one into RGB."""
    context = stream.codec_context
    tags = (frame.colorspace, context.color_primaries, context.color_trc)
    matrix = ""  # the tagged one
    # Chromium goes by the size unless all tags are there, but not for these codecs
    if (
        _UNSPECIFIED in tags
        and context.codec.canonical_name not in ("vp9", "av1")
        and not frame.format.name.startswith("yuvj")
    ):
        matrix = ":in_color_matrix=" + ("bt709" if frame.height >= _HD_HEIGHT else "bt601")
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
        ),
        graph.add("scale", _EXACT + matrix),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph


class VideoWriter:
    """An .mp4 in H.264 that is begun with its first frame and ended by leaving the context.

    Args:
        path: of the file; None for none.
        fps: frames a second, above 0.
    """

    def __init__(self, path: Path | None, fps: Fraction) -> None:
        self._path = path
        self._fps = fps
        self._container: av.container.OutputContainer | None = None
        self._count = 0

    def write(self, picture: np.ndarray) -> None:
        """Appends a picture, (H, W, 3) RGB uint8.

        It is resized to the size of the first, rounded down to even numbers.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        with self._naming_path():
            if self._container is None:
                self._container = self._begin(frame)
            frame = frame.reformat(
                self._stream.width, self._stream.height, "yuv420p", dst_colorspace=_BT709
            )
            frame.pts, frame.time_base = self._count, 1 / self._fps
            self._count += 1
            self._container.mux(self._stream.encode(frame))

    def _begin(self, frame: av.VideoFrame) -> av.container.OutputContainer:
        container = av.open(_url(self._path), "w", format="mp4")
        self._stream = container.add_stream("h264", rate=self._fps)
        self._stream.width = max(frame.width // 2 * 2, 2)  # H.264's are even
        self._stream.height = max(frame.height // 2 * 2, 2)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        container.start_encoding()  # else a file that cannot be written is told at its end
        return container

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the file.

        Raises:
            OSError: the file cannot be written, where that is the first thing that failed.
        """
        try:
            if self._container is not None:
                with self._naming_path():
                    self._container.mux(self._stream.encode())
                    self._container.close()
        except OSError:
            if kind is None:
                raise

    @contextmanager
    def _naming_path(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, ValueError) as error:  # ValueError: no such encoder
            self._container = None
            raise OSError(
                f"{self._path} cannot be written ({_reason(error)}): check the folder, the disk,"
                " and that this PyAV encodes H.264."
            ) from None


def _url(path: Path | None) -> str:
    """Else FFmpeg takes what stands before a colon in a name for a protocol."""
    return f"file:{path}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
