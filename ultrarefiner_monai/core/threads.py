"""Work on many files at once, for which reading and decoding need no interpreter most of the time; and work that stands back
behind what users wait for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
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


def stand_back(nice: int, threads: int) -> None:
    """Let this process, and what it starts, compute at low priority with so many threads; where the system cannot, as is.

    nice: 0 to 19. Linux shares the time out to sessions first, and among the processes of one by their niceness: a process
    that leads a session of its own has to say it for the session, too (sched(7), autogroup).
    """
    with suppress(OSError, AttributeError):
        os.nice(nice)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")
    import torch

    torch.set_num_threads(threads)
