"""What a user goes on clicking at is kept at hand: the coarse results of the images that were asked for last, in RAM."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from ultrarefiner_monai.core.cache import Arrays


@dataclass(eq=False)
class CoarseResult:
    """An image's coarse result. arrays: coarse frame. prob: (H, W), image frame. doubted: both were scaled down, see
    ``coarse.doubt``. sam_prob: (1, 1, S, S), what the refiner reads of it, made when first needed.
    """

    arrays: Arrays
    prob: np.ndarray
    doubted: bool = False
    sam_prob: torch.Tensor | None = None

    @property
    def presence(self) -> float | None:
        """P(the image shows a lesion), None from a network that does not say."""
        found = self.arrays.get("presence")
        return None if found is None else float(found[0])

    def nbytes(self) -> int:
        return self.prob.nbytes + (0 if self.sam_prob is None else self.sam_prob.nbytes)


class RecentResults:
    """The coarse results of the images that were asked for last: each click would resize them anew. Thread-safe.

    ``forgets`` is the cache's count: what was kept, or begun, before the last one is not handed out.
    Not cachetools' ``LRUCache``, which weighs a value once, when it comes: a result grows while it is kept.
    """

    def __init__(self, limit: int):
        self._limit, self._forgets, self._lock = limit, 0, threading.Lock()
        self._kept: OrderedDict[str, CoarseResult] = OrderedDict()

    def get(self, key: str, forgets: int) -> CoarseResult | None:
        with self._lock:
            self._follow(forgets)
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, coarse: CoarseResult, forgets: int) -> None:
        with self._lock:
            self._follow(forgets)
            if forgets < self._forgets:
                return
            self._kept[key] = coarse
            while len(self._kept) > 1 and sum(c.nbytes() for c in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)

    def _follow(self, forgets: int) -> None:
        if forgets > self._forgets:
            self._kept.clear()
            self._forgets = forgets
