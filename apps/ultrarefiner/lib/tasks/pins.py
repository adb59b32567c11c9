"""The image under a user's hand keeps its model: what was promoted meanwhile answers from the user's next image on.

The image that a client asked for last is in its hand. Others keep their model for some minutes after they were last asked for:
several users may be one client (3D Slicer calls all `user-xyz` who choose no other name), and some do not say who they are.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ultrarefiner_monai.pipeline.predictor import Predictor

MINUTES = 10.0
# A whole model takes hundreds of megabytes, a quick one on top of it some ten.
_MOST_PINS, _MOST_MODELS, _MOST_QUICK = 200, 3, 16


@dataclass
class _Pin:
    predictor: Predictor
    used: float


class Pins:
    """Which predictor answers which client's image. Thread-safe; no lock is held while anything is computed.

    At most ``_MOST_MODELS`` models, and ``_MOST_QUICK`` quick ones on top of models, are kept for pins besides the newest;
    those that were asked for longest ago are given up. clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._generation = 0
        self._pins: OrderedDict[tuple[str, str], _Pin] = OrderedDict()  # (client, image), the one used last at the end

    @property
    def generation(self) -> int:
        """How often all pins were dropped."""
        return self._generation

    def predictor(self, client: str, image: str, newest: Predictor, generation: int | None = None) -> Predictor:
        """The predictor for this client's ``image``: the one of before where it is in hand, else ``newest``.

        generation: that of before ``newest`` was asked for; where all pins were dropped since then, it may be an old one, and
        is not kept.
        """
        key, now = (client, image), self._clock()
        with self._lock:
            if generation not in (None, self._generation):
                return newest
            self._give_up(newest, now)
            pin = self._pins.setdefault(key, _Pin(newest, now))
            pin.used = now
            self._pins.move_to_end(key)
            return pin.predictor

    def clear(self) -> None:
        """All images are answered by the newest model from now on: a person decided so."""
        with self._lock:
            self._pins.clear()
            self._generation += 1

    def _give_up(self, newest: Predictor, now: float) -> None:
        """Drop what is in nobody's hand any more, and what there is no room for."""
        clients: set[str] = {""}  # clients without a name have nothing in hand for long
        models, quick = {id(newest.system.coarse)}, {id(newest)}
        for count, (key, pin) in enumerate(reversed(list(self._pins.items())), 1):
            in_hand = key[0] not in clients or now - pin.used <= 60 * MINUTES
            clients.add(key[0])
            # A quick model shares the coarse network of the one that it is on top of.
            model, own = id(pin.predictor.system.coarse), id(pin.predictor)
            room = (model in models or len(models) <= _MOST_MODELS) and (own in quick or len(quick) <= _MOST_QUICK)
            if in_hand and room and count < _MOST_PINS:
                models.add(model)
                quick.add(own)
            else:
                del self._pins[key]
