"""One question to the predictor: the frame, checked, and how long each step of the answer took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.types import InputError

MIN_SIDE = 8


class Request:
    """One call: its image, what is known about it and how long each step took."""

    def __init__(self, image: np.ndarray):
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(("preprocess", "coarse", "encode", "decode", "post"), 0.0)
        self._key: str | None = None
        self.cached = True
        with self.clock("preprocess"):
            self.image = check_image(image)
        self.shape = (self.image.shape[0], self.image.shape[1])

    @property
    def key(self) -> str:
        if self._key is None:
            with self.clock("preprocess"):
                self._key = image_key(self.image)
        return self._key

    @contextmanager
    def clock(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[step] += time.perf_counter() - start

    def times(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._start, "cached": float(self.cached)}


def check_image(image: np.ndarray) -> np.ndarray:
    """(H, W) float32, finite, in [0, 1], at least 8 x 8 pixels, C order; InputError for anything else."""
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        got = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"expected one gray frame, an array of shape (H, W), got {got}")
    if min(image.shape) < MIN_SIDE:
        raise InputError(f"expected an image of at least {MIN_SIDE} x {MIN_SIDE} pixels, got {image.shape}")
    if image.dtype != np.float32:
        raise InputError(f"expected a float32 image in [0, 1], got {image.dtype}; convert and rescale it first")
    low, high = float(image.min()), float(image.max())  # NaN comes through min and max
    if not (low >= 0 and high <= 1):
        raise InputError(f"expected finite image values in [0, 1], got {low:g} to {high:g}")
    # A writable copy where needed: torch shares memory with the array.
    return np.require(image, requirements=["C", "W"])
