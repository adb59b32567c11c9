"""How likely the gate promotes a candidate, from the spread that was observed between two models.

The gate is played again on made-up validation lists: as many groups (patients) as there are, drawn with replacement, and in
each the two models' results are swapped or not, by a coin. So nothing distinguishes the two but chance: they are truly
equal. For a candidate that is truly better, its Dice is raised by that much everywhere. All rules are applied; the
bootstrap's bound is taken from the normal distribution (mean - z * standard error), which at 20 values differs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ultrarefiner_monai.config import LearningConfig

PLAYS = 2000
FAILURE = 0.5  # a lesion whose Dice is below is not found


@dataclass(frozen=True)
class Pair:
    """Two models' results after so many clicks. dice: (n, 2) of the images with a lesion; group: (n,) the group's number,
    from 0; alarms: (m, 2) bool, the lesion-free images that are marked."""

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


def power(pairs: Sequence[Pair], options: LearningConfig, better: float, seed: int = 0, plays: int = PLAYS) -> float:
    """The share of plays in which the candidate is promoted. pairs: one for each number of clicks, of the same two models;
    better: how much the candidate's Dice is truly higher."""
    rng = np.random.default_rng(seed)
    quantile = NormalDist().inv_cdf(options.level)
    passed = np.ones(plays, dtype=bool)
    draws: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for pair in pairs:
        if not pair.groups:
            continue
        if pair.groups not in draws:  # the same groups after each number of clicks, where all are clicked on
            size = (plays, pair.groups)
            draws[pair.groups] = rng.integers(0, pair.groups, size), rng.random(size) < 0.5
        chosen, swap = draws[pair.groups]
        change, failures = (_drawn(pair, better, what)[swap.astype(int), chosen] for what in ("dice", "failures"))
        error = change.std(axis=1, ddof=1) / np.sqrt(pair.groups) if pair.groups > 1 else np.zeros(plays)
        passed &= change.mean(axis=1) - quantile * error >= -options.margin
        passed &= failures.sum(axis=1) <= 0
        if len(pair.alarms):
            more = (pair.alarms[:, 1].astype(int) - pair.alarms[:, 0])[
                rng.integers(0, len(pair.alarms), (plays, len(pair.alarms)))
            ]
            passed &= (more * rng.choice([-1, 1], more.shape)).sum(axis=1) <= 0
    return float(passed.mean())


def _drawn(pair: Pair, better: float, what: str) -> np.ndarray:
    """(2, groups) candidate's minus champion's, as they are and swapped."""
    found = []
    for side in (pair, pair.swapped()):
        values = side.group_means(better) if what == "dice" else side.group_failures(better)
        found.append(values[:, 1] - values[:, 0])
    return np.array(found)
