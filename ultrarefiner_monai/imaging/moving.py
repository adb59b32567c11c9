"""Moving pictures -> ``ImageFile``: GIF and WebP by Pillow here, MP4, AVI, MOV, MKV, WebM and WMV by PyAV in ``video``.

Their frames are those of a cine. A file is decoded once when it is opened: only that tells how many frames there really
are. Then frames are decoded when they are asked for, and the last ones kept: 300 frames of 1080p would fill the memory.
3D Slicer opens none of these files, so its clients get a NIfTI of the frames (``writers.write_frames``), on the same grid.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache

from ultrarefiner_monai.core.image_file import ImageFile, Limits, flat_geometry, luminance, to_unit
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.colour import on_black

# The extensions, in lower case, and what ``ImageFile.kind`` says. Animated PNG is left to the pictures: viewers show its first.
MOVING = {
    ".gif": "gif",
    ".webp": "webp",
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv"), "video"),
}
_KEPT_BYTES = 256 << 20


def read_moving(path: Path, limits: Limits) -> ImageFile:
    """One file of ``MOVING``. Raises InputError for what cannot be decoded or is beyond ``limits``."""
    warnings: list[str] = []
    if MOVING[path.suffix.lower()] == "video":
        from ultrarefiner_monai.imaging.video import Video

        source: Any = Video(path, limits, warnings)
    else:
        source = Animation(path, limits, warnings)
    reel = Reel(path.name, source.frames, _KEPT_BYTES)
    height, width, count = 0, 0, 0
    for frame in reel.first_pass():
        height, width = frame.shape
        count += 1
        limits.check(path.name, height, width, count)
    if not count:
        raise InputError(f"{path.name} holds no picture that can be decoded: it is damaged, or not what its name says")
    source.finish(count)
    kept = min(count * height * width, _KEPT_BYTES)
    geometry, kind = flat_geometry(height, width, count), MOVING[path.suffix.lower()]
    return ImageFile(path, kind, height, width, count, geometry, reel.load, None, "", warnings, kept_bytes=kept)


class Reel:
    """Frames that can only be decoded one after the other, at random: the last ones are kept, the others are decoded anew
    from the start. Thread-safe.

    start: a new iterator over all frames, (H, W) uint8 each. kept_bytes: of the frames that are kept.
    """

    def __init__(self, name: str, start: Callable[[], Iterator[np.ndarray]], kept_bytes: int):
        self._name, self._start = name, start
        # The last frame is kept however large it is.
        self._kept: LRUCache[int, np.ndarray] = LRUCache(
            kept_bytes, getsizeof=lambda frame: min(frame.nbytes, kept_bytes)
        )
        self._source: Iterator[np.ndarray] | None = None
        self._next, self._lock = 0, threading.Lock()

    def first_pass(self) -> Iterator[np.ndarray]:
        """All frames, in order; raises what the decoder does."""
        for index, frame in enumerate(self._start()):
            with self._lock:
                self._kept[index] = frame
            yield frame

    def load(self, index: int) -> np.ndarray:
        """Frame ``index``, (H, W) float32 in [0, 1]."""
        with self._lock:
            frame = self._kept.get(index)
            if frame is None:
                frame = self._wind_to(index)
        return to_unit(frame)

    def _wind_to(self, index: int) -> np.ndarray:
        if self._source is None or index < self._next:
            self._source, self._next = self._start(), 0
        try:
            while True:
                frame = next(self._source)
                self._kept[self._next] = frame
                self._next += 1
                if self._next > index:
                    return frame
        except Exception as error:  # each decoder has its own errors, and the file may be gone
            self._source = None
            raise InputError(f"{self._name}: frame {index} cannot be decoded ({type(error).__name__})") from error


class Animation:
    """A GIF or WebP file, animated or not. Its frames are those that viewers show: composed, on black where transparent."""

    def __init__(self, path: Path, limits: Limits, warnings: list[str]):
        self.path, self.warnings = path, warnings
        self._damage = ""
        with self._open() as image:
            width, height = image.size
            # Only a WebP file says how many frames it has; the frames of a GIF are counted as they are decoded.
            announced = int(getattr(image, "n_frames", 1)) if image.format == "WEBP" else 1
            limits.check(path.name, height, width, announced)
            if int(image.getexif().get(0x0112) or 1) != 1:
                warnings.append("the EXIF orientation is not applied: the grid is that of the stored pixels")

    def _open(self) -> Any:
        from PIL import Image

        try:
            return Image.open(self.path, formats=(MOVING[self.path.suffix.lower()].upper(),))
        except Image.DecompressionBombError as error:
            raise InputError(f"{self.path.name} is larger than the limit: {error}") from error

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W) uint8 each; ends at damage, unless that is in the first frame."""
        with self._open() as image:
            size, index = image.size, 0
            while True:
                try:
                    image.seek(index)
                    colours = np.asarray(image.convert("RGBA"))
                except EOFError:
                    return
                except Exception as error:
                    if index == 0:
                        raise
                    self._damage = f"the file is damaged after {index} frame(s) ({type(error).__name__}): they are used"
                    return
                if colours.shape[:2] != size[::-1]:
                    return
                yield luminance(on_black(colours))
                index += 1

    def finish(self, count: int) -> None:
        """Add warnings that only decoding could show."""
        if self._damage:
            self.warnings.append(self._damage)
