"""A thread that notices when the studies go and come back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ultrarefiner_monai.studies.availability import Presence

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
_AGAIN_SECONDS = 120.0


class Watch:
    """Looks now and then whether the studies are there; ``back`` is called when they are again, ``later`` once, after a
    while, for what was too young at the start. Thread-safe; ``problem`` for /info/."""

    def __init__(self, presence: Presence, back: Callable[[], Any], later: Callable[[], Any]):
        self.presence, self.back, self.later = presence, back, later
        self.problem = ""
        threading.Thread(target=self._run, name="presence", daemon=True).start()

    def _run(self) -> None:
        begun = time.monotonic()
        cleared = False
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                self._look()
                if not cleared and not self.problem and time.monotonic() - begun > _AGAIN_SECONDS:
                    cleared = True
                    self.later()
            except Exception:  # it goes on: nobody else would notice
                logger.exception("the look at the studies failed")

    def _look(self) -> None:
        before, self.problem = self.problem, self.presence.problem
        if self.problem and not before:
            logger.error("%s", self.problem)
        elif before and not self.problem:
            logger.warning("the studies are back")
            self.back()
