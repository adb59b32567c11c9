"""Work on many files at once: reading and decoding them needs no interpreter most of the time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_FEW = 32  # are sooner done without threads, which leave memory of their own behind

In = TypeVar("In")
Out = TypeVar("Out")


def in_threads(work: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """``work`` of each item, in their order, by as many threads as there are cores (16 at most) where there are many items."""
    items = list(items)
    if len(items) <= _FEW:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
