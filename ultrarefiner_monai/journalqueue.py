"""A journal that is written in the background, so that nobody who asks for a mask waits for it."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ultrarefiner_monai.journal import Journal

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
    not at all.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.problem = ""
        self._journal: Journal | None = None
        self._room = threading.Semaphore(_MOST_QUEUED)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    def submit(self, write: Callable[[Journal], Any]) -> None:
        """Queue ``write``, which is called with the journal. Waits while the queue is full, then leaves it out and says so."""
        if not self._room.acquire(timeout=_PATIENCE_SECONDS):
            self._fails("it is written too slowly, an entry is left out")
            return
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
        if self._journal is not None:
            self._journal.close()

    def ask(self, work: Callable[[Journal], T]) -> T:
        """Do ``work`` with the journal in its turn and return what it returns; what it raises is raised here."""
        answer: Future[T] = self._pool.submit(lambda: work(self._opened()))
        return answer.result()

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = _open(self.path)
        return self._journal

    def _write(self, write: Callable[[Journal], Any]) -> None:
        try:
            write(self._opened())
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
    except sqlite3.OperationalError:  # locked, disk full, no permission: the file itself is sound
        raise
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.broken-{int(time.time())}")
        os.replace(path, aside)
        logger.error("the journal was unreadable (%s); it is kept as %s and a new one begun", error, aside)
        return Journal(path)
