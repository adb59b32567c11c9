"""Negative clicks: the components that they deny, and what they bite off the others. See ``clicks``.

Arrays are (H, W) in the image frame; a pixel is (row, column). All cuts are computed from the same mask and united: the
order of the clicks cannot matter.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.masks.pixels import Pixel, Window, disc_in, nearer, part_with, rounded, touch_of
from ultrarefiner_monai.masks.postprocess import EIGHT, bounding_slices, label_components

DEEP, VERY_DEEP = 0.65, 0.85  # share of the largest depth at which a negative click denies the whole component
UNSURE = 0.15  # a place this much less probable than the component's core is a leak at its side, not the core


def deny(mask: np.ndarray, prob: np.ndarray, positive: list[Pixel], negative: list[Pixel], boxed: bool) -> np.ndarray:
    """Remove the components that a negative click denies as a whole: it lies in the core, or the component is small.

    Before anything is added: a positive click beside a denied component means another lesion, not an end of this one.
    """
    hits = [pixel for pixel in negative if mask[pixel]]
    if not hits:
        return mask
    labels, areas = label_components(mask)
    held = {int(labels[pixel]) for pixel in positive if mask[pixel]}
    if boxed and np.count_nonzero(areas) == 1:  # the box says that there is a lesion: do not take the only one away
        held.add(1)
    out = mask.copy()
    for pixel in hits:
        label = int(labels[pixel])
        if label in held:
            continue
        component = labels == label
        where, inside, depth, _ = depths(component)
        row, column = pixel[0] - where[0].start, pixel[1] - where[1].start
        deep = depth[row, column] >= (VERY_DEEP if _is_weak(prob, pixel, where, inside) else DEEP) * depth.max()
        if deep or areas[label] <= math.pi * (2 * touch_of(prob)) ** 2:
            out[component] = False
    return out


def cut(mask: np.ndarray, prob: np.ndarray, positive: list[Pixel], negative: list[Pixel]) -> np.ndarray:
    """What the negative clicks inside bite off: the appendage, the weak part around them, at least a bit of the outline."""
    hits = [pixel for pixel in negative if mask[pixel]]
    if not hits:
        return mask
    labels, areas = label_components(mask)
    out = mask.copy()
    for pixel in hits:
        where, region = _cut_one(labels == labels[pixel], prob, pixel, positive, negative)
        out[where] &= ~region
    return _without_crumbs(out, labels, areas, positive)


def _cut_one(
    component: np.ndarray, prob: np.ndarray, click: Pixel, positive: list[Pixel], negative: list[Pixel]
) -> tuple[Window, np.ndarray]:
    """What one negative click bites off its component: (window in the image, bool array of its size)."""
    touch = touch_of(prob)
    where, inside, depth, nearest = depths(component)
    row, column = click[0] - where[0].start, click[1] - where[1].start
    outline = (int(nearest[0, row, column]) + where[0].start, int(nearest[1, row, column]) + where[1].start)
    here, local = float(depth[row, column]), prob[where]
    bite = disc_in(where, outline, here + touch)
    bite |= _appendage(inside, depth, (row, column), float(depth.max()))
    if _is_weak(prob, click, where, inside):
        weak = inside & (local <= prob[click] + 0.02) & disc_in(where, click, 2.5 * (here + touch))
        bite |= part_with(weak, click, where)
    bite &= inside & nearer(where, negative, positive, ties=False)
    # What is cut joins the background as what is pulled in joins the lesion: without horns beside it.
    where, bite = rounded(~component, where, bite, touch)
    return where, bite & component[where] & nearer(where, negative, positive, ties=False)


def depths(component: np.ndarray) -> tuple[Window, np.ndarray, np.ndarray, np.ndarray]:
    """The component's window, and in it: the component, the distance to its outline, the pixel (2, h, w) of the outline
    that is nearest. Beyond the image there is no lesion: its border is an outline."""
    where = bounding_slices(component)
    assert where is not None
    inside = component[where]
    depth, nearest = ndimage.distance_transform_edt(np.pad(inside, 1), return_indices=True)
    return where, inside, depth[1:-1, 1:-1], nearest[:, 1:-1, 1:-1] - 1


def _is_weak(prob: np.ndarray, click: Pixel, where: Window, inside: np.ndarray) -> bool:
    """Whether the network is less sure at the click than in the component's core."""
    return bool(prob[click] < float(np.quantile(prob[where][inside], 0.9)) - UNSURE)


def _appendage(inside: np.ndarray, depth: np.ndarray, click: Pixel, thickest: float) -> np.ndarray:
    """The part around ``click`` that an opening removes which is just wider than the tissue there; else nothing."""
    distance = np.hypot(*np.ogrid[-click[0] : inside.shape[0] - click[0], -click[1] : inside.shape[1] - click[1]])
    thickness = float(depth[distance < depth].max(initial=0.0))
    body = depth > thickness + 1
    if thickness > 0.6 * thickest or not body.any():
        return np.zeros_like(inside)
    rest = inside & (ndimage.distance_transform_edt(~body) > thickness + 1)
    labels, _ = ndimage.label(rest, EIGHT)
    return (labels == labels[click]) & rest[click]


def _without_crumbs(mask: np.ndarray, before: np.ndarray, areas: np.ndarray, positive: list[Pixel]) -> np.ndarray:
    """Drop the specks that a cut left beside the largest remainder of a component, unless a positive click is in it."""
    labels, sizes = label_components(mask)
    speck = math.pi * touch_of(mask) ** 2
    held = {int(labels[pixel]) for pixel in positive}
    parents = np.zeros(sizes.size, dtype=int)
    parents[labels[mask]] = before[mask]  # a part lies within one component
    largest = np.zeros(areas.size, dtype=int)
    np.maximum.at(largest, parents, sizes)
    drop = (sizes < speck) & (sizes < areas[parents]) & (sizes < largest[parents])
    drop[list(held)] = False
    return mask & ~drop[labels]
