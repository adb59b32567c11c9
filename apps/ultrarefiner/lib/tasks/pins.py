"""The image under a user's hand keeps its model: what was promoted meanwhile answers from the user's next image on.

A client has one image in hand. Clients that do not say who they are share their pins: there an image keeps its model for
some minutes after it was last asked for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ultrarefiner_monai.pipeline.predictor import Predictor

MINUTES = 10.0
_MOST_PINS, _MOST_MODELS = 1000, 4


@dataclass
class _Pin:
    image: str
    predictor: Predictor
    used: float


class Pins:
    """Which predictor answers which client's image. Thread-safe; no lock is held while anything is computed.

    At most ``_MOST_MODELS`` models besides the newest are kept for pins; those that were asked for longest ago are given up.
    clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._pins: OrderedDict[str, _Pin] = OrderedDict()  # by the client, or by the image where there is none

    def predictor(self, client: str, image: str, newest: Predictor) -> Predictor:
        """The predictor for this client's ``image``: the one of before where it is in hand, else ``newest``."""
        key, now = f"client:{client}" if client else f"image:{image}", self._clock()
        with self._lock:
            pin = self._pins.get(key)
            if pin is None or pin.image != image or (not client and now - pin.used > 60 * MINUTES):
                pin = self._pins[key] = _Pin(image, newest, now)
            pin.used = now
            self._pins.move_to_end(key)
            self._bound(newest, now)
            return pin.predictor

    def clear(self) -> None:
        """All images are answered by the newest model from now on: a person decided so."""
        with self._lock:
            self._pins.clear()

    def _bound(self, newest: Predictor, now: float) -> None:
        for key in [k for k, p in self._pins.items() if k.startswith("image:") and now - p.used > 60 * MINUTES]:
            del self._pins[key]
        while len(self._pins) > _MOST_PINS:
            self._pins.popitem(last=False)
        kept: dict[int, None] = {}
        for pin in reversed(self._pins.values()):
            if pin.predictor is not newest and len(kept) < _MOST_MODELS:
                kept[id(pin.predictor)] = None
        old = [k for k, p in self._pins.items() if p.predictor is not newest and id(p.predictor) not in kept]
        for key in old:
            del self._pins[key]
