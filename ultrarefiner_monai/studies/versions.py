"""Labels that were replaced or removed. The last few of each image and tag are kept: versions/TAG/IMAGE/vNUMBER.ext."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ultrarefiner_monai.core.files import Undo
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

_KEPT = 20
# v000001.nii.gz counts on from the newest one; before, names were times (ns), which a clock that is set back mixes up.
_NAME = re.compile(r"v(\d{6,})\.|(\d+)\.")


class Versions:
    """The versions in one work folder. Not thread-safe: the caller holds a lock."""

    def __init__(self, work: WorkFolder):
        self._work = work

    def folder(self, image_id: str, tag: str) -> Path:
        """Where those of one image and tag lie."""
        return self._work.versions / tag / image_id

    def next_of(self, image_id: str, tag: str, labels: Sequence[Path]) -> dict[Path, Path]:
        """Where to keep those of ``labels`` that there are."""
        found = [label for label in labels if label.is_file()]
        names = (self.name(image_id, tag, label.name[len(image_id) :], n) for n, label in enumerate(found))
        return dict(zip(found, (self.folder(image_id, tag) / name for name in names)))

    def name(self, image_id: str, tag: str, extension: str, further: int = 0) -> str:
        """The name of the next version; ``further``: of one after that."""
        newest = max((number for _, number, _ in self._sorted(image_id, tag)), default=0)
        return f"v{newest + 1 + further:06d}{extension}"

    def keep(self, undo: Undo, versions: dict[Path, Path]) -> None:
        """Copy each label to its version (``next_of``); ``undo`` takes that back."""
        for source, version in versions.items():
            self._work.make(version.parent)
            undo.copy(source, version)

    def prune(self, image_id: str, tag: str) -> None:
        """Keep the newest few; empty files, which full disks left, are none."""
        try:
            paths = [path for _, _, path in self._sorted(image_id, tag)]
            full = [path for path in paths if path.stat().st_size]
            for path in set(paths) - set(full[-_KEPT:]):
                path.unlink(missing_ok=True)
        except OSError as error:  # the label is saved
            logger.warning("old versions of %s stay: %s", image_id, error.strerror)

    def _sorted(self, image_id: str, tag: str) -> list[tuple[int, int, Path]]:
        """(time, number, file), oldest first: those with a time in the name are older than all others."""
        folder, found = self.folder(image_id, tag), []
        for path in folder.iterdir() if folder.is_dir() else ():
            if match := _NAME.match(path.name):
                number = int(match[1] or 0)
                found.append((0 if number else int(match[2]), number, path))
        return sorted(found, key=lambda version: (version[1], version[0], version[2].name))
