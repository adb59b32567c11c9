"""What the saved labels say about the work: labels over time, and for each of them clicks, seconds, and how near the
proposal was. Pure functions of rows; ``label_figures`` reads these from the journal.

An image counts once, with its first save: a model that has learnt from an image proposes something better for it, which
saves no work. Labels stand in the order in which they were saved, whatever the clock said.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import fmean, median

WINDOW = 20  # labels that a point of a curve looks back on
RECENT = 50  # labels of the figures "just now"
_MOST_POINTS = 120
_LEAST = 5  # labels that the first point of a curve looks back on
_LONGEST_SECONDS = 3600.0  # an image that was open for longer was left alone


@dataclass(frozen=True)
class Save:
    """A final label as it was saved, without its mask.

    id: rises from save to save. created: ISO 8601. clicks: points and boxes of the proposal that it was made from. dice:
    of the first, automatic proposal against it, 0 to 1. seconds: from first shown to saved. version: which model proposed;
    "" and None where nothing was proposed or it is not known.
    """

    id: int
    created: str
    image_id: str
    clicks: int | None = None
    dice: float | None = None
    seconds: float | None = None
    version: str = ""


@dataclass(frozen=True)
class Curve:
    """A figure of each label over the number of labels. points: (number of the label, figure of those up to it, at most WINDOW).

    total: sum over all labels; count: labels that have the figure; first, recent: of the first WINDOW and of the last
    RECENT labels, None without any.
    """

    points: tuple[tuple[int, float], ...] = ()
    count: int = 0
    total: float = 0.0
    first: float | None = None
    recent: float | None = None


@dataclass(frozen=True)
class OfVersion:
    """What happened while a model answered: labels, mean clicks and mean Dice of its proposals (None without any)."""

    labels: int
    clicks: float | None
    dice: float | None


@dataclass(frozen=True)
class Progress:
    """The labels so far. images: with a label; saves: with those that were saved again. times: seconds since 1970 of each
    image's first save, never falling. versions: by the version of the champion, without what a quick model adds."""

    images: int = 0
    saves: int = 0
    times: tuple[float, ...] = ()
    clicks: Curve = Curve()
    dice: Curve = Curve()
    seconds: Curve = Curve()
    versions: dict[str, OfVersion] = field(default_factory=dict)

    def labels_before(self, moment: float) -> int:
        """How many images had a label at ``moment`` (seconds since 1970)."""
        return bisect_right(self.times, moment)


def progress_of(saves: Iterable[Save]) -> Progress:
    """The curves of all saves, in any order."""
    ordered = sorted(saves, key=lambda save: save.id)
    first: dict[str, Save] = {}
    for save in ordered:
        first.setdefault(save.image_id, save)
    labels = list(first.values())
    times = in_order([_seconds(save.created) for save in ordered])
    number = {save.id: k for k, save in enumerate(ordered)}
    return Progress(
        images=len(labels),
        saves=len(ordered),
        times=tuple(times[number[save.id]] for save in labels),
        clicks=curve([save.clicks for save in labels]),
        dice=curve([save.dice for save in labels]),
        seconds=curve([plausible(save.seconds) for save in labels], median),
        versions=_by_version(labels),
    )


def curve(values: Sequence[float | None], mean: Callable[[Sequence[float]], float] = fmean) -> Curve:
    """The curve of one figure; values: of each label in order, None where it has none."""
    known = [(k + 1, float(v)) for k, v in enumerate(values) if v is not None]
    if not known:
        return Curve()
    figures = [value for _, value in known]
    step = math.ceil(len(known) / _MOST_POINTS)
    ends = sorted({*range(min(_LEAST, len(known)), len(known) + 1, step), len(known)})
    points = [(known[end - 1][0], mean(figures[max(0, end - WINDOW) : end])) for end in ends]
    return Curve(tuple(points), len(known), math.fsum(figures), mean(figures[:WINDOW]), mean(figures[-RECENT:]))


def plausible(seconds: float | None) -> float | None:
    """None for a time that a clock which was set, or an image that was left open, made up."""
    return seconds if seconds is not None and 0 <= seconds <= _LONGEST_SECONDS else None


def in_order(times: Sequence[float | None]) -> list[float]:
    """``times`` so that none is before the one in front of it. As few as possible are changed: to that of their neighbour.

    A clock that was wrong for a while, in either direction, must not shift what was saved before or after it.
    """
    kept = _rising(times)
    if not kept:
        return [0.0] * len(times)
    found, held = [], times[kept[0]] or 0.0
    good = set(kept)
    for k, moment in enumerate(times):
        held = moment if k in good and moment is not None else held
        found.append(held)
    return found


def _rising(times: Sequence[float | None]) -> list[int]:
    """The places of the longest part of ``times`` that never falls."""
    ends: list[float] = []  # the smallest last value of a part of each length
    places: list[int] = []
    before: list[int] = [-1] * len(times)
    for k, moment in enumerate(times):
        if moment is None or not math.isfinite(moment):
            continue
        length = bisect_right(ends, moment)
        before[k] = places[length - 1] if length else -1
        ends[length : length + 1] = [moment]
        places[length : length + 1] = [k]
    found, k = [], places[-1] if places else -1
    while k >= 0:
        found.append(k)
        k = before[k]
    return found[::-1]


def _by_version(labels: Iterable[Save]) -> dict[str, OfVersion]:
    groups: dict[str, list[Save]] = {}
    for save in labels:
        if save.version:
            groups.setdefault(save.version.partition("+")[0], []).append(save)
    return {
        version: OfVersion(
            len(group),
            _mean([save.clicks for save in group]),
            _mean([save.dice for save in group]),
        )
        for version, group in groups.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _seconds(created: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time, taken as UTC where it has no zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()
