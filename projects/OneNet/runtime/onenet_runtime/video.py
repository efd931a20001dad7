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
_BT709 = 1  # FFmpeg's AVCOL_SPC_BT709
_UNTAGGED = (2, 0)  # colour space and range: AVCOL_SPC_UNSPECIFIED, AVCOL_RANGE_UNSPECIFIED
_HD_HEIGHT = 720  # from which browsers take an untagged video for BT.709, else for BT.601
# FFmpeg's default is quicker, and some levels of 255 darker than browsers
_EXACT = "flags=neighbor+accurate_rnd+full_chroma_int"


class VideoReader:
    """The first video stream of a file.

    Args:
        path: of the file.

    Attributes:
        fps: frames a second, 30 where the file does not tell.
        fault: behind the last frame, why some are missing or wrong; None if none is.

    Raises:
        ImageError: it cannot be opened, or has no video.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, UnicodeError) as error:
            raise ImageError(
                f"{path} cannot be opened ({_reason(error)}): check that it is a video, and convert"
                " it to .mp4 with H.264 if this PyAV lacks its codec."
            ) from None
        if not self._container.streams.video:
            self.close()
            raise ImageError(f"{path} has no video in it: check that it is the right file.")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate
        self.fps = rate if rate and 0 < rate <= 1000 else DEFAULT_FPS
        self.fault: str | None = None
        self._kind: tuple[object, ...] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames that can be decoded, upright, (H, W, 3) RGB uint8."""
        damaged = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    damaged += 1
                    continue
                damaged += sum(frame.is_corrupt for frame in frames)
                yield from map(self._to_rgb, frames)
        except av.FFmpegError as error:
            self.fault = f"{self._path} cannot be read to its end ({_reason(error)}): copy it."
        if damaged:
            self.fault = f"{self._path} is damaged, {damaged} frames are missing or wrong: copy it."

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._kind, self._graph = kind, _rgb_graph(frame, self._stream.time_base)
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def close(self) -> None:
        """Closes the file."""
        self._container.close()


def _rgb_graph(frame: av.VideoFrame, time_base: Fraction | None) -> av.filter.Graph:
    """FFmpeg's filters that turn frames like this one into RGB."""
    is_untagged = (frame.colorspace, frame.color_range) == _UNTAGGED
    matrix = ":in_color_matrix=bt709" if is_untagged and frame.height >= _HD_HEIGHT else ""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=time_base
        ),
        graph.add("scale", _EXACT + matrix),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph


class VideoWriter:
    """An .mp4 in H.264 that is begun with its first frame.

    Args:
        path: of the file; None for none.
        fps: frames a second.
    """

    def __init__(self, path: Path | None, fps: Fraction) -> None:
        self._path = path
        self._fps = fps
        self._container: av.container.OutputContainer | None = None
        self._count = 0

    def write(self, picture: np.ndarray) -> None:
        """Appends a picture, (H, W, 3) RGB uint8; one of another size than the first is resized.

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
        container = av.open(str(self._path), "w", format="mp4")
        self._stream = container.add_stream("h264", rate=self._fps)
        self._stream.width = max(frame.width // 2 * 2, 2)  # H.264's are even
        self._stream.height = max(frame.height // 2 * 2, 2)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.colorspace = _BT709
        container.start_encoding()  # else a file that cannot be written is told at its end
        return container

    def close(self) -> None:
        """Ends the file.

        Raises:
            OSError: the file cannot be written.
        """
        if self._container is not None:
            with self._naming_path():
                self._container.mux(self._stream.encode())
                self._container.close()

    @contextmanager
    def _naming_path(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, ValueError) as error:  # ValueError: no such encoder
            self._container = None
            raise OSError(
                f"{self._path} cannot be written ({_reason(error)}): choose another folder, or a"
                " PyAV with an H.264 encoder."
            ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
