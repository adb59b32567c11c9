"""From probabilities to the mask that is returned: thresholds, components, safety net.

All arrays are (H, W) in one frame, usually the image frame; masks are uint8 with values 0 and 1, probabilities float in
[0, 1]. Foreground components are 8-connected, holes 4-connected. What the user's clicks ask for is in ``clicks``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.config import PostConfig, SafetyConfig
from ultrarefiner_monai.masks.overlap import mask_iou

EIGHT = np.ones((3, 3), dtype=bool)
Pixels = Iterable[tuple[int, int]]


def label_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) mask -> labels (H, W) int (0 is background) and the area of each label in pixels (entry 0 is zero)."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    where = bounding_slices(mask)
    if where is None:
        return labels, np.zeros(1, dtype=np.intp)
    labels[where], _ = ndimage.label(mask[where], EIGHT)
    areas = np.bincount(labels[where].ravel())
    areas[0] = 0
    return labels, areas


def bounding_slices(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice] | None:
    """The rows and columns that hold all of ``mask``, grown by ``margin`` within the image; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return (
        slice(max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + 1 + margin)),
    )


def fill_holes(mask: np.ndarray, keep_open: Pixels = ()) -> np.ndarray:
    """Fill background that does not reach the image's border (bool in, bool out).

    keep_open: (row, column) pixels; a hole that holds one of them stays (the user clicked "not lesion" in it).
    """
    where = bounding_slices(mask)
    if where is None:
        return mask.copy()
    # One ring of background joins all that is outside to the one label at the corner.
    crop = np.pad(mask[where], 1)
    background, _ = ndimage.label(~crop)
    filled = background != background[0, 0]
    for row, column in keep_open:
        r, c = row - where[0].start + 1, column - where[1].start + 1
        if 0 <= r < crop.shape[0] and 0 <= c < crop.shape[1] and background[r, c]:
            filled &= background != background[r, c]
    out = mask.copy()
    out[where] = filled[1:-1, 1:-1]
    return out


def prob_to_mask(
    final_prob: np.ndarray,
    config: PostConfig,
    foreground: Pixels = (),
    background: Pixels = (),
    peaks: bool = True,
) -> np.ndarray:
    """final_prob (H, W) in [0, 1] -> mask (H, W) uint8, 0 or 1.

    A pixel is lesion where its probability is greater than ``config.threshold``. Components that are too small
    (``min_area``, a share of the image) or nowhere sure enough (``min_peak``) are dropped, then holes are filled.
    foreground, background: the user's clicks as (row, column); a component with a foreground click is never dropped, a
    hole with a background click never filled. peaks: False leaves ``min_peak`` out (the user said there is something).
    """
    background = list(background)
    mask = final_prob > config.threshold
    where = bounding_slices(mask)
    if where is None:
        return mask.astype(np.uint8)
    # From here on only the rectangle that holds it all: a lesion is a small part of most images.
    inside = mask[where]
    labels, count = ndimage.label(inside, EIGHT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    keep = areas >= max(1.0, config.min_area * mask.size)
    if peaks and config.min_peak > config.threshold:
        keep &= np.bincount(labels[final_prob[where] >= config.min_peak], minlength=areas.size) > 0
    for row, column in foreground:
        if mask[row, column]:
            keep[labels[row - where[0].start, column - where[1].start]] = True
    keep[0] = False
    if not keep[1:].all():
        mask[where] = keep[labels]
    if config.fill_holes:
        mask = fill_holes(mask, background)
    return mask.astype(np.uint8)


def boundary_band(mask: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) bool: pixels within ``radius`` pixels of the mask's outline, on both sides of it.

    Distance is the larger of the two along the axes (a square window: ten times cheaper than the round one). The
    image's border is no outline. Empty for an empty mask and for one that covers the whole image.
    """
    mask = np.asarray(mask, dtype=bool)
    band = np.zeros(mask.shape, dtype=bool)
    reach = int(radius)
    where = bounding_slices(mask, margin=reach + 1)
    if where is None or reach < 1:
        return band
    crop, side = mask[where].astype(np.uint8), 2 * reach + 1
    grown = ndimage.maximum_filter(crop, side, mode="nearest")
    shrunk = ndimage.minimum_filter(crop, side, mode="nearest")
    band[where] = grown != shrunk
    return band


def safety_net(
    coarse_mask: np.ndarray, refined_mask: np.ndarray, config: SafetyConfig
) -> tuple[np.ndarray, str | None]:
    """Choose between the coarse and the refined mask -> (mask, the rule that fired or None).

    The coarse mask comes back when a rule fires; the most telling one is named:
    ``coarse_empty``   the coarse network saw no lesion, so the refined mask stands on no prompt;
    ``refined_empty``  the refiner erased the lesion;
    ``area_ratio``     area(refined) / area(coarse) is outside ``config.area_ratio``;
    ``components``     the refined mask has more than ``config.max_components`` parts;
    ``iou``            IoU(coarse, refined) is below ``config.min_iou``.
    Two empty masks agree: no rule. Where no rule fires and ``config.band_fusion_px`` is positive, the refined mask
    decides only within that many pixels of the coarse outline, the coarse mask elsewhere.
    """
    if coarse_mask.shape != refined_mask.shape:
        raise ValueError(f"safety_net needs masks of one shape, got {coarse_mask.shape} and {refined_mask.shape}")
    if not config.enabled:
        return refined_mask, None
    coarse_area, refined_area = (int(np.count_nonzero(m)) for m in (coarse_mask, refined_mask))
    if coarse_area == 0 and refined_area == 0:
        return refined_mask, None
    rule = _rule(coarse_mask, refined_mask, coarse_area, refined_area, config)
    if rule is not None:
        return coarse_mask, rule
    if config.band_fusion_px > 0:
        return fuse_band(coarse_mask, refined_mask, coarse_mask, config.band_fusion_px), None
    return refined_mask, None


def _rule(
    coarse_mask: np.ndarray, refined_mask: np.ndarray, coarse_area: int, refined_area: int, config: SafetyConfig
) -> str | None:
    if coarse_area == 0:
        return "coarse_empty"
    if refined_area == 0:
        return "refined_empty"
    low, high = config.area_ratio
    if not low <= refined_area / coarse_area <= high:
        return "area_ratio"
    if ndimage.label(refined_mask, EIGHT)[1] > config.max_components:
        return "components"
    return "iou" if mask_iou(coarse_mask, refined_mask) < config.min_iou else None


def fuse_band(coarse: np.ndarray, refined: np.ndarray, coarse_mask: np.ndarray, radius: float) -> np.ndarray:
    """``refined`` within ``radius`` pixels of the outline of ``coarse_mask``, ``coarse`` elsewhere (masks or probs)."""
    return np.where(boundary_band(coarse_mask, radius), refined, coarse)
