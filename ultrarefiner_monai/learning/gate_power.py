"""How likely the gate promotes a candidate, from the spread that was observed between two models.

The gate is played again on made-up validation lists: as many groups (patients) as there are, drawn with replacement, and in
each the two models' results are swapped or not, by a coin. So nothing distinguishes the two but chance: they are truly
equal. For a candidate that is truly better, its Dice is raised by that much everywhere. All rules are applied; the
bootstrap's bound is taken from the normal distribution (mean - z * standard error), which at 20 values differs little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ultrarefiner_monai.config import LearningConfig

PLAYS = 2000
FAILURE = 0.5  # a lesion whose Dice is below is not found


@dataclass(frozen=True)
class Pair:
    """Two models' results after so many clicks. dice: (n, 2) of the images with a lesion; group: (n,) the group's number
    among all that are compared, from 0; alarms: (m, 2) bool, the lesion-free images that are marked."""

    dice: np.ndarray
    group: np.ndarray
    alarms: np.ndarray

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1 if len(self.group) else 0

    def group_means(self, raised: float = 0.0) -> np.ndarray:
        """(groups, 2) mean Dice; that of the second column raised, to 1 at most."""
        dice = self.dice + np.array([0.0, raised])
        return self._sums(np.minimum(dice, 1.0)) / np.maximum(self._sums(np.ones_like(dice)), 1)

    def group_failures(self, raised: float = 0.0) -> np.ndarray:
        """(groups, 2) lesions whose Dice is below .5."""
        return self._sums((self.dice + np.array([0.0, raised]) < FAILURE).astype(np.float64))

    def swapped(self) -> Pair:
        return Pair(self.dice[:, ::-1], self.group, self.alarms[:, ::-1])

    def _sums(self, values: np.ndarray) -> np.ndarray:
        out = np.zeros((self.groups, 2))
        np.add.at(out, self.group, values)
        return out


def combined(pairs: Sequence[Pair], raised: float = 0.0) -> np.ndarray:
    """(groups, 2): each group's Dice, averaged over the results of ``pairs`` (numbers of clicks) that it has."""
    groups = max((pair.groups for pair in pairs), default=0)
    total, count = np.zeros((groups, 2)), np.zeros((groups, 1))
    for pair in pairs:
        held = np.unique(pair.group)
        total[held] += pair.group_means(raised)[held]
        count[held] += 1
    return total / np.maximum(count, 1)


def power(pairs: Sequence[Pair], options: LearningConfig, better: float, seed: int = 0, plays: int = PLAYS) -> float:
    """The share of plays in which the candidate is promoted. pairs: one for each number of clicks, of the same two models and
    with the same numbers for the groups; better: how much the candidate's Dice is truly higher."""
    rng = np.random.default_rng(seed)
    passed = np.ones(plays, dtype=bool)
    groups = max((pair.groups for pair in pairs), default=0)
    if groups:
        size = (plays, groups)
        chosen, swap = rng.integers(0, groups, size), (rng.random(size) < 0.5).astype(int)
        change = _sides(lambda side: combined(side, better), pairs)[swap, chosen]
        error = change.std(axis=1, ddof=1) / np.sqrt(groups) if groups > 1 else np.zeros(plays)
        passed &= change.mean(axis=1) - NormalDist().inv_cdf(options.level) * error >= -options.margin
    for pair in pairs:
        if pair.groups:
            held = np.bincount(pair.group, minlength=groups)[chosen] > 0
            dice = _padded(_sides(lambda side: side[0].group_means(better), [pair]), groups)[swap, chosen]
            failures = _padded(_sides(lambda side: side[0].group_failures(better), [pair]), groups)[swap, chosen]
            passed &= (dice * held).sum(axis=1) / np.maximum(held.sum(axis=1), 1) >= -options.margin
            passed &= failures.sum(axis=1) <= 0
        if len(pair.alarms):
            more = (pair.alarms[:, 1].astype(int) - pair.alarms[:, 0])[
                rng.integers(0, len(pair.alarms), (plays, len(pair.alarms)))
            ]
            passed &= (more * rng.choice([-1, 1], more.shape)).sum(axis=1) <= 0
    return float(passed.mean())


def _sides(values: Callable[[Sequence[Pair]], np.ndarray], pairs: Sequence[Pair]) -> np.ndarray:
    """(2, groups) candidate's minus champion's, as they are and swapped."""
    found = [values(side) for side in (pairs, [pair.swapped() for pair in pairs])]
    return np.array([side[:, 1] - side[:, 0] for side in found])


def _padded(values: np.ndarray, groups: int) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, groups - values.shape[1])))
