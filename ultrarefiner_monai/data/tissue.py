"""Lesion-free tissue: crops of images with a lesion that keep away from it. Truly lesion-free images are few."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from ultrarefiner_monai.data.datalist import Item
from ultrarefiner_monai.data.readers import read_mask, read_study

LEAST_HEIGHT, LEAST_WIDTH = 0.35, 0.40  # of the image's sides: less is no picture that a doctor would take
MARGIN = 0.02  # of the longer side: labels are drawn a little too tight
DARK, MOST_DARK = 0.04, 0.5
_TRIES = 200


def tissue_crop(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """The largest of some random rectangles of ``image`` (H, W) in [0, 1] that holds nothing of ``label`` (H, W) and is not
    mostly black; None where there is none."""
    height, width = image.shape
    margin = round(MARGIN * max(height, width))
    lesion = np.asarray(label, dtype=bool)
    # A sum over any rectangle from four corners of the running sums.
    lesions, dark = (np.pad(m.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1) for m in (lesion, image < DARK))

    def inside(sums: np.ndarray, top: int, left: int, bottom: int, right: int) -> int:
        return int(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])

    best, where = 0, None
    for _ in range(_TRIES):
        h = int(rng.integers(round(LEAST_HEIGHT * height), height + 1))
        w = int(rng.integers(round(LEAST_WIDTH * width), width + 1))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        grown = (
            max(0, top - margin),
            max(0, left - margin),
            min(height, top + h + margin),
            min(width, left + w + margin),
        )
        if h * w <= best or inside(lesions, *grown) or inside(dark, top, left, top + h, left + w) > MOST_DARK * h * w:
            continue
        best, where = h * w, (slice(top, top + h), slice(left, left + w))
    return None if where is None else np.ascontiguousarray(image[where])


def tissue_pairs(items: Sequence[Item], seed: int, per_image: int = 1) -> Iterator[tuple[str, np.ndarray, Item]]:
    """(key, image float32 in [0, 1] (h, w), the item it is from) of up to ``per_image`` crops of each image with a lesion.

    A function of ``seed`` and the item alone, whatever the other items are.
    """
    for item in items:
        if not item.has_lesion:
            continue
        image, label = read_study(item.image).frame(0), read_mask(item.mask)[0] > 0
        for k in range(per_image):
            crop = tissue_crop(image, label, np.random.default_rng([seed, k, zlib.crc32(item.key.encode())]))
            if crop is not None:
                yield f"{item.key}#{k}", crop, item
