"""Small geometry on the pixels of a mask, for ``clicks``: discs, windows, distances, closings. And masks packed as bits.

Arrays are (H, W), a pixel is (row, column), a window the rows and columns of a rectangle within the image.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.masks.postprocess import EIGHT, bounding_slices, fill_holes

Pixel = tuple[int, int]
Window = tuple[slice, slice]
TOUCH = 0.012  # the least that a click moves the outline beyond itself, as a share of the image's shorter side


def touch_of(image: np.ndarray) -> float:
    """TOUCH in pixels of ``image`` (H, W), at least 2."""
    return max(2.0, TOUCH * min(image.shape))


def rounded(mask: np.ndarray, where: Window, region: np.ndarray, radius: float) -> tuple[Window, np.ndarray]:
    """``region`` (in window ``where``) and the corners between it and ``mask`` that a disc of ``radius`` cannot enter.

    A morphological closing of ``mask | region``, close to ``region`` only. Returns a window and its array.
    """
    full = np.zeros(mask.shape, dtype=bool)
    full[where] = region
    grown = bounding_slices(full, margin=math.ceil(3 * radius) + 1)
    if grown is None:
        return where, region
    added = full[grown]
    joined = mask[grown] | added
    if joined.all():
        return grown, added
    thick = ndimage.distance_transform_edt(~joined) <= radius
    closed = joined | (thick if thick.all() else thick & (ndimage.distance_transform_edt(thick) > radius))
    near = ndimage.distance_transform_edt(~added) <= 2 * radius
    return grown, added | (closed & near & ~mask[grown])


def index_of(value: float, length: int) -> int:
    return min(length - 1, max(0, math.floor(value + 0.5)))


def holds(window: Window, pixel: Pixel) -> bool:
    return all(part.start <= value < part.stop for part, value in zip(window, pixel, strict=True))


def holes_of(mask: np.ndarray) -> list[Pixel]:
    """One pixel of each hole that the mask already has."""
    holes = fill_holes(mask) & ~mask
    if not holes.any():
        return []
    labels, _ = ndimage.label(holes)
    _, first = np.unique(labels, return_index=True)
    return [(int(i) // mask.shape[1], int(i) % mask.shape[1]) for i in first[1:]]


def edge_pixels(mask: np.ndarray) -> np.ndarray:
    """(N, 2) pixels of the mask that touch background with a side or the image's border, in row-major order."""
    where = bounding_slices(mask)
    if where is None:
        return np.zeros((0, 2), dtype=int)
    padded = np.pad(mask[where], 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.argwhere(mask[where] & ~inner) + (where[0].start, where[1].start)


def nearest_of(pixels: np.ndarray, to: Pixel) -> tuple[Pixel, float]:
    """The one of (N, 2) pixels that is nearest to ``to`` and its distance; infinite when there is none."""
    if not len(pixels):
        return to, math.inf
    squared = ((pixels - np.asarray(to)) ** 2).sum(axis=1)
    best = int(squared.argmin())
    return (int(pixels[best, 0]), int(pixels[best, 1])), math.sqrt(float(squared[best]))


def window_around(discs: list[tuple[Pixel, float]], shape: tuple[int, ...]) -> Window:
    """The smallest window within the image that holds all the discs (centre, radius)."""
    low = [min(math.floor(c[axis] - r) for c, r in discs) for axis in (0, 1)]
    high = [max(math.ceil(c[axis] + r) for c, r in discs) + 1 for axis in (0, 1)]
    return (
        slice(max(0, low[0]), min(shape[0], high[0])),
        slice(max(0, low[1]), min(shape[1], high[1])),
    )


def grid_of(where: Window) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.ogrid[where[0], where[1]]
    return rows, columns


def disc_in(where: Window, centre: Pixel, radius: float) -> np.ndarray:
    rows, columns = grid_of(where)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def mask_of_window(where: Window, window: Window) -> np.ndarray:
    rows, columns = grid_of(where)
    return (
        (rows >= window[0].start) & (rows < window[0].stop) & (columns >= window[1].start) & (columns < window[1].stop)
    )


def nearer(where: Window, own: list[Pixel], other: list[Pixel], ties: bool) -> np.ndarray:
    """True where the nearest of ``own`` is nearer than the nearest of ``other``; whole-number arithmetic, so exact."""
    rows, columns = grid_of(where)

    def squared(pixels: list[Pixel]) -> np.ndarray:
        far = np.full(np.broadcast(rows, columns).shape, np.iinfo(np.int64).max)
        for row, column in pixels:
            np.minimum(far, (rows - row) ** 2 + (columns - column) ** 2, out=far)
        return far

    mine, theirs = squared(own), squared(other)
    return mine <= theirs if ties else mine < theirs


def part_with(mask: np.ndarray, pixel: Pixel, where: Window) -> np.ndarray:
    """The component of ``mask`` (a window of the image) that holds ``pixel`` (of the image)."""
    labels, _ = ndimage.label(mask, EIGHT)
    label = labels[pixel[0] - where[0].start, pixel[1] - where[1].start]
    return labels == label if label else np.zeros_like(mask)


# --- as bits ----------------------------------------------------------------------------------------------------------


def pack_mask(mask: np.ndarray) -> bytes:
    """A mask of any shape, non-zero inside -> compressed bits."""
    return zlib.compress(np.packbits(mask.astype(bool), axis=None).tobytes(), 6)


def unpack_mask(blob: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 mask (0/1) of ``shape`` that ``pack_mask`` was given."""
    bits = np.frombuffer(zlib.decompress(blob), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
