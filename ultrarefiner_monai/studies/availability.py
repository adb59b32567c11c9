"""Whether the folders that the app writes to are there: a disk or a network share may go while the server runs.

Then an empty mount point lies under the same path. So a folder is known by a mark in it, a small file with a random id,
and a studies folder that cannot be written by its device and inode. What was remembered at the start counts.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.core.files import beside
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

MARK = "mark"  # in the work folder
STUDIES_MARK = ".ultrarefiner-studies"  # in studies whose work folder lies elsewhere
# Processes that the server starts are told which work folder they belong to: they never begin another one.
MARK_VARIABLE = "ULTRAREFINER_MARK"
_RECENT_SECONDS = 0.5
_MOST_BYTES = 64


class StudiesAway(OSError):
    """The studies, or the work folder, are not there just now, or another folder is. HTTP answers it with 503."""


@dataclass(frozen=True)
class _Known:
    """A folder as it was at the start: by the text of its mark, or by device and inode where it has none."""

    what: str
    folder: Path
    mark: str
    text: str
    inode: tuple[int, int]

    def missing(self) -> str:
        """Why this is not the folder that it was, empty where it is."""
        try:
            if self.text:
                return "" if _read(self.folder / self.mark) == self.text else "another folder is in its place"
            return "" if _inode(self.folder) == self.inode else "another folder is in its place"
        except FileNotFoundError:
            return "an empty folder is in its place" if self.folder.is_dir() else "it is not there"
        except OSError as error:
            return (error.strerror or type(error).__name__).lower()


class Presence:
    """The studies folder (None for a PACS) and the work folder, remembered as they are now. Thread-safe.

    expected: the text of the work folder's mark, where it is known already; StudiesAway where another one is found.
    """

    def __init__(self, studies: Path | None, work: WorkFolder, expected: str = ""):
        self.new = not (work.root / MARK).exists()  # whether nobody ever served from this work folder
        text = _marked(work.root / MARK)
        if expected and text != expected:
            raise StudiesAway(_WORDS.format(what="work folder", why="another folder is in its place"))
        apart = studies is not None and not _below(work.root, studies)
        self._known = [_Known("work folder" if studies is None or apart else "studies", work.root, MARK, text, (0, 0))]
        if studies is not None and apart:
            own = _marked(studies / STUDIES_MARK) if os.access(studies, os.W_OK) else _read_or_empty(studies)
            self._known.append(_Known("studies", studies, STUDIES_MARK, own, _inode(studies)))
        self.text = text
        self._checked = 0.0

    @property
    def problem(self) -> str:
        """What is away and why, in words for /info/; empty while all is there."""
        for known in self._known:
            if why := known.missing():
                self._checked = 0.0
                return _WORDS.format(what=known.what, why=why)
        self._checked = time.monotonic()
        return ""

    def check(self, recent: bool = False) -> None:
        """StudiesAway unless all is there. recent: it is enough that it was so a moment ago (for reading, not saving)."""
        if recent and time.monotonic() - self._checked < _RECENT_SECONDS:
            return
        if problem := self.problem:
            raise StudiesAway(problem)


_WORDS = (
    "the folder with the {what} is away ({why}): its disk or network share is not connected. Tell your IT. "
    "Nothing can be saved until it is back; the server then goes on by itself"
)


def _marked(path: Path) -> str:
    """The text of the mark at ``path``, made when missing; of two processes that make it, both get the same one."""
    while True:
        try:
            return _read(path)
        except FileNotFoundError:
            part = beside(path)
            try:
                part.write_text(uuid.uuid4().hex, encoding="ascii")
                try:
                    os.link(part, path)
                except FileExistsError:
                    continue
                except OSError:  # a file system without hard links
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("ascii", "replace").strip() or "-"


def _read_or_empty(studies: Path) -> str:
    try:
        return _read(studies / STUDIES_MARK)
    except OSError:
        return ""


def _inode(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _below(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
