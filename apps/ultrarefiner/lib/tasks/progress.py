"""The summary of the labels so far, kept for whoever asks: the status page and the metrics.

Nobody who asks waits for masks to be read: a thread that rests often brings the summary up to date behind the answer.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ultrarefiner_monai.learning.label_figures import LabelFigures
from ultrarefiner_monai.learning.progress import Progress, Save, progress_of
from ultrarefiner_monai.studies.journal_rows import StoredPromotion

logger = logging.getLogger(__name__)

_OFTEN_SECONDS = 2.0  # not more often than that, however often somebody asks


@dataclass(frozen=True)
class Summary:
    """progress: of the labels that were counted; left: how many are still to be. promotions: oldest first. mistakes: what
    ``mistakes_of`` returned last, None where it never did. problem: why all this may be old, else empty."""

    progress: Progress = Progress()
    left: int = 0
    promotions: tuple[StoredPromotion, ...] = ()
    mistakes: Any = None
    problem: str = ""


class ProgressKeeper:
    """The summary of the journal at ``path``, brought up to date in a thread when somebody asks. Thread-safe.

    mistakes_of: called with all saves, after they were counted, when there are new ones; it takes its time, and labels are
    counted meanwhile. None: no mistakes.
    """

    def __init__(self, path: Path, mistakes_of: Callable[[list[Save]], Any] | None = None):
        self._path, self._figures, self._mistakes_of = path, LabelFigures(path), mistakes_of
        self._lock = threading.Lock()
        self._summary = Summary()
        self._state: tuple | None = None
        self._saves: list[Save] = []
        self._done: threading.Event | None = None
        self._looked = -_OFTEN_SECONDS
        self._undrawn: list[Save] | None = None  # saves whose mistakes are still to be found
        self._draws = False

    def now(self, wait: float = 0.0) -> Summary:
        """The summary. A look at the journal begins where there may be news; ``wait``: seconds to wait until the labels
        are counted."""
        with self._lock:
            if self._done is None and time.monotonic() - self._looked >= _OFTEN_SECONDS:
                self._done = threading.Event()
                try:
                    threading.Thread(target=self._run, name="progress", daemon=True).start()
                except RuntimeError:  # no thread can be started just now: the next one who asks tries again
                    self._done = None
            done = self._done
        if done is not None and wait > 0:
            done.wait(wait)
        return self._summary

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            state = _state_of(self._path)
            if state != self._state:
                self._look()
                self._state = state
        except Exception as error:  # it goes on: the next one who asks begins anew
            self._fails("the labels could not be counted", error)
        finally:
            with self._lock:
                done, self._done, self._looked = self._done, None, time.monotonic()
            assert done is not None
            done.set()
        self._draw()  # behind all: nobody waits for it, and labels are counted meanwhile

    def _look(self) -> None:
        saves = self._figures.look(lambda known: self._tell(progress_of(known)))
        fresh = saves != self._saves
        self._tell(progress_of(saves) if fresh else self._summary.progress)
        self._saves = saves
        if fresh:
            self._undrawn = saves

    def _draw(self) -> None:
        """Find the mistakes of what was counted, in one thread at a time; the newest saves are the ones that count."""
        while self._mistakes_of is not None:
            with self._lock:
                saves = self._undrawn
                if saves is None or self._draws:
                    return
                self._undrawn, self._draws = None, True
            try:
                found = self._mistakes_of(saves)
                with self._lock:
                    self._summary = replace(self._summary, mistakes=found)
            except Exception as error:
                self._fails("what the model gets wrong could not be found", error)
            finally:
                with self._lock:
                    self._draws = False

    def _tell(self, progress: Progress) -> None:
        figures = self._figures
        with self._lock:
            self._summary = Summary(progress, figures.left, figures.promotions, self._summary.mistakes)

    def _fails(self, what: str, error: Exception) -> None:
        words = str(error) if isinstance(error, sqlite3.Error) else type(error).__name__
        logger.warning("%s: %s", what, words, exc_info=not isinstance(error, sqlite3.Error))
        with self._lock:
            self._summary = replace(self._summary, problem=f"{what}: {words}")


def _state_of(path: Path) -> tuple:
    """Changes whenever something is written into the journal; its side file holds what was written last."""
    found: list[tuple[int, ...]] = []
    for name in (path, path.with_name(f"{path.name}-wal")):
        try:
            stat = name.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except FileNotFoundError:
            found.append(())
    return tuple(found)
