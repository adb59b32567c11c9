"""A mask as the lengths of its runs: a lesion of a megapixel is some hundred numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ultrarefiner_monai.core.types import InputError


def runs_of(mask: np.ndarray) -> list[int]:
    """(H, W) -> lengths of the runs of equal pixels, row by row, in turn not marked and marked: the first is 0 where the first
    pixel is marked."""
    flat = np.asarray(mask).astype(bool).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths: list[int] = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def mask_of(runs: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """``runs_of`` back to (H, W) uint8 of 0 and 1. Raises InputError where they are not ``shape`` in sum."""
    size = shape[0] * shape[1]
    if any(n < 0 for n in runs) or sum(runs) != size:
        raise InputError(f"the runs are {sum(runs)} pixels in sum; the frame has {size} ({shape[0]} x {shape[1]})")
    return np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs).reshape(shape)
