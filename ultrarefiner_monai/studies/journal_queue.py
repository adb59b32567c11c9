"""A journal that is written in the background, so that nobody who asks for a mask waits for it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ultrarefiner_monai.core.damaged import set_aside
from ultrarefiner_monai.studies.journal import Journal

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Entries hold whole masks. Who has one more waits a while: it is the disk that is slow, or another process's lock.
_MOST_QUEUED = 64
_PATIENCE_SECONDS = 30.0


class JournalQueue:
    """Writes into a journal in the background, one after the other in the order given. What is queued is written before
    the process ends.

    A failure of ``submit`` is logged and stands in ``problem`` until a write succeeds, never raised: a mask that a
    clinician waits for does not depend on the journal. One of ``ask`` is raised: a label is saved with its correction or
    not at all. begun_anew: why the journal that is written is not the one there was at the start, else empty.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.problem = ""
        self._journal: Journal | None = None
        self._inode: tuple[int, int] | None = None
        self.begun_anew = ""
        self._room = threading.Semaphore(_MOST_QUEUED)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    def begin(self, expected_none: bool) -> None:
        """The server starts: open the journal. expected_none: there was none before; else one that is missing is said."""
        missing = not self.path.exists()

        def open_it(_: Journal) -> None:
            if missing and not expected_none:
                self.begun_anew = f"the journal ({self.path.name}) was not there at the start: a new one was begun"
                logger.error("%s", self.begun_anew)

        self._pool.submit(self._write, open_it)

    def note(self, write: Callable[[Journal], Any]) -> None:
        """``submit`` for what nobody shall wait for, nor miss: left out where the queue is full, or the process ends."""
        with suppress(RuntimeError):
            if self._room.acquire(blocking=False):
                self._queue(write)

    def submit(self, write: Callable[[Journal], Any]) -> None:
        """Queue ``write``, which is called with the journal. Waits while the queue is full, then leaves it out and says so."""
        if not self._room.acquire(timeout=_PATIENCE_SECONDS):
            self._fails("it is written too slowly, an entry is left out")
            return
        self._queue(write)

    def _queue(self, write: Callable[[Journal], Any]) -> None:
        try:
            self._pool.submit(self._write, write).add_done_callback(lambda _: self._room.release())
        except BaseException:
            self._room.release()
            raise

    def flush(self) -> None:
        """Wait until all that was queued so far is written."""
        self._pool.submit(lambda: None).result()

    def close(self) -> None:
        """Write what is queued, then let go of the file; nothing can be queued afterwards."""
        self._pool.shutdown(wait=True)
        self._close()

    def ask(self, work: Callable[[Journal], T]) -> T:
        """Do ``work`` with the journal in its turn and return what it returns; what it raises is raised here."""
        answer: Future[T] = self._pool.submit(self._do, work)
        return answer.result()

    def _do(self, work: Callable[[Journal], T]) -> T:
        try:
            return work(self._opened())
        except sqlite3.DatabaseError as error:
            if not _is_damaged(error):
                raise
            self._close()
            _put_aside(self.path, error)
            return work(self._opened())

    def _opened(self) -> Journal:
        """The journal at ``path`` now: opened anew where another file lies there, as after a disk was away."""
        found = _inode(self.path)
        if self._journal is not None and found != self._inode:
            self._close()
            if found is None:
                self.begun_anew = (
                    f"the journal ({self.path.name}) was removed while the server ran: a new one was begun"
                )
                logger.error("%s", self.begun_anew)
        if self._journal is None:
            self._journal = _open(self.path)
            self._inode = _inode(self.path)
        return self._journal

    def _close(self) -> None:
        if self._journal is not None:
            with suppress(sqlite3.Error):
                self._journal.close()
        self._journal = None

    def _write(self, write: Callable[[Journal], Any]) -> None:
        try:
            self._do(write)
            self.problem = ""
        except Exception as error:  # whatever it is, the server goes on
            logger.debug("the journal's entry", exc_info=error)
            # Clients see it: no path of the server.
            why = error.strerror if isinstance(error, OSError) else str(error)
            self._fails(why or type(error).__name__)

    def _fails(self, why: str) -> None:
        self.problem = f"the journal could not be written: {why}"
        logger.error("%s (%s)", self.problem, self.path)


def _open(path: Path) -> Journal:
    """Open the journal; a damaged file is moved aside for somebody to look at, and a new one begun."""
    try:
        return Journal(path)
    except sqlite3.DatabaseError as error:
        if not _is_damaged(error):  # locked, disk full, no permission: the file itself is sound
            raise
        _put_aside(path, error)
        return Journal(path)


def _is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is at fault ("malformed", "not a database"), not what is around it."""
    text = str(error)
    return isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text)


def _put_aside(path: Path, error: sqlite3.Error) -> None:
    aside = set_aside(path)
    logger.error("the journal was unreadable (%s); it is kept as %s and a new one begun", error, aside.name)


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file; None where there is none, FileNotFoundError where its folder is not there either: a
    journal is not begun in an empty mount point."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        path.parent.stat()
        return None
    return stat.st_dev, stat.st_ino
