"""SIGTERM ends the server within seconds, whatever its threads compute. What clients were told is saved is written
first.

Left alone, uvicorn waits without a limit for requests in work, and Python for threads that compute. When uvicorn is
done, it sends the signal again, which ends the process with all that is still queued.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # requests in work are answered within, or not at all
WRITE_SECONDS = 3.0


class Ending:
    """What happens at SIGTERM and SIGINT. stop: called at once, one after the other. write: writes what is queued; it
    may take ``WRITE_SECONDS``."""

    def __init__(self, stop: Sequence[Callable[[], Any]], write: Callable[[], Any]):
        self._stop, self._write = stop, write
        self._begun = False

    def install(self) -> None:
        """Put this before the handlers that are there; called in the main thread when uvicorn has installed its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, partial(self._handle, signal.getsignal(number)))
        atexit.register(self._leave)

    def _handle(self, before: Any, number: int, frame: FrameType | None) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._end, args=(number,), name="ending", daemon=True).start()
        server: Any = getattr(before, "__self__", None)
        if number == signal.SIGTERM and hasattr(server, "should_exit"):
            server.should_exit = True  # as uvicorn's own handler, but for the signal's repetition
        elif callable(before):
            before(number, frame)

    def _leave(self) -> None:
        """Called when all threads have ended. The journal is closed, which makes it one file: a copy of that file
        alone is whole. Then the process ends at once: taking the interpreter apart would take seconds and serve
        nobody."""
        if self._begun:
            try:
                self._write()
            except Exception:
                logger.exception("the journal could not be closed")
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)

    def _end(self, number: int) -> None:
        """Runs beside uvicorn's own ending, and ends the process where that takes too long."""
        for stop in self._stop:
            try:
                stop()
            except Exception:
                logger.exception("something could not be stopped")
        time.sleep(GRACE_SECONDS)
        logger.warning("not all that is in work has ended within %.0f s: the server ends without it", GRACE_SECONDS)
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        writer.join(WRITE_SECONDS)
        if writer.is_alive():
            logger.error("what is queued for the journal could not be written within %.0f s", WRITE_SECONDS)
        logging.shutdown()
        os._exit(128 + number)
