"""Which image is labelled next: pure functions over a table of scores.

An image that was offered and not labelled comes back when all others had their turn (``rounds``). Within a round,
near-duplicates of labelled images and further images of labelled patients are last. Within these, the strategy decides:

recommended        ``diverse`` up to ``Options.diverse_until`` labels, then the ranks of boundary entropy and disagreement with
                   noise that decays as labels grow; images in which nothing is found have a small share of the draws
diverse            k-center greedy on the vectors: the image that is least like all that is labelled
disagreement       where coarse network and refiner differ most
boundary_entropy   where the coarse outline is least sure
random, first      what their names say, whatever is known of the images

The first image is drawn among the few best, so that two annotators, or two servers, do not walk in step. What is not scored
yet is drawn at random, the more rarely the more is scored (``Options.enough``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.sampling.spread import nearest_distances, spread_order
from ultrarefiner_monai.learning.sampling.table import UNKNOWN_GROUP, ScoreTable

STRATEGIES = {
    "recommended": "What teaches most: kinds of images that are not labelled yet, then those the model is unsure of",
    "diverse": "The image without a label that is least like the labelled ones",
    "disagreement": "The image without a label on which coarse network and refiner differ most",
    "boundary_entropy": "The image without a label whose outline is least sure",
    "random": "A random image without a label",
    "first": "The first image without a label, by name",
}
_BY_SCORES = ("recommended", "diverse", "disagreement", "boundary_entropy")


@dataclass(frozen=True)
class Options:
    """diverse_until: so many labels are chosen for their spread (``recommended``). among: the first is drawn among so many of
    the best. enough: where so many images (or all) are scored, none that is not is drawn. empty_share: how often, at
    most, an image in which nothing is found is drawn. noise: standard deviation that is added to the ranks, which lie in
    [0, 1], at ``diverse_until`` labels; it falls as 1 / labels.
    """

    diverse_until: int = 20
    among: int = 3
    enough: int = 200
    empty_share: float = 0.1
    noise: float = 0.2


def draws(labels: int, request: int) -> np.random.Generator:
    """The random numbers of one question: the same for the same number of labels and the same count of questions."""
    return np.random.default_rng([labels, request])


def choose(
    strategy: str,
    table: ScoreTable,
    labelled: Collection[int],
    skipped: Sequence[int] = (),
    rng: np.random.Generator | None = None,
    options: Options | None = None,
    busy: Collection[int] = (),
    nearest: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of ``table`` that may be labelled next, best first: all but ``labelled`` and ``busy``.

    labelled: rows with a label. skipped: rows that were offered and are not labelled, the one offered longest ago first.
    rng: by default ``draws(len(labelled), 0)``. busy: rows that others work on; they are not chosen and count as labelled
    where the spread is concerned. nearest: (N,) distances to ``labelled`` and ``busy`` where the caller keeps them
    (``ScorePool.distances``). The first row is what the strategy draws; the others are for a caller that cannot use it, and are not
    a batch. Raises InputError for a strategy that is none.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"no strategy {strategy!r:.80}; known: {', '.join(STRATEGIES)}")
    options, rng = options or Options(), rng or draws(len(labelled), 0)
    covered = np.array(sorted({*labelled, *busy}), dtype=int)
    pool = np.setdiff1d(np.arange(len(table)), covered)
    if strategy in _BY_SCORES and nearest is None and by_spread(strategy, len(labelled), options):
        nearest = _distances(table, covered)
    draw = _Draw(strategy, table, len(labelled), rng, options, nearest)
    free, again = set(pool.tolist()), set(skipped)
    older, newer = _halves([i for i in dict.fromkeys(skipped) if i in free])
    never = np.array([i for i in pool.tolist() if i not in again], dtype=int)
    if strategy == "first":
        return np.concatenate([never, older, newer])
    if strategy == "random":
        return np.concatenate([rng.permutation(never), rng.permutation(older), newer])
    like = _like_labelled(table.groups, covered)
    parts = [part[like[part] == late] for part in (never, older, newer) for late in (False, True)]
    return np.concatenate([draw.order(part) for part in parts])


def _halves(skipped: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Those offered longest ago, and the others: what was just skipped stays away for a while."""
    half = (len(skipped) + 1) // 2
    return np.array(skipped[:half], dtype=int), np.array(skipped[half:], dtype=int)


def _like_labelled(groups: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """(N,) bool: near-duplicates and the same patients' images."""
    return np.isin(groups, groups[covered]) & (groups != UNKNOWN_GROUP)


def by_spread(strategy: str, labels: int, options: Options) -> bool:
    """Whether the question needs distances to what is labelled."""
    return strategy == "diverse" or (strategy == "recommended" and labels < options.diverse_until)


def _distances(table: ScoreTable, covered: np.ndarray) -> np.ndarray:
    known = table.has_vector
    found = np.full(len(table), np.nan, np.float32)
    found[known] = nearest_distances(table.vectors[known], table.vectors[covered[known[covered]]])
    return found


@dataclass(frozen=True)
class _Draw:
    """One question's strategy. labels: how many there are. nearest: (N,) distances to what is labelled or busy."""

    strategy: str
    table: ScoreTable
    labels: int
    rng: np.random.Generator
    options: Options
    nearest: np.ndarray | None

    def order(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` in the strategy's order, the first one drawn."""
        if not len(rows):
            return rows
        spread = by_spread(self.strategy, self.labels, self.options)
        scored = self.table.has_vector if spread else ~np.isnan(self.table.found)
        known, others = rows[scored[rows]], self.rng.permutation(rows[~scored[rows]])
        missing = 1 - len(known) / min(len(rows), max(self.options.enough, 1))
        if len(others) and self.rng.random() < missing:
            return np.concatenate([others, self._scored(known)])
        return np.concatenate([self._scored(known), others])

    def _scored(self, rows: np.ndarray) -> np.ndarray:
        if self.strategy == "diverse":
            return self._spread(rows)
        empty = self.table.found[rows] == 0  # where it is not known, there may be something
        full, blank = rows[~empty], rows[empty]
        if self.strategy != "recommended":
            scores = getattr(self.table, self.strategy)
            return np.concatenate([self._best(full, scores[full]), self._best(blank, scores[blank])])
        order = self._spread if by_spread(self.strategy, self.labels, self.options) else self._unsure
        share = min(self.options.empty_share, len(blank) / max(len(rows), 1)) if len(full) else 1.0
        parts = [order(full), order(blank)]
        return np.concatenate(parts[::-1] if self.rng.random() < share else parts)

    def _spread(self, rows: np.ndarray) -> np.ndarray:
        assert self.nearest is not None
        if not len(rows):
            return rows
        return self._among(rows[spread_order(self.table.vectors[rows], self.nearest[rows])])

    def _unsure(self, rows: np.ndarray) -> np.ndarray:
        ranks = _ranks(self.table.boundary_entropy[rows]) + _ranks(self.table.disagreement[rows])
        decay = max(self.options.diverse_until, 1) / max(self.labels, 1)
        noise = self.options.noise * min(decay, 1.0) * self.rng.standard_normal(len(rows))
        return self._best(rows, ranks / 2 + noise)

    def _best(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return self._among(rows[np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")])

    def _among(self, order: np.ndarray) -> np.ndarray:
        """One of the first few comes to the front."""
        count = min(self.options.among, len(order))
        k = int(self.rng.integers(count)) if count > 1 else 0
        return np.concatenate([order[k : k + 1], order[:k], order[k + 1 :]])


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) in [0, 1], the largest 1; equal values have equal ranks, their mean; NaN counts as the smallest."""
    values = np.nan_to_num(values, nan=-1.0)
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return middle[inverse] / max(len(values) - 1, 1)
