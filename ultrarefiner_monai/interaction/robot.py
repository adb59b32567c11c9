"""A user made of rules: clicks on the worst mistake, again and again, so that clicks can be measured and trained with.

Arrays are (H, W) in the image frame, 0 and 1 or bool; a click is (x, y, positive) in pixel indices. Foreground components
are 8-connected, as everywhere. Nothing is drawn by chance: equal masks give equal clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.masks.metrics import bootstrap_interval
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.masks.postprocess import bounding_slices, label_components

Click = tuple[int, int, bool]
MOST_CLICKS = 20
REPORTED = (0, 1, 3, 5, 10)  # Dice is reported after so many clicks
LEVELS = (0.80, 0.85, 0.90)  # the number of clicks (NoC) is reported that it takes to get here


def next_click(mask: np.ndarray, label: np.ndarray, clicked_xy: Iterable[tuple[float, float]] = ()) -> Click | None:
    """Where a user would correct ``mask`` next: the deepest point of the largest error component; None without an error.

    Depth is the distance to the component's outline; beyond the image there is no error (the distance transform is
    padded, as in RITM, Sofiiuk et al. 2022), so that no click falls on the border for want of an outline there. What the
    mask misses asks for a positive click, what it has too much for a negative one. Ties: a missed part before a
    superfluous one, then the component and the pixel that come first, row by row.
    clicked_xy: earlier clicks; they are no error any more, whatever the mask says there, and the next click keeps its
    distance from them (a network may ignore a click; the result that is served never does).
    """
    if mask.shape != label.shape or mask.ndim != 2:
        raise ValueError(f"expected two (H, W) masks of one shape, got {mask.shape} and {label.shape}")
    mask, label = mask.astype(bool), label.astype(bool)
    missed, extra = label & ~mask, mask & ~label
    for x, y in clicked_xy:
        missed[round(y), round(x)] = extra[round(y), round(x)] = False
    largest, positive, area = missed, True, 0
    for error, kind in ((missed, True), (extra, False)):
        labels, areas = label_components(error)
        first = int(areas.argmax())
        if areas[first] > area:
            largest, positive, area = labels == first, kind, int(areas[first])
    where = bounding_slices(largest)
    if where is None:
        return None
    depth = ndimage.distance_transform_edt(np.pad(largest[where], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(column) + where[1].start, int(row) + where[0].start, positive


@dataclass(frozen=True)
class Game:
    """One image played. dice: after 0, 1, ... clicks, one more than were allowed; clicks: those that were made.

    Without an error left, or content with what it has, the robot stops early, and the last Dice stands for the clicks that
    were not needed.
    """

    dice: tuple[float, ...]
    clicks: tuple[Click, ...]

    @property
    def limit(self) -> int:
        """The most clicks that were allowed."""
        return len(self.dice) - 1

    def clicks_to(self, level: float) -> int | None:
        """The clicks after which Dice first was ``level`` or more (0: without any); None where it never was."""
        return next((k for k, dice in enumerate(self.dice) if dice >= level), None)


def play(
    answer: Callable[[Clicks], np.ndarray],
    start: np.ndarray,
    label: np.ndarray,
    limit: int = MOST_CLICKS,
    until: float | None = None,
) -> Game:
    """Correct ``start`` (H, W) until it is ``label`` or ``limit`` clicks are made.

    answer: all clicks made so far -> mask (H, W); they add up, as a user's do. The label must not be empty. until: the
    robot is content with this Dice and stops there; ``Game.clicks_to`` of this level is then the clicks that were made.
    """
    if limit < 1 or not label.any():
        raise ValueError(f"the robot needs at least one click and a lesion, got {limit} and {int(label.sum())} pixels")
    mask, dice = start, [dice_of(start, label)]
    clicks: list[Click] = []
    for _ in range(limit):
        if until is not None and dice[-1] >= until:
            break
        click = next_click(mask, label, [(x, y) for x, y, _ in clicks])
        if click is None:
            break
        clicks.append(click)
        mask = answer(as_clicks(clicks))
        dice.append(dice_of(mask, label))
    return Game(tuple(dice + [dice[-1]] * (limit + 1 - len(dice))), tuple(clicks))


def as_clicks(clicks: Iterable[Click]) -> Clicks:
    """The robot's clicks as a request carries them."""
    clicks = list(clicks)
    return Clicks(
        foreground_xy=tuple((x, y) for x, y, positive in clicks if positive),
        background_xy=tuple((x, y) for x, y, positive in clicks if not positive),
    )


def reported(limit: int) -> list[int]:
    """The numbers of clicks after which Dice is reported when ``limit`` are allowed."""
    return [k for k in REPORTED if k <= limit]


def clicks_needed(games: Sequence[Game], level: float) -> np.ndarray:
    """(n,) clicks to ``level``; an image that never gets there counts as the limit."""
    needed = [(game.clicks_to(level), game.limit) for game in games]
    return np.array([limit if count is None else count for count, limit in needed], dtype=np.float64)


def summarise_games(games: Sequence[Game]) -> dict[str, Any]:
    """Dice after some clicks (mean, median, 95 % interval), NoC (mean and share that failed), and what clicks spoil.

    NoC@85: clicks until Dice is .85 for the first time, 0 where the automatic result is that good, the limit where it
    never is. noc_iou is the same by IoU, the measure of the literature on natural images: IoU .85 is Dice .919.
    spoiled: share of clicks after which Dice was lower by more than .01.
    """
    if not games:
        return {"images": 0}
    limit = games[0].limit
    table = np.array([game.dice for game in games])
    steps = np.concatenate([np.diff(game.dice[: len(game.clicks) + 1]) for game in games])
    summary: dict[str, Any] = {"images": len(games), "most_clicks": limit, "dice_after": {}, "noc": {}, "noc_iou": {}}
    for k in reported(limit):
        low, high = bootstrap_interval(table[:, k])
        summary["dice_after"][str(k)] = {
            "mean": round(float(table[:, k].mean()), 4),
            "median": round(float(np.median(table[:, k])), 4),
            "ci95": [round(low, 4), round(high, 4)],
        }
    for level in LEVELS:
        for name, dice in (("noc", level), ("noc_iou", 2 * level / (1 + level))):
            failed = np.mean([game.clicks_to(dice) is None for game in games])
            summary[name][f"{100 * level:.0f}"] = {
                "mean": round(float(clicks_needed(games, dice).mean()), 3),
                "failed": round(float(failed), 4),
            }
    summary["spoiled"] = round(float((steps < -0.01).mean()), 4) if steps.size else 0.0
    return summary
