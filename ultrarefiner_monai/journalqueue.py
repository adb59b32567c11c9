"""A journal that is written in the background, so that nobody who saves a label or asks for a mask waits for it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ultrarefiner_monai.journal import Journal

logger = logging.getLogger(__name__)

T = TypeVar("T")


class JournalQueue:
    """Writes into a journal in the background, one after the other in the order given. A failure is logged, never raised:
    a label that a clinician saves does not depend on the journal. What is queued is written before the process ends.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._journal: Journal | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    def submit(self, write: Callable[[Journal], Any]) -> None:
        """Queue ``write``, which is called with the journal."""
        self._pool.submit(self._write, write)

    def flush(self) -> None:
        """Wait until all that was queued so far is written."""
        self._pool.submit(lambda: None).result()

    def close(self) -> None:
        """Write all that is queued; nothing can be queued any more."""
        self._pool.shutdown(wait=True)

    def ask(self, work: Callable[[Journal], T]) -> T:
        """Do ``work`` with the journal in its turn and return what it returns; what it raises is raised here."""
        return self._pool.submit(lambda: work(self._opened())).result()

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = _open(self.path)
        return self._journal

    def _write(self, write: Callable[[Journal], Any]) -> None:
        try:
            write(self._opened())
        except Exception:  # whatever it is, the server goes on
            logger.exception("the journal %s could not be written", self.path)


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
