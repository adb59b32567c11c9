"""Every click is honoured: what the networks left undone is mended locally, as a function of the *set* of clicks.

Arrays are (H, W) in the image frame; a pixel is (row, column), the user's coordinates are xy. Lengths scale with the
image's shorter side, so that the same click does the same on a small and on a large picture. All additions are computed
from the same mask and united; so are all cuts: the order of the clicks cannot matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.config import PostConfig
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.interaction.negative_clicks import cut, deny, depths
from ultrarefiner_monai.masks.pixels import (
    Pixel,
    Window,
    disc_in,
    edge_pixels,
    holds,
    holes_of,
    index_of,
    mask_of_window,
    nearer,
    nearest_of,
    part_with,
    rounded,
    touch_of,
    window_around,
)
from ultrarefiner_monai.masks.postprocess import EIGHT, fill_holes, label_components, prob_to_mask

# Shares of the image's shorter side.
NEAR = 0.08  # a positive click this close to the outline pulls it; farther away it adds a component
REACH = 0.25  # the largest radius of an added component

FAINT = 0.02  # below this the probability map says nothing about the place of a click
LEVELS = (0.5, 0.7, 0.85)  # adaptive thresholds, as shares of the probability at the click
SURE, DOUBTED, UNLIKELY = 0.75, 0.4, 0.25  # what a mended probability is made where clicks changed it
BOX_MARGIN = 0.05  # share of the box's side by which the result may overstep it


def click_pixels(points_xy: Sequence[tuple[float, float]], shape: tuple[int, int]) -> list[Pixel]:
    """xy in the image frame -> the pixels they fall on, sorted. Up to a pixel outside is clamped, else InputError."""
    height, width = shape
    pixels = set()
    for x, y in points_xy:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(f"a click needs two finite coordinates, got ({x}, {y})")
        if not (-1 <= x <= width and -1 <= y <= height):
            raise InputError(
                f"click ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels; "
                f"x must be in 0..{width - 1} and y in 0..{height - 1}"
            )
        pixels.add((index_of(y, height), index_of(x, width)))
    return sorted(pixels)


def box_window(box_xyxy: tuple[float, float, float, float], shape: tuple[int, int], margin: float = 0.0) -> Window:
    """The rows and columns that a box covers, grown by ``margin`` (share of each side, then at least 2 pixels).

    InputError when the box is not finite, inverted or wholly outside the image; what sticks out is clipped.
    """
    x0, y0, x1, y1 = box_xyxy
    height, width = shape
    if not all(map(math.isfinite, box_xyxy)) or x0 > x1 or y0 > y1:
        raise InputError(f"a box is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1, all finite, got {box_xyxy}")
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise InputError(f"box {box_xyxy} lies outside the image of {width} x {height} pixels")
    dx, dy = (max(2.0, margin * (x1 - x0)), max(2.0, margin * (y1 - y0))) if margin else (0.0, 0.0)
    rows = slice(index_of(y0 - dy, height), index_of(y1 + dy, height) + 1)
    columns = slice(index_of(x0 - dx, width), index_of(x1 + dx, width) + 1)
    return rows, columns


class PixelClicks(NamedTuple):
    """Clicks and box that were checked against their frame. The pixels (row, column) of the positive and of the negative
    clicks, each sorted; box_xyxy reaches the frame, which it may overstep."""

    positive: list[Pixel]
    negative: list[Pixel]
    box_xyxy: tuple[float, float, float, float] | None = None


def check_clicks(clicks: Clicks, shape: tuple[int, int]) -> PixelClicks:
    """A user's clicks as all below takes them. The one check of a frame (H, W): what comes after it relies on it.

    Raises InputError for clicks or a box outside the image and for a positive and a negative click on one pixel.
    """
    positive = click_pixels(clicks.foreground_xy, shape)
    negative = click_pixels(clicks.background_xy, shape)
    both = sorted(set(positive) & set(negative))
    if both:
        row, column = both[0]
        raise InputError(
            f"a foreground and a background click lie on the same pixel (x {column}, y {row}); remove one of them"
        )
    if clicks.box_xyxy is not None:
        box_window(clicks.box_xyxy, shape)
    return PixelClicks(positive, negative, clicks.box_xyxy)


def honour_clicks(mask: np.ndarray, prob: np.ndarray, clicks: PixelClicks) -> np.ndarray:
    """mask (H, W), prob (H, W) in [0, 1] and the user's clicks -> mask (H, W) uint8 in which each click is honoured.

    box: nothing outside it (plus a small margin) is kept; if nothing is left, the likeliest region in it, or else the
        ellipse inscribed in it, takes its place (unless there are positive clicks to say where the lesion is).
    positive click outside the mask: close to the outline it pulls the outline over itself; farther away it adds the
        region of the probability map around it, or a disc where the map knows nothing.
    negative click inside the mask: removes a whole component that no positive click holds when the click is in its core
        (deep, and where the network is sure) or the component small; else the appendage it sits on, the weak part
        around it, and at least a bite of the outline. Pixels nearer to a positive click are never taken, nor given where a negative click is nearer.
    A positive click outside the box counts all the same.
    """
    positive, negative, box_xyxy = clicks
    kept = np.asarray(mask, dtype=bool).copy()
    window = None
    if box_xyxy is not None:
        window = box_window(box_xyxy, (mask.shape[0], mask.shape[1]), BOX_MARGIN)
        kept = _inside_box(kept, prob, box_xyxy, window, positive)
    kept = deny(kept, prob, positive, negative, boxed=window is not None)
    kept = _add(kept, prob, positive, negative, window)
    kept = cut(kept, prob, positive, negative)
    return kept.astype(np.uint8)


def core_clicks(mask: np.ndarray) -> Clicks:
    """A foreground click in the deepest pixel of each component of mask (H, W); empty for an empty mask."""
    labels, areas = label_components(mask)
    points = []
    for label in np.flatnonzero(areas):
        where, _, depth, _ = depths(labels == label)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        points.append((float(column + where[1].start), float(row + where[0].start)))
    return Clicks(foreground_xy=tuple(points))


def mend(prob: np.ndarray, clicks: PixelClicks, config: PostConfig) -> np.ndarray:
    """The coarse probability as clicks alone would mend it: (H, W) float32 in [0, 1].

    It is what the refiner starts from, since it sharpens a mask sooner than it gives one up or finds another: at least
    SURE inside the mask, at most UNLIKELY outside, and DOUBTED where a click denied a whole component. Whether all of
    that is wrong or only the side that was clicked, the refiner can see in the image and the clicks cannot say.
    A function of the set of clicks.
    """
    before = prob_to_mask(prob, config, clicks.positive, clicks.negative, peaks=True)
    mask = honour_clicks(before, prob, clicks)
    inside = mask > 0
    out = np.where(inside, np.maximum(prob, SURE), np.minimum(prob, UNLIKELY)).astype(np.float32)
    labels, areas = label_components(before)
    if areas.size > 1:
        left = np.bincount(labels[inside], minlength=areas.size)
        denied = (left == 0)[labels] & (labels > 0) & ~inside
        out[denied] = DOUBTED
    return out


# --- the box ----------------------------------------------------------------------------------------------------------


def _inside_box(
    mask: np.ndarray,
    prob: np.ndarray,
    box_xyxy: tuple[float, float, float, float],
    window: Window,
    positive: list[Pixel],
) -> np.ndarray:
    out = np.zeros_like(mask)
    out[window] = mask[window]
    if out.any() or any(holds(window, pixel) for pixel in positive):
        return out
    tight = box_window(box_xyxy, (prob.shape[0], prob.shape[1]))
    local = prob[tight]
    peak = np.unravel_index(int(local.argmax()), local.shape)
    if local[peak] >= FAINT:
        labels, _ = ndimage.label(local >= LEVELS[0] * local[peak], EIGHT)
        region = labels == labels[peak]
        # A speck, or a map without contrast in the box, says less than the box itself.
        if 0.05 <= region.mean() <= 0.9:
            out[tight] = fill_holes(region)
            return out
    rows, columns = np.ogrid[: local.shape[0], : local.shape[1]]
    y, x = (local.shape[0] - 1) / 2, (local.shape[1] - 1) / 2
    out[tight] = ((rows - y) / (y + 0.5)) ** 2 + ((columns - x) / (x + 0.5)) ** 2 <= 1
    return out


# --- positive clicks --------------------------------------------------------------------------------------------------


def _add(
    mask: np.ndarray, prob: np.ndarray, positive: list[Pixel], negative: list[Pixel], window: Window | None
) -> np.ndarray:
    missed = [pixel for pixel in positive if not mask[pixel]]
    if not missed:
        return mask
    edge = edge_pixels(mask)
    out = mask.copy()
    for pixel in missed:
        where, region, near = _grow(prob, pixel, edge, positive, negative, window)
        if near:
            where, region = rounded(mask, where, region, 2 * touch_of(prob))
            region &= nearer(where, positive, negative, ties=True)
            if window is not None and holds(window, pixel):
                region &= mask_of_window(where, window)
        out[where] |= region
    # The pulled-out outline may enclose a gap of background.
    return fill_holes(out, [*holes_of(mask), *negative]) if mask.any() else out


def _grow(
    prob: np.ndarray,
    click: Pixel,
    edge: np.ndarray,
    positive: list[Pixel],
    negative: list[Pixel],
    window: Window | None,
) -> tuple[Window, np.ndarray, bool]:
    """What one positive click outside the mask adds: (window in the image, bool array of its size, is it a pull)."""
    side, touch = min(prob.shape), touch_of(prob)
    centre, gap = nearest_of(edge, click)
    near = gap <= max(NEAR * side, touch)
    if near:
        radius = gap + touch
    else:  # stays clear of the outline: a component of its own
        centre, radius = click, max(touch, min(REACH * side, gap - 2))
    where = window_around([(centre, radius), (click, 2 * touch)], prob.shape)
    allowed = nearer(where, positive, negative, ties=True)
    if window is not None and holds(window, click):
        allowed &= mask_of_window(where, window)
    seed = disc_in(where, click, touch) & allowed
    disc = disc_in(where, centre, radius) & allowed
    local = prob[where]
    level = float(local[seed].max())
    if near:
        candidate = disc if level < FAINT else disc & (local >= LEVELS[0] * level)
        return where, part_with(candidate | seed, click, where), True
    rim = disc & ~disc_in(where, centre, radius - 1.5)
    for share in LEVELS if level >= FAINT else ():
        region = part_with((disc & (local >= share * level)) | seed, click, where)
        # A region that runs into the rim is bounded by the disc, not by what the network saw: ask for more contrast.
        if not (region & rim).any():
            return where, fill_holes(region) & allowed, False
    return where, part_with((disc_in(where, click, 2 * touch) & allowed) | seed, click, where), False
