"""What makes a training quick on a CPU: it has nothing to do with what is learnt."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# glibc's names for what mallopt sets (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@contextmanager
def no_denormals() -> Iterator[None]:
    """Sure predictions have gradients below 1e-38, on which a CPU computes many times more slowly: here they become 0.

    Threads that are started within inherit it.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def keep_memory() -> bool:
    """Let this process keep what its steps free, for the next step takes it again; whether that could be arranged.

    glibc hands large tensors back to the system and maps them anew, and the system clears them page by page: a tenth of a
    step of the compact preset, more on virtual machines. There is no way back; only glibc is asked.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)))  # -1: never
