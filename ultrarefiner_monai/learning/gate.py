"""The gate: whether a candidate may take the champion's place, from both models' results on the same validation labels.

Promoted is what is not worse, without clicks and with. One figure is tested: the Dice of a patient, averaged over the
results without clicks and after one and three. The one-sided lower bound of its mean change is at least -margin (paired
bootstrap, patients and near-duplicates drawn as one). Each of the three has to hold besides: its mean change is at least
-margin, no more lesions are failures (Dice < .5), no more lesion-free images are false alarms. One bound, not three: with
three, each of them on few patients, hardly anything passes, however much better it is. The clicks are those of the robot
(``interaction/robot.py``), on a seeded choice of the images, so that the gate's time is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.datasets.grouping import thumbnail_of
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.interaction.robot import Click, as_clicks, next_click
from ultrarefiner_monai.learning.gate_power import FAILURE, Pair, combined, power
from ultrarefiner_monai.learning.label_split import SplitImage, likenesses
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT, paired_bootstrap
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.pipeline.predictor import Predictor

log = logging.getLogger(__name__)

CLICKS = (0, 1, 3)  # results are compared after so many
MOST_CLICKED = 40  # groups with a lesion, and as many images without one, that are clicked on
# A bound that is drawn from fewer patients means little, however many labels they have; and one has no spread at all.
LEAST_PATIENTS = 5
BETTER = 0.02  # the report says how likely a candidate is promoted that is better by so much


@dataclass(frozen=True)
class Compared:
    """Champion and candidate after so many clicks. Dice: mean over the groups with a lesion, each group's images taken
    together first. low: the one-sided lower bound of the change, of this figure alone. (champion, candidate) each: failures
    of ``lesions`` images, false alarms of ``normals``."""

    clicks: int
    groups: int
    lesions: int
    normals: int
    dice: tuple[float, float]
    low: float
    failures: tuple[int, int]
    false_alarms: tuple[int, int]


@dataclass(frozen=True)
class GateReport:
    """What the gate found. reasons: why the candidate did not pass; none where it did. warnings: what else a person should
    know who promotes it by hand.

    labels: with a lesion that validate, near-duplicates and the frames of one cine once. groups: patients (near-duplicates as
    one) whom they belong to. power_equal, power_better: the probability that
    this gate, on so many labels, promotes a candidate that is truly equal, or truly better by ``BETTER`` (``gate_power``).
    change, low: mean change in Dice over the results without clicks and with, and its bound: what is tested.
    """

    passed: bool
    reasons: tuple[str, ...]
    champion: str
    candidate: str
    labels: int
    groups: int
    compared: tuple[Compared, ...]
    change: float
    low: float
    power_equal: float
    power_better: float
    margin: float
    level: float
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, figures rounded to six digits: all texts then round the same figure to three."""
        return _plain(asdict(self))

    def figures(self, side: int) -> dict[str, Any]:
        """The champion's (0) or the candidate's (1) automatic results, as trainings report them."""
        if not self.compared:
            return {"dice": None, "lesions": 0, "false_alarms": 0, "normals": 0}
        found = self.compared[0]
        return {
            "dice": round(found.dice[side], 6) if found.groups else None,
            "lesions": found.lesions,
            "failures": found.failures[side],
            "false_alarms": found.false_alarms[side],
            "normals": found.normals,
        }


def judge(
    champion: Predictor, candidate: Predictor, items: Sequence[Item], options: LearningConfig, by_itself: bool = True
) -> GateReport:
    """Compare both models on the validation labels ``items``, at the images' own size.

    by_itself: nobody looks at the report before the candidate serves: then too few labels are a reason to refuse, else a
    warning. Raises InputError for an image or label that cannot be read.
    """
    items = sorted(items, key=lambda i: i.id)
    clicked = clicked_on(items)
    played = [_play(champion, candidate, item, max(CLICKS) if item.id in clicked else 0) for item in items]
    results = [result for result, _ in played]
    labels = _labels(items, [small for _, small in played])
    pairs = [_pair(items, results, clicks) for clicks in CLICKS]
    compared = tuple(_compared(clicks, pair, options) for clicks, pair in zip(CLICKS, pairs, strict=True))
    groups = pairs[0].groups
    few = too_few(labels, groups, options.validation_labels)
    change, low = bounded(pairs, options)
    reasons = tuple(reason for found in compared for reason in _reasons(found, options))
    if groups and low < -options.margin:
        tested = (
            f"the mean Dice, without clicks and with, changed by {change:+.3f} and may be lower by {-low:.3f} "
            f"(allowed: {options.margin:g})"
        )
        reasons = (tested, *reasons)
    reasons = (few, *reasons) if few and by_itself else reasons
    if not groups:
        reasons = ("no label with a lesion validates",)
    chances = [power(pairs, options, by, seed=0) if groups else 0.0 for by in (0.0, BETTER)]
    report = GateReport(
        passed=not reasons,
        reasons=reasons,
        champion=champion.system.version,
        candidate=candidate.system.version,
        labels=labels,
        groups=groups,
        compared=compared,
        change=change,
        low=low,
        power_equal=chances[0],
        power_better=chances[1],
        margin=options.margin,
        level=options.level,
        warnings=(few,) if few and groups else (),
    )
    log.info("the gate: %s", "passed" if report.passed else "; ".join(report.reasons))
    return report


def too_few(labels: int, patients: int, needed: int) -> str:
    """Why so many labels are too few for a promotion by itself, in words; empty where they suffice."""
    if labels < needed:
        return f"{labels} label(s) with a lesion validate; {needed} are needed"
    least = min(LEAST_PATIENTS, needed)
    return f"the labels that validate are of {patients} patient(s); {least} are needed" if patients < least else ""


def _labels(items: Sequence[Item], thumbnails: Sequence[np.ndarray]) -> int:
    """How many labels with a lesion there are; a hundred copies of one image are one, two pictures of one patient that differ two."""
    frames: dict[str, list[np.ndarray]] = {}
    for item, small in zip(items, thumbnails, strict=True):
        if item.has_lesion:
            frames.setdefault(item.id.rpartition("@")[0] or item.id, []).append(small)
    return len(set(likenesses([SplitImage(name, "", np.stack(own), True) for name, own in frames.items()]).values()))


def clicked_on(items: Sequence[Item], most: int = MOST_CLICKED) -> set[str]:
    """Ids of the images that the robot clicks on: one of each group, up to ``most`` with a lesion and as many without.

    The choice depends on the names alone, so that figures of different days are of the same images.
    """
    chosen: set[str] = set()
    for lesion in (True, False):
        first: dict[str, str] = {}
        for item in sorted(items, key=lambda i: i.id):
            if item.has_lesion == lesion:
                first.setdefault(item.group, item.id)
        names = sorted(first.values())
        order = np.random.default_rng(0).permutation(len(names))
        chosen |= {names[k] for k in order[:most]}
    return chosen


# Clicks -> (champion's, candidate's) Dice; of an image without a lesion the share of pixels that are marked.
Result = dict[int, tuple[float, float]]


def _play(champion: Predictor, candidate: Predictor, item: Item, limit: int) -> tuple[Result, np.ndarray]:
    """Both models' results, and the image's thumbnail."""
    image, label = read_image_file(item.image).frame(0), read_mask(item.mask)[0].astype(bool)
    models = [p.seen_as(item.view) for p in (champion, candidate)]
    sides = [_answers(lambda clicks, p=p: p.interact(image, clicks).mask, label, limit) for p in models]  # type: ignore[misc]
    small = thumbnail_of(image)
    return {clicks: (sides[0][clicks], sides[1][clicks]) for clicks in sides[0]}, small


def _answers(answer: Callable[[Clicks], np.ndarray], label: np.ndarray, limit: int) -> dict[int, float]:
    """After each number of ``CLICKS`` up to ``limit``: Dice where there is a lesion, else the share of pixels marked."""
    found: dict[int, float] = {}
    mask, clicks = answer(Clicks()), list[Click]()
    for count in range(limit + 1):
        if count in CLICKS:
            found[count] = dice_of(mask, label) if label.any() else float(mask.mean())
        click = next_click(mask, label, [(x, y) for x, y, _ in clicks]) if count < limit else None
        if click is not None:  # without an error left the robot is content
            clicks.append(click)
            mask = answer(as_clicks(clicks))
    return found


def _pair(items: Sequence[Item], results: Sequence[Result], clicks: int) -> Pair:
    """Both models' Dice of the images with a lesion, with the group of each, and what they mark on the others."""
    dice, groups, marked = [], [], []
    # The same number for a group after any number of clicks: not all are clicked on.
    numbers = {name: k for k, name in enumerate(sorted({item.group for item in items if item.has_lesion}))}
    for item, result in zip(items, results, strict=True):
        if clicks not in result:
            continue
        if item.has_lesion:
            dice.append(result[clicks])
            groups.append(numbers[item.group])
        else:
            marked.append(result[clicks])
    return Pair(
        np.array(dice, dtype=np.float64).reshape(-1, 2),
        np.array(groups, dtype=int),
        np.array(marked, dtype=np.float64).reshape(-1, 2) > NORMAL_LIMIT,
    )


def _compared(clicks: int, pair: Pair, options: LearningConfig) -> Compared:
    failures, alarms = (pair.dice < FAILURE).sum(axis=0), pair.alarms.sum(axis=0)
    held = np.unique(pair.group)
    means, low = pair.group_means()[held], 0.0
    dice = (0.0, 0.0)
    if len(means):
        found = paired_bootstrap(means[:, 0], means[:, 1], level=2 * options.level - 1)
        dice, low = (found.before, found.after), found.low
    return Compared(
        clicks=clicks,
        groups=len(held),
        lesions=len(pair.dice),
        normals=len(pair.alarms),
        dice=dice,
        low=low,
        failures=(int(failures[0]), int(failures[1])),
        false_alarms=(int(alarms[0]), int(alarms[1])),
    )


def bounded(pairs: Sequence[Pair], options: LearningConfig) -> tuple[float, float]:
    """The mean change in Dice over the results after each number of clicks, and its one-sided lower bound."""
    means = combined(pairs)
    if not len(means):
        return 0.0, 0.0
    found = paired_bootstrap(means[:, 0], means[:, 1], level=2 * options.level - 1)
    return found.difference, found.low


def _reasons(found: Compared, options: LearningConfig) -> list[str]:
    """Why a candidate is refused by its results after so many clicks, in words."""
    after = {0: "without clicks", 1: "after one click"}.get(found.clicks, f"after {found.clicks} clicks")
    reasons = []
    if found.groups and found.dice[1] - found.dice[0] < -options.margin:
        reasons.append(
            f"{after} the mean Dice went from {found.dice[0]:.3f} to {found.dice[1]:.3f} (allowed: {options.margin:g} less)"
        )
    if found.failures[1] > found.failures[0]:
        reasons.append(
            f"{after} {found.failures[1]} of {found.lesions} lesions have a Dice below {FAILURE:g}; {found.failures[0]} before"
        )
    if found.false_alarms[1] > found.false_alarms[0]:
        reasons.append(
            f"{after} {found.false_alarms[1]} of {found.normals} lesion-free images are marked; {found.false_alarms[0]} before"
        )
    return reasons


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
