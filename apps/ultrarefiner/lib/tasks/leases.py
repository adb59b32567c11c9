"""Who works on which image: an image that was handed out as a next sample is not handed to another user for a while.

In memory, by a clock that never jumps: after a restart of the server nobody holds an image.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class _Lease:
    holder: str
    since: float


class Leases:
    """One image a user, one user an image. Thread-safe. minutes: how long a lease lasts; 0: there are none."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._clock = 60.0 * minutes, clock
        self._lock = threading.Lock()
        self._held: dict[str, _Lease] = {}

    def take(self, image_id: str, holder: str, anyway: bool = False) -> bool:
        """Lease an image to ``holder``, who gives up the one held before; False where another one holds it. anyway: the other
        one loses it."""
        with self._lock:
            self._expire()
            found = self._held.get(image_id)
            if found is not None and found.holder != holder and not anyway:
                return False
            self._held = {i: lease for i, lease in self._held.items() if lease.holder != holder}
            if self._seconds:
                self._held[image_id] = _Lease(holder, self._clock())
            return True

    def give_up(self, image_id: str) -> None:
        """The image has a label, whoever saved it, or cannot be used."""
        with self._lock:
            self._held.pop(image_id, None)

    def of_others(self, holder: str) -> dict[str, float]:
        """Images that others hold, the one held longest first -> for how many seconds."""
        with self._lock:
            self._expire()
            now = self._clock()
            others = [(i, now - lease.since) for i, lease in self._held.items() if lease.holder != holder]
        return dict(sorted(others, key=lambda item: -item[1]))

    def _expire(self) -> None:
        end = self._clock() - self._seconds
        self._held = {i: lease for i, lease in self._held.items() if lease.since > end}
