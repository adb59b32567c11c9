"""A screen with several pictures on it: the predictor sees each B-mode region by itself, and the masks are pasted back.

A Doppler curve, a body mark or the maker's logo outside the regions can so never become lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ultrarefiner_monai.core.image import Region
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.pipeline.predictor import Predictor, Proposal

Mode = Literal["coarse", "propose", "interact"]
Place = tuple[int, int, int, int]  # left, top, right, bottom, the last two included


def crops(image: np.ndarray, regions: Sequence[Region]) -> list[np.ndarray]:
    """What the predictor is shown of ``image`` (H, W): each region, or the whole without any."""
    return [np.ascontiguousarray(image[region]) for region in regions] or [image]


def predict(
    predictor: Predictor,
    image: np.ndarray,
    regions: Sequence[Region] = (),
    mode: Mode = "propose",
    clicks: Clicks | None = None,
) -> Proposal:
    """One frame's result. image: (H, W) float32 in [0, 1]; regions: (row slice, column slice) of the tissue, in order of
    their weight, none: all of it; clicks: in the image frame, for ``interact``; ignored by the other modes.

    The arrays cover the whole frame, 0 outside the regions. The figures are those of the region with the largest mask
    (of those with clicks, where there are any), the first one where all are empty; ``uncertainty`` and ``presence`` are the largest of all, ``timings`` are summed. A region without
    clicks gets its automatic result. Raises InputError for a click or a box that lies in no region.
    """
    if mode == "interact" and not clicks:
        mode = "propose"
    if not regions:
        return _one(predictor, image, mode, clicks or Clicks())
    shared = _by_region(clicks if clicks and mode == "interact" else Clicks(), regions)
    found = [_one(predictor, crop, mode, part) for crop, part in zip(crops(image, regions), shared)]
    asked = [p for p, part in zip(found, shared) if part] or found  # the user looks at what was clicked on
    leading = max(asked, key=lambda proposal: int(np.count_nonzero(proposal.mask)))  # the first of equals
    presences = [p.presence for p in found if p.presence is not None]
    spread = [p.flip_uncertainty for p in found if p.flip_uncertainty is not None]
    return replace(
        leading,
        mask=_pasted([p.mask for p in found], regions, image.shape),
        final_prob=_pasted([p.final_prob for p in found], regions, image.shape),
        coarse_prob=_pasted([p.coarse_prob for p in found], regions, image.shape),
        uncertainty=max(p.uncertainty for p in found),
        flip_uncertainty=max(spread) if spread else None,
        presence=max(presences) if presences else None,
        timings={
            **{name: sum(p.timings[name] for p in found) for name in leading.timings},
            "cached": min(p.timings["cached"] for p in found),
        },
    )


def _one(predictor: Predictor, image: np.ndarray, mode: Mode, clicks: Clicks) -> Proposal:
    if mode == "interact":
        return predictor.interact(image, clicks)  # without clicks the automatic result
    return predictor.propose(image) if mode == "propose" else predictor.coarse(image)


def _pasted(parts: Sequence[np.ndarray], regions: Sequence[Region], shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, parts[0].dtype)
    for part, region in zip(parts, regions):
        whole[region] = np.maximum(whole[region], part)  # regions may overlap
    return whole


def _by_region(clicks: Clicks, regions: Sequence[Region]) -> list[Clicks]:
    """Each region's clicks in its own frame: a point is told to all regions that hold it, a box to the first that holds
    its middle, cut to it."""
    places = [(columns.start, rows.start, columns.stop - 1, rows.stop - 1) for rows, columns in regions]
    for x, y in (*clicks.foreground_xy, *clicks.background_xy):
        if not any(_holds(place, x, y) for place in places):
            raise InputError(f"the click at ({x:g}, {y:g}) {_outside(places)}")
    boxes: list[tuple[float, float, float, float] | None] = [None] * len(places)
    if clicks.box_xyxy is not None:
        x0, y0, x1, y1 = clicks.box_xyxy
        k = next((k for k, place in enumerate(places) if _holds(place, (x0 + x1) / 2, (y0 + y1) / 2)), None)
        if k is None:
            raise InputError(f"the middle of the box {clicks.box_xyxy} {_outside(places)}")
        left, top, right, bottom = places[k]
        boxes[k] = (max(x0, left) - left, max(y0, top) - top, min(x1, right) - left, min(y1, bottom) - top)
    return [
        Clicks(_within(clicks.foreground_xy, place), _within(clicks.background_xy, place), box)
        for place, box in zip(places, boxes)
    ]


def _holds(place: Place, x: float, y: float) -> bool:
    left, top, right, bottom = place
    return left - 0.5 <= x <= right + 0.5 and top - 0.5 <= y <= bottom + 0.5


def _within(points: Sequence[tuple[float, float]], place: Place) -> tuple[tuple[float, float], ...]:
    return tuple((x - place[0], y - place[1]) for x, y in points if _holds(place, x, y))


def _outside(places: Sequence[Place]) -> str:
    areas = "; ".join(f"x {left} to {right}, y {top} to {bottom}" for left, top, right, bottom in places)
    return f"lies outside the B-mode picture of this screen ({areas})"
