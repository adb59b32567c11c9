"""What the tasks share: the served model, image files opened and frames answered a moment ago, the journal."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from lib.tasks.served import Served
from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.core.image_file import ImageFile, Limits
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.dicom.series import sha256_of_image, state_of
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.masks.pixels import pack_mask, unpack_mask
from ultrarefiner_monai.pipeline.outline import NO_CLICKS, FrameOutline, FramePoints, frame_points, outline_frame
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.work_folder import WorkFolder

_RESULT_BYTES = 128 << 20
_OPEN_BYTES = 512 << 20
_MOST_POINTS = 10_000  # frames whose proposed points are remembered, a kilobyte each
_NO_MASK = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class OpenImageFile:
    """An image file that was read, the state of its file and the sha256 of its bytes."""

    image_file: ImageFile
    state: tuple
    sha256: str


@dataclass(frozen=True)
class _Kept:
    """A frame's result as it is remembered. frame: without its mask; mask: its bits, packed."""

    frame: FrameOutline
    shape: tuple[int, ...]
    mask: bytes

    @classmethod
    def of(cls, frame: FrameOutline) -> _Kept:
        return cls(replace(frame, mask=_NO_MASK, timings={}), frame.mask.shape, pack_mask(frame.mask))

    def unpacked(self) -> FrameOutline:
        return replace(self.frame, mask=unpack_mask(self.mask, self.shape))

    @property
    def nbytes(self) -> int:
        return min(_RESULT_BYTES, len(self.mask) + 2048)


class Engine:
    """What the tasks share: the served model, journal, image files opened and frames answered a moment ago. Thread-safe.

    An answer is a function of image, model and the set of prompts, so it may be kept: a click on one frame of a cine
    does not compute the other frames again, and undo is immediate.
    """

    def __init__(self, served: Served, config: ServeConfig, work: WorkFolder, journal: JournalQueue):
        self.served, self.config, self.work, self.journal = served, config, work, journal
        self._lock = threading.Lock()
        self._opened: LRUCache[str, OpenImageFile] = LRUCache(_OPEN_BYTES, lambda opened: _bytes(opened.image_file))
        self._results: LRUCache[tuple, _Kept] = LRUCache(_RESULT_BYTES, lambda kept: kept.nbytes)
        self._points: LRUCache[tuple, FramePoints] = LRUCache(_MOST_POINTS)
        self._drops = 0  # how often all this was dropped: what was begun before is not kept

    def read(self, path: Path) -> ImageFile:
        """Read a file within the configured limit of pixels, its first and last frame included; InputError if not."""
        image_file = read_image_file(path, Limits(total_pixels=self.config.max_pixels))
        image_file.frame(0)
        image_file.frame(image_file.n_frames - 1)
        return image_file

    def open(self, path: Path) -> OpenImageFile:
        """What is at ``path`` (a file, or a folder with a series), kept while its files stay as they are."""
        state = state_of(path)
        with self._lock:
            drops = self._drops
            found = self._opened.get(str(path))
            if found is not None and found.state == state:
                return found
        image_file = read_image_file(path, Limits(total_pixels=self.config.max_pixels))
        found = OpenImageFile(image_file, state, sha256_of_image(path))
        if state_of(path) != state:  # pixels and sha256 may be of two files: answers would be kept under a wrong name
            raise InputError(f"{path.name} changed while it was read; try again when it has been written")
        with self._lock:
            if drops == self._drops:
                self._opened[str(path)] = found
        return found

    def answer(
        self,
        predictor: Predictor,
        opened: OpenImageFile,
        k: int,
        clicks: Clicks = NO_CLICKS,
        coarse_only: bool = False,
        blind: bool = False,
    ) -> FrameOutline:
        """Frame ``k``'s result by ``predictor``, as ``outline_frame`` makes it; remembered, it has no timings."""
        key = (predictor.system.version, predictor.view, opened.sha256, k, clicks, coarse_only, blind)
        with self._lock:
            drops, kept = self._drops, self._results.get(key)
        if kept is not None:
            return kept.unpacked()
        frame = outline_frame(predictor, opened.image_file, k, clicks, coarse_only, blind)
        kept = _Kept.of(frame)
        with self._lock:
            if key not in self._results and drops == self._drops:
                self._results[key] = kept
        return frame

    def points(self, predictor: Predictor, opened: OpenImageFile, k: int) -> FramePoints:
        """The points that the model proposes on frame ``k``; remembered as answers are, and took no time then."""
        key = (predictor.system.version, predictor.view, opened.sha256, k)
        with self._lock:
            drops, kept = self._drops, self._points.get(key)
        if kept is not None:
            return replace(kept, seconds={}, cached=1.0)
        found = frame_points(predictor, opened.image_file.frame(k), opened.image_file.regions_of(k))
        with self._lock:
            if drops == self._drops:
                self._points[key] = found
        return found

    def drop_forgotten(self) -> None:
        """When ``ultrarefiner forget`` left a note: drop what is in memory, and the note."""
        note, taken = self.work.forgotten, self.work.root / f"forgotten-{threading.get_ident()}"
        try:
            if not note.exists():
                return
            os.replace(note, taken)  # what `forget` adds from now on makes a new note
            keys = taken.read_text(encoding="utf-8").split()
            taken.unlink()
        except OSError:
            return
        self.drop(keys)

    def drop(self, keys: Iterable[str]) -> None:
        """Drop all that is in memory, and what the cache holds of these images (``image_key``)."""
        with self._lock:
            self._opened.clear()
            self._results.clear()
            self._points.clear()
            self._drops += 1
        for key in keys:
            self.served.cache.forget(key)


def _bytes(image_file: ImageFile) -> int:
    """An upper bound for pictures and volumes, which are kept decoded. One that is larger than all room is kept alone."""
    return min(_OPEN_BYTES, image_file.kept_bytes or image_file.height * image_file.width * image_file.n_frames * 4)
