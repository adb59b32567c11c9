"""Lesion-free tissue: crops of lesion images that keep away from the lesions. Images without a lesion are rare.

A crop has the grain, the machine and the marks of its hospital, so what a network finds there is a false alarm.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item, group_of
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.training.data.loading import GROUP
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL

log = logging.getLogger(__name__)
_DRAWN = 400  # rectangles that are tried at once
_DARK, _LIT_SHARE, _MEAN = 0.04, 0.6, 0.08  # tissue: so many pixels brighter than dark, and so bright on the whole


def tissue_crop(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    width: float = 0.4,
    height: float = 0.35,
    margin: float = 0.15,
) -> np.ndarray | None:
    """A random rectangle of the image (H, W) in [0, 1] without any lesion, rather a large one; None where there is none.

    label (H, W): above one half is lesion. width, height: the smallest crop, shares of the image's. margin: the distance
    to each lesion, as a share of that lesion's longer side (at least 2 pixels). The crop shows tissue, not black borders.
    """
    boxes = _draw(image.shape, rng, width, height)
    free = boxes[~_touches(boxes, _forbidden(label, margin))]
    free = free[_shows_tissue(image, free)]
    if not len(free):
        return None
    area = ((free[:, 2] - free[:, 0]) * (free[:, 3] - free[:, 1])).astype(float)
    top, left, bottom, right = free[rng.choice(len(free), p=area**2 / (area**2).sum())]
    return image[top:bottom, left:right].copy()


def _shows_tissue(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """image (H, W) in [0, 1], (n, 4) boxes -> (n,): whether each is for the greater part not black."""
    lit, mean = (_means(values, boxes) for values in (image > _DARK, image))
    return (lit >= _LIT_SHARE) & (mean >= _MEAN)


def _means(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(H, W), (n, 4) -> (n,) means, from sums over all rectangles that begin at the top left."""
    sums = np.pad(values.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    top, left, bottom, right = boxes.T
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside / ((bottom - top) * (right - left))


def _draw(shape: tuple[int, ...], rng: np.random.Generator, width: float, height: float) -> np.ndarray:
    """(_DRAWN, 4) of top, left, bottom, right."""
    high, wide = shape[0], shape[1]
    share = rng.uniform((height, width), 1, (_DRAWN, 2))
    size = np.clip(np.ceil(share * (high, wide)).astype(int), 1, (high, wide))
    start = np.floor(rng.uniform(size=(_DRAWN, 2)) * ((high, wide) - size + 1)).astype(int)
    return np.concatenate([start, start + size], axis=1)


def _forbidden(label: np.ndarray, margin: float) -> np.ndarray:
    """(n, 4) boxes around the lesions with their margins."""
    found = ndimage.find_objects(ndimage.label(np.asarray(label) > 0.5, np.ones((3, 3)))[0])
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in found]
    away = [max(2, round(margin * max(b[2] - b[0], b[3] - b[1]))) for b in boxes]
    return np.array([(b[0] - a, b[1] - a, b[2] + a, b[3] + a) for b, a in zip(boxes, away)], int).reshape(-1, 4)


def _touches(boxes: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """(n, 4), (m, 4) -> (n,): whether a box has a pixel in common with any of the others."""
    b, o = boxes[:, None], lesions[None]
    apart = (b[..., 2] <= o[..., 0]) | (b[..., 0] >= o[..., 2]) | (b[..., 3] <= o[..., 1]) | (b[..., 1] >= o[..., 3])
    return np.asarray(~apart.all(axis=1))


def _crop_of(item: Item, seed: int, k: int) -> np.ndarray | None:
    """The k-th crop of a lesion image: depends on the seed, its key and k alone."""
    image = read_image_file(item.image).frame(0)
    label = read_mask(item.mask)[0]
    if label.shape != image.shape:
        raise InputError(f"{item.mask} is {label.shape[::-1]} pixels, its image {image.shape[::-1]}")
    return tissue_crop(image, label, np.random.default_rng([seed, zlib.crc32(item.key.encode()), k]))


def tissue_samples(items: Sequence[Item], share: float, seed: int) -> list[dict[str, Any]]:
    """Crops as training samples with empty labels, ``share`` times as many as there are lesion images.

    Each is another random crop; where an image has no room beside its lesion, others give more. Fewer come back when
    hardly any image has room. Kept in half precision (enough for 8-bit pictures), since all stay in the memory.
    """
    lesions = [i for i in items if i.has_lesion]
    wanted = round(share * len(lesions))
    samples: list[dict[str, Any]] = []
    order = np.random.default_rng(seed).permutation(len(lesions))
    for k in range(2 * int(np.ceil(share))):
        for index in order:
            if len(samples) == wanted:
                break
            item = lesions[index]
            crop = _crop_of(item, seed, k)
            if crop is not None:
                samples.append(_sample(item, k, crop))
    if len(samples) < wanted:
        log.warning("%d lesion-free crops were asked for, the images have room for %d", wanted, len(samples))
    return samples


def _sample(item: Item, k: int, crop: np.ndarray) -> dict[str, Any]:
    empty = np.broadcast_to(np.float32(0), crop.shape)
    name = f"tissue:{item.key}:{k}"
    return {ID: name, IMAGE: crop.astype(np.float16), LABEL: empty, GROUP: group_of(item)}


def tissue_pairs(items: Sequence[Item], seed: int, per_image: int = 1) -> Iterator[tuple[str, np.ndarray, Item]]:
    """(key, crop (h, w) float32 in [0, 1], item) for each lesion image that has room, for evaluation and calibration."""
    for item in items:
        if item.has_lesion:
            for k in range(per_image):
                crop = _crop_of(item, seed, k)
                if crop is not None:
                    yield f"tissue:{item.key}:{k}", crop, item
