"""Moving pictures as clients get them. 3D Slicer opens no GIF and no video: it gets a NIfTI of the frames.

The NIfTI lies in the work folder. It is made when a client asks for it, and anew when the moving picture has changed. When
all of them together grow too large, the oldest are removed.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.moving import MOVING
from ultrarefiner_monai.imaging.writers import write_frames
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

_KEPT_BYTES = 4 << 30


def is_moving(path: str | Path) -> bool:
    return Path(path).suffix.lower() in MOVING


class ClientFrames:
    """The NIfTI files of moving pictures. read: a file -> ``ImageFile``, InputError for what cannot be decoded. Thread-safe."""

    def __init__(self, work: WorkFolder, read: Callable[[Path], Any]):
        self._work, self._read, self._lock = work, read, threading.Lock()
        self._making: dict[str, threading.Lock] = {}  # one an image: a long video takes a while, others need not wait

    def path(self, image_id: str, source: Path) -> Path:
        """The NIfTI of ``source``, made when it is not there. Raises InputError as ``read``."""
        try:
            stat = source.stat()
        except OSError as error:
            raise InputError(f"{source.name} cannot be opened: {error.strerror}") from error
        state = hashlib.sha256(f"{stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:12]
        place = self._work.frames(image_id)
        path = place / state / f"{image_id}.nii.gz"
        with self._lock:
            making = self._making.setdefault(image_id, threading.Lock())
        with making:
            if not path.is_file():
                image_file = self._read(source)
                shutil.rmtree(place, ignore_errors=True)  # of the file as it was before
                self._work.make(path.parent)
                with replacing(path) as file:
                    write_frames(file, image_file)
                with self._lock:
                    self._prune(keep=path)
        return path

    def remove(self, image_id: str) -> None:
        """When the image is removed."""
        shutil.rmtree(self._work.frames(image_id), ignore_errors=True)

    def _prune(self, keep: Path) -> None:
        files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in keep.parents[2].glob("*/*/*.nii.gz"))
        over = sum(size for _, size, _ in files) - _KEPT_BYTES
        for _, size, file in files:
            if over <= 0:
                return
            if file != keep:
                shutil.rmtree(file.parents[1], ignore_errors=True)
                over -= size
