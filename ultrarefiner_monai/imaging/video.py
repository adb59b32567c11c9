"""The frames of a video file, by PyAV (the extra ``video``).

A video may come from anywhere. FFmpeg is handed an open file and the container's name by the extension: it guesses nothing,
and opens nothing else (no playlist, no address, no second file). Only codecs that are met in exports are decoded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultrarefiner_monai.core.image_file import Limits, luminance
from ultrarefiner_monai.core.types import InputError

if TYPE_CHECKING:
    import av

_CONTAINERS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov"), "mov"),
    ".avi": "avi",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".wmv": "asf",
}
_CODECS = {
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "msmpeg4v1", "msmpeg4v2"),
    *("msmpeg4", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "h263", "mjpeg", "mjpegb", "jpeg2000", "png", "dvvideo"),
    *("rawvideo", "huffyuv", "ffvhuff", "ffv1", "utvideo", "lagarith", "msrle", "msvideo1", "cinepak", "qtrle", "rpza"),
}
_SECONDS = 180.0  # for all frames of one file
_MOST_DAMAGED = 1000  # pieces
_MOST_SAMPLES = 5_000_000  # pictures and pieces of sound in the index of an MP4 file
_JPEG_RANGE, _MPEG_RANGE = 2, 1


class Video:
    """One video file. Frames come in the order in which they are shown, whatever their times are."""

    def __init__(self, path: Path, limits: Limits, warnings: list[str]):
        self.path, self.limits, self.warnings = path, limits, warnings
        self._damaged = self._torn = self._others = 0
        self._seconds = self._end = self._step = 0.0
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"{path.name} is a video, which this installation does not read: install the extra with "
                "pip install 'ultrarefiner_monai[video]', or export DICOM or single pictures"
            ) from error
        check_boxes(path)
        self._announced = self._look()

    def _look(self) -> int:
        """Check what the header says; how many frames it announces, 0 where it does not."""
        with self.path.open("rb") as file, self._open(file) as container:
            stream = self._stream(container)
            context = stream.codec_context
            if context.name not in _CODECS:
                raise InputError(
                    f"{self.path.name}: video coded as {context.name} is not read; export it as H.264 or MJPEG"
                )
            if not (context.width and context.height):
                raise InputError(
                    f"{self.path.name}: the size of its pictures cannot be found, or is more than the limit of "
                    f"{self.limits.frame_pixels} pixels a frame"
                )
            announced = max(0, int(stream.frames or 0))
            self._seconds, self._step = _seconds(container, stream), 1 / float(stream.average_rate or 25)
            plausible = announced if announced <= os.path.getsize(self.path) else 0
            self.limits.check(self.path.name, context.height, context.width, max(1, plausible))
            if len(container.streams.video) > 1:
                self.warnings.append(f"the file holds {len(container.streams.video)} videos: the first is used")
            aspect = stream.sample_aspect_ratio
            if aspect and aspect != 1:
                self.warnings.append(f"the video's pixels are not square ({aspect}): they are used as they are stored")
        return announced

    def _open(self, file: Any) -> av.container.InputContainer:
        import av

        options = {"max_pixels": str(self.limits.frame_pixels), "threads": "1"}
        try:
            return av.open(
                file, mode="r", format=_CONTAINERS[self.path.suffix.lower()], options=options, metadata_errors="ignore"
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(
                f"{self.path.name} cannot be opened as a video: it is damaged, truncated or not what its name says "
                f"({type(error).__name__})"
            ) from error

    def _stream(self, container: av.container.InputContainer) -> av.video.stream.VideoStream:
        if not container.streams.video:
            raise InputError(f"{self.path.name} holds no video that can be decoded")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the same frames each time, and no frames held back
        return stream

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W) uint8 each: luminance. Pieces that cannot be decoded, and frames of another size, are passed over."""
        import av

        end = time.monotonic() + _SECONDS
        shape = None
        self._damaged = self._torn = self._others = 0
        with self.path.open("rb") as file, self._open(file) as container:
            stream = self._stream(container)
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets)
                    decoded = packet.decode()
                except StopIteration:
                    return
                except (av.error.EOFError, av.error.ExitError):
                    return
                except (av.error.FFmpegError, ValueError):
                    self._damaged += 1
                    if self._damaged > _MOST_DAMAGED:
                        return
                    continue
                torn = bool(packet.is_corrupt)
                for frame in decoded:
                    self._torn += torn or frame.is_corrupt
                    self._end = max(self._end, frame.time or 0.0)
                    if (shape or (frame.height, frame.width)) != (frame.height, frame.width):
                        self._others += 1
                        continue
                    if shape is None:
                        shape = (frame.height, frame.width)
                        self.limits.check(self.path.name, *shape)
                        self._say_rotation(frame)
                    grey = grey_of(frame)
                    paused = time.monotonic()
                    yield grey
                    end += time.monotonic() - paused  # nobody decodes meanwhile
                if time.monotonic() > end:
                    raise InputError(
                        f"{self.path.name} takes longer than {_SECONDS:.0f} s to decode; export a shorter cine"
                    )

    def _say_rotation(self, frame: Any) -> None:
        turn = int(getattr(frame, "rotation", 0) or 0)
        text = f"the video's rotation by {turn} degrees is not applied: the grid is that of the stored pixels"
        if turn and text not in self.warnings:
            self.warnings.append(text)

    def finish(self, count: int) -> None:
        """Add warnings that only decoding could show."""
        if self._announced > count:
            self.warnings.append(
                f"the video announces {self._announced} frames, {count} can be decoded: those are used"
            )
        elif not self._announced:
            step = self._end / (count - 1) if count > 1 else self._step
            seconds = self._end + step  # the last frame lasts as long as the others
            if self._seconds > seconds + 0.6 * step:
                self.warnings.append(
                    f"the video announces {self._seconds:.1f} s, {seconds:.1f} s ({count} frames) can be decoded: those are "
                    "used"
                )
        if self._torn:
            self.warnings.append(f"{self._torn} frame(s) of the video are damaged: they may show anything")
        if self._damaged:
            self.warnings.append(f"{self._damaged} damaged piece(s) of the video are left out")
        if self._others:
            self.warnings.append(f"{self._others} frame(s) of another size than the first are left out")


def grey_of(frame: Any) -> np.ndarray:
    """(H, W) uint8 luminance of a decoded frame. Y of YCbCr, brought to 0-255, is taken as it is: turning it into colours
    and back would round it twice."""
    name, components = frame.format.name, frame.format.components
    if name in ("yuyv422", "uyvy422", "yvyu422"):
        frame = frame.reformat(format="yuv422p")
        name, components = frame.format.name, frame.format.components
    planar = name.startswith(("yuv4", "yuva4", "yuvj4", "gray", "nv12", "nv21"))
    bits = components[0].bits if components else 0
    if not planar or bits < 8 or name.startswith("grayf"):
        return luminance(frame.to_ndarray(format="rgb24"))
    plane = frame.planes[0]
    kind = np.dtype(np.uint8) if bits == 8 else np.dtype(">u2" if name.endswith("be") else "<u2")
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height]
    values = np.ascontiguousarray(rows).view(kind)[:, : frame.width]
    full = int(frame.color_range) == _JPEG_RANGE or name.startswith("yuvj")
    full = full or (name.startswith("gray") and int(frame.color_range) != _MPEG_RANGE)
    if full and bits == 8:
        return np.ascontiguousarray(values)
    unit = 1 << (bits - 8)
    black, white = (0, (256 * unit) - 1) if full else (16 * unit, 235 * unit)
    codes = np.arange(256 * unit, dtype=np.float32)
    table = np.clip(np.rint((codes - black) * np.float32(255 / (white - black))), 0, 255).astype(np.uint8)
    return table[np.minimum(values, len(table) - 1)]


def _seconds(container: Any, stream: Any) -> float:
    """How long the video says it lasts, 0 where it does not. The file's length may be that of the sound."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


# --- counts in the header of an MP4 file ------------------------------------------------------------------------------

_FOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}


def check_boxes(path: Path) -> None:
    """InputError where the index of an MP4 or MOV file announces more than the file can hold: FFmpeg makes an entry in
    memory for each sample that is announced."""
    if _CONTAINERS[path.suffix.lower()] != "mov":
        return
    size = os.path.getsize(path)
    total = 0
    with path.open("rb") as file:
        for kind, start, end in _boxes(file, 0, size, 8):
            if kind != b"stsz":
                continue
            file.seek(start + 4)
            each, count = (int.from_bytes(file.read(4), "big") for _ in range(2))
            total += count
            if total > _MOST_SAMPLES or count * max(each, 1) > size or (each == 0 and count * 4 > end - start):
                raise InputError(
                    f"{path.name} is damaged: its index announces {count} samples, the file has {size} bytes"
                )


def _boxes(file: Any, start: int, end: int, levels: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the contents of each box, those inside of the folders too."""
    while start + 8 <= end and levels:
        file.seek(start)
        head = file.read(16)
        length, kind, inside = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, inside = int.from_bytes(head[8:16], "big"), start + 16
        elif length == 0:
            length = end - start
        if length < inside - start:
            return
        stop = min(end, start + length)
        if kind in _FOLDERS:
            yield from _boxes(file, inside, stop, levels - 1)
        else:
            yield kind, inside, stop
        start += length
