"""Files that somebody cares about: written beside their place and renamed, so that nobody ever sees half of one.

``all_or_nothing`` does the same for several files: after an error in the middle all of them are as they were, and nothing
of that needs room on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

# What file systems answer that cannot flush a folder, or link files: shares, sticks.
_CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
_CANNOT_LINK = {*_CANNOT, errno.EXDEV, errno.EMLINK}


def beside(path: str | Path) -> Path:
    """A new name in the folder of ``path``, of the kind that is cleared away at the next start."""
    return Path(path).with_name(f".{uuid.uuid4().hex}.part")  # short: a name may fill a file name's whole length


@contextmanager
def replacing(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file (``wb``, or ``w`` for UTF-8 text) that takes ``path``'s place when the block ends without an error.

    After an error, a full disk among them, what stood at ``path`` is still there and nothing is left beside it. The block
    may give the file's name to a library instead, even to one that puts another file in its place.
    """
    part = beside(path)
    binary = "b" in mode
    try:
        with open(part, mode, encoding=None if binary else "utf-8", newline=None if binary else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            renamed = not os.path.samestat(os.fstat(file.fileno()), os.stat(part))
        if renamed:
            with open(part, "rb+") as other:
                os.fsync(other.fileno())
        os.replace(part, path)
    except BaseException:
        _remove(part)
        raise


def copy_in(source: str | Path, path: str | Path) -> None:
    """Copy a file so that ``path`` holds all of it, or what stood there before."""
    with open(source, "rb") as given, replacing(path) as taken:
        shutil.copyfileobj(given, taken, 1 << 20)


def sync_folder(folder: str | Path) -> None:
    """Make what was renamed in a folder survive a power cut, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Undo:
    """Steps on files, and how each is taken back. Taking back renames and removes: it needs no room on the disk."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []
        self._folders: set[Path] = set()
        self._parts: list[Path] = []

    def by(self, step: Callable[[], Any]) -> None:
        """Take back what is done next by calling ``step``."""
        self._steps.append(step)

    def part(self, path: Path) -> Path:
        """A name beside ``path`` for what is needed until the end only."""
        self._parts.append(beside(path))
        return self._parts[-1]

    def keep(self, path: Path, part: Path) -> None:
        """Before ``path`` is replaced: what stands there now comes back by this, from ``part`` (of ``part``)."""
        self._folders.add(path.parent)
        if os.path.lexists(path):
            _second_name(path, part)
            self.by(lambda: os.replace(part, path))
        else:
            self.by(lambda: path.unlink(missing_ok=True))

    def set_aside(self, path: Path, part: Path) -> None:
        """Remove ``path``, which comes back by this."""
        self._folders.add(path.parent)
        os.replace(path, part)
        self.by(lambda: os.replace(part, path))

    def copy(self, source: Path, path: Path) -> None:
        """Let the content of ``source``, which is about to be replaced, lie at the new name ``path``, too."""
        self._folders.add(path.parent)
        self.by(lambda: path.unlink(missing_ok=True))
        if source.is_symlink():
            copy_in(source, path)
        else:
            _second_name(source, path)

    def sync(self) -> None:
        """All renames so far survive a power cut."""
        for folder in sorted(self._folders):
            sync_folder(folder)

    def back(self) -> None:
        """Take everything back, the last step first; what cannot be is logged, and the others are still taken back."""
        while self._steps:
            try:
                self._steps.pop()()
            except Exception:
                logger.exception("a step could not be taken back")
        self.clear()

    def clear(self) -> None:
        """Remove the parts."""
        for part in self._parts:
            _remove(part)


@contextmanager
def all_or_nothing() -> Iterator[Undo]:
    """Steps that belong together: when the block raises, those that were done are taken back."""
    undo = Undo()
    try:
        yield undo
    except BaseException:
        undo.back()
        raise
    undo.clear()


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError as error:  # cleared away at the next start
        logger.warning("%s is left: %s", part.name, error.strerror)


def _second_name(path: Path, other: Path) -> None:
    """Give a file a second name: a link, which needs no room; a copy where there are no links."""
    try:
        os.link(path, other, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        copy_in(path, other)
        shutil.copystat(path, other)
