"""From an image file to its outline: frame by frame, and on a screen with several pictures region by region. The one way
that the server, the batch and the DICOM SEG share.

    outline (all frames) -> outline_frame (measured) -> predict (each B-mode region by itself) -> Predictor

The predictor sees each region by itself, and the masks are pasted back: a Doppler curve, a body mark or the maker's logo
outside the regions can so never become lesion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.image_file import ImageFile, Region
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.masks.measure import Measurement, measure
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.pipeline.proposal import Proposal

NO_CLICKS = Clicks()
Place = tuple[int, int, int, int]  # left, top, right, bottom, the last two included


@dataclass(frozen=True)
class FrameOutline:
    """One frame's result. mask: (H, W) uint8, 0 or 1. size: of its largest component. The figures are the Proposal's.

    timings: seconds a step, of what ran now; empty for a result that was remembered. keys: the image_key of each crop
    that the predictor was shown: by these the caches know the frame.
    """

    mask: np.ndarray
    size: Measurement
    iou_pred: float | None
    uncertainty: float
    presence: float | None
    safety_rule: str | None
    refiner: str
    version: str
    timings: dict[str, float]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class FileOutline:
    """An image file's result. mask: (T, H, W) uint8, 0 or 1; frames that were not asked for are 0. frames: what was found
    in each that was. shown: the frame whose figures stand for the image file."""

    mask: np.ndarray
    frames: dict[int, FrameOutline]
    shown: int

    def timings(self) -> dict[str, float]:
        """Seconds of each step, summed over the frames. "cached": 1.0 where neither the coarse network nor the encoder ran."""
        steps: dict[str, float] = {}
        for frame in self.frames.values():
            for name, seconds in frame.timings.items():
                if name not in ("total", "cached"):
                    steps[name] = steps.get(name, 0.0) + seconds
        return {**steps, "cached": min(frame.timings.get("cached", 1.0) for frame in self.frames.values())}


def outline(
    image_file: ImageFile,
    answer: Callable[[int, Clicks], FrameOutline],
    frames: Iterable[int] | None = None,
    clicks: Mapping[int, Clicks] | None = None,
) -> FileOutline:
    """Outline the frames of an image file.

    answer: (frame, its clicks) -> its result: ``outline_frame``, or one that remembers. frames: None for all of them.
    clicks: frame -> the user's, in the image frame. Raises InputError as ``predict`` and ``ImageFile.frame`` do.
    """
    clicks = clicks or {}
    mask = np.zeros(image_file.shape, np.uint8)
    found: dict[int, FrameOutline] = {}
    for k in range(image_file.n_frames) if frames is None else frames:
        result = answer(k, clicks.get(k, NO_CLICKS))
        mask[k] = result.mask
        found[k] = replace(result, mask=mask[k])  # one copy of a long cine's masks, not two
    return FileOutline(mask, found, shown_frame(found, clicks))


def shown_frame(found: Mapping[int, FrameOutline], clicks: Mapping[int, Clicks]) -> int:
    """The frame whose figures stand for the image file: the first with a click, else the one with the largest lesion.

    Frames may differ in whether their pixel size is known. A lesion in mm then comes before any in px: the two areas cannot
    be compared (a few hundred px2 would beat each mm2), and a length in mm is what a report needs. The first of equals.
    """
    if clicks:
        return min(clicks)
    sizes = {k: frame.size for k, frame in found.items()}
    return max(sizes, key=lambda k: (sizes[k].area > 0, sizes[k].unit == "mm", sizes[k].area, -k))


def outline_frame(
    predictor: Predictor,
    image_file: ImageFile,
    k: int,
    clicks: Clicks = NO_CLICKS,
    coarse_only: bool = False,
    blind: bool = False,
) -> FrameOutline:
    """Frame ``k`` of an image file, measured. clicks: in the image frame, none: the automatic result; coarse_only: the
    coarse network alone, whatever was clicked; blind: the clicks alone. Raises InputError as ``predict`` does."""
    image, regions = image_file.frame(k), image_file.regions_of(k)
    proposal = predict(predictor, image, regions, clicks, coarse_only, blind)
    start = time.perf_counter()
    size = measure(proposal.mask, image_file.spacing_of(k))
    return FrameOutline(
        mask=proposal.mask,
        size=size,
        iou_pred=proposal.iou_pred,
        uncertainty=proposal.uncertainty,
        presence=proposal.presence,
        safety_rule=proposal.safety_rule,
        refiner=proposal.refiner,
        version=proposal.version,
        timings={**proposal.timings, "measure": time.perf_counter() - start},
        keys=tuple(map(image_key, crops(image, regions))),
    )


# --- one frame's regions ----------------------------------------------------------------------------------------------


def crops(image: np.ndarray, regions: Sequence[Region]) -> list[np.ndarray]:
    """What the predictor is shown of ``image`` (H, W): each region, or the whole without any."""
    return [np.ascontiguousarray(image[region]) for region in regions] or [image]


def predict(
    predictor: Predictor,
    image: np.ndarray,
    regions: Sequence[Region] = (),
    clicks: Clicks = NO_CLICKS,
    coarse_only: bool = False,
    blind: bool = False,
) -> Proposal:
    """One frame's result. image: (H, W) float32 in [0, 1]; regions: (row slice, column slice) of the tissue, in order of
    their weight, none: all of it; clicks: in the image frame, none: the automatic result; coarse_only: the coarse network
    alone, whatever was clicked; blind: the clicks alone (``Predictor.interact``), a region without any is empty.

    The arrays cover the whole frame, 0 outside the regions. The figures are those of the region with the largest mask
    (of those with clicks, where there are any), the first one where all are empty; ``uncertainty`` and ``presence`` are the
    largest of all, ``timings`` are summed. A region without clicks gets its automatic result. Raises InputError for a click or a box that lies in no region.
    """

    def ask(crop: np.ndarray, part: Clicks) -> Proposal:
        if blind:
            return predictor.interact(crop, part, blind=True)
        return predictor.coarse(crop) if coarse_only else predictor.interact(crop, part)

    if not regions:
        return ask(image, clicks)
    shared = _by_region(NO_CLICKS if coarse_only else clicks, regions)
    found = [ask(crop, part) for crop, part in zip(crops(image, regions), shared)]
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


@dataclass(frozen=True)
class FramePoints:
    """Points that propose themselves on one frame, as clicks in the image frame. seconds, cached: as a proposal's ``timings``."""

    clicks: Clicks
    seconds: dict[str, float]
    cached: float


def frame_points(predictor: Predictor, image: np.ndarray, regions: Sequence[Region] = ()) -> FramePoints:
    """What the point proposal network finds in one frame; region by region, as ``predict``. Raises InputError as
    ``Predictor.points``."""
    corners = [(columns.start, rows.start) for rows, columns in regions] or [(0, 0)]
    found = [(predictor.points(crop), corner) for crop, corner in zip(crops(image, regions), corners)]
    foreground, background = (
        {(x + left, y + top) for (points, _), (left, top) in found for x, y in getattr(points, name)}
        for name in ("foreground_xy", "background_xy")
    )
    seconds: dict[str, float] = {}
    for (_, times), _ in found:
        seconds |= {n: seconds.get(n, 0.0) + t for n, t in times.items() if t and n not in ("total", "cached")}
    clicks = Clicks(tuple(foreground), tuple(background - foreground))
    return FramePoints(clicks, seconds, min(times["cached"] for (_, times), _ in found))


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
