"""What the calibration takes among its candidates: by sets of images, without harm by the refiner, with protections on.

**By sets.** Each set (data folder, as a rule a hospital) has one figure, and the mean over the sets counts: a large set does
not win over a small one. A set's figure is .75 times the mean Dice of its lesions + .25 times the share of its lesion-free
images that stay clean, where true normals and crops of tissue are two groups of equal weight, and what is marked beyond 10 %
of a group weighs double. A set without lesions, or without lesion-free images, has the other part alone. A tenth of the mean
boundary F (2 px) is added for the choice: of outlines that overlap equally well the sharper one is taken.

**No harm.** A candidate counts only if, in every set, its result is no worse than the coarse mask with the same
post-processing in mean Dice and in mean boundary F, and wipes out no lesion. g = 0 always qualifies.

**Protections** are the safety net, a bar of at least .5 for a component's peak, and a bar for the presence. A candidate
without one of them is taken only if several sets with enough lesions say so: it has to be no worse than the best protected
one in every figure of every set, and better in sum by TOLERANCE. What one hospital's images do not need another's may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ultrarefiner_monai.config import PostConfig
from ultrarefiner_monai.training.calibration.candidates import Example, Grid

# Bars for the presence, 0 to .5: nothing is hidden that the network holds likelier than not, for its presence is surer at home
# than elsewhere. A bar of .8, best on two hospitals' selection images, hid one lesion in eight of a third hospital.
PRESENCES = tuple(round(0.05 * k, 2) for k in range(11))
TOLERANCE = 0.005
LESION_WEIGHT, BOUNDARY_WEIGHT = 0.75, 0.1
MOST_MARKED = 0.1
ENOUGH_SETS, ENOUGH_LESIONS = 2, 15  # to do without a protection
LEAST_PEAK = PostConfig().min_peak
# One person outlines a lesion twice with some .02 Dice between the two: one image of a set may lose that, of a set with ten
# lesions or more the mean .002. Less would let chance decide for a set with few images.
ONE_IMAGE, FEW_LESIONS = 0.02, 10
OUTLINED, WIPED = 0.3, 0.05  # a lesion is wiped out when the coarse Dice was at least, and the result's is at most this


@dataclass(frozen=True)
class Chosen:
    """post, share, net: indices into the grid and the (1 or 0) safety net. bar: for the presence. figure: mean over the
    sets; objective: with the boundary F. relaxed: the protections that are off."""

    post: int
    share: int
    net: bool
    bar: float
    figure: float
    objective: float
    relaxed: tuple[str, ...] = ()


class Sets:
    """The images by set: indices of lesions, true normals and crops of tissue."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.names = sorted({e.set for e in examples})
        lesion = np.array([bool(e.label.any()) for e in examples])
        tissue = np.array([e.tissue for e in examples])
        belongs = np.array([e.set for e in examples])
        own = [belongs == name for name in self.names]
        self.lesions = [np.flatnonzero(o & lesion) for o in own]
        self.normals = [np.flatnonzero(o & ~lesion & ~tissue) for o in own]
        self.tissue = [np.flatnonzero(o & ~lesion & tissue) for o in own]

    @property
    def several(self) -> bool:
        """Whether the images can say that a protection is not needed."""
        return sum(len(found) >= ENOUGH_LESIONS for found in self.lesions) >= ENOUGH_SETS

    def means(self, values: np.ndarray) -> np.ndarray:
        """(..., n) -> (..., sets with lesions): mean over each set's lesions."""
        return _means(values, [i for i in self.lesions if len(i)])

    def clean(self, values: np.ndarray) -> np.ndarray:
        """(..., n) -> (..., groups): the share of each group of lesion-free images that stays clean."""
        return _means(values, [i for pair in zip(self.normals, self.tissue) for i in pair if len(i)])

    def figure(self, values: np.ndarray) -> np.ndarray:
        """values (..., n): Dice of lesions, 1 or 0 for the others -> (...): the mean over the sets of their figures."""
        figures: list[np.ndarray] = []
        for lesions, normals, tissue in zip(self.lesions, self.normals, self.tissue):
            parts: list[np.ndarray] = []
            for group in (normals, tissue):
                if len(group):
                    marked = 1 - values[..., group].mean(axis=-1)
                    parts.append(1 - marked - np.maximum(0, marked - MOST_MARKED))
            shares = [(1 - LESION_WEIGHT, sum(parts) / len(parts))] if parts else []
            if len(lesions):
                shares.append((LESION_WEIGHT, values[..., lesions].mean(axis=-1)))
            figures.append(np.asarray(sum(w * part for w, part in shares)) / sum(w for w, _ in shares))
        return np.mean(np.stack(figures), axis=0)


def _means(values: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """(..., n) -> (..., groups)"""
    means = [values[..., i].mean(axis=-1) for i in groups]
    return np.stack(means, axis=-1) if means else np.zeros((*values.shape[:-1], 0))


class Table:
    """The figures of all candidates on all images: ``shown`` (2, posts, shares, 2 nets, n), see ``candidates.figures_of``."""

    def __init__(self, examples: Sequence[Example], rows: Sequence[np.ndarray], grid: Grid) -> None:
        self.sets, self.grid = Sets(examples), grid
        self.shown = np.stack(rows, axis=-1)
        self.presence = np.array([np.inf if e.presence is None else e.presence for e in examples])
        self.hidden = np.array([0.0 if e.label.any() else 1.0 for e in examples])
        self.says = bool(np.isfinite(self.presence).any())

    def protected(self) -> Chosen:
        """The best candidate with all protections."""
        allowed = self._harmless()
        allowed[np.array([p.min_peak < LEAST_PEAK for p in self.grid.posts])] = False
        allowed[:, :, 1] = False
        best = self._best(allowed, [b for b in PRESENCES if b > 0] if self.says else [0.0])
        assert best is not None  # g = 0 with the protections on always qualifies
        return best

    def free(self, than: Chosen, figures: np.ndarray, edges: np.ndarray) -> Chosen | None:
        """The best one without some protection, where there is one that several sets allow: see ``_not_worse``. than: the
        best protected candidate, of this table or another one of the same images, with its (n,) figures and boundary F."""
        if not self.sets.several:
            return None
        bars = PRESENCES if self.says else (0.0,)
        better = np.stack([self._not_worse(bar, figures, edges) for bar in bars], axis=-1)
        return self._best(self._harmless(), bars, better, than.objective + TOLERANCE)

    def values(self, bar: float) -> tuple[np.ndarray, np.ndarray]:
        """(figures, boundary F), each (posts, shares, 2, n), with a bar for the presence."""
        seen = self.presence >= bar
        return np.where(seen, self.shown[0], self.hidden), np.where(seen, self.shown[1], 0.0)

    def harms(self, figures: np.ndarray, edges: np.ndarray, coarse: np.ndarray, coarse_edges: np.ndarray) -> np.ndarray:
        """All (..., n), the last two without the refiner -> (..., 3, sets with lesions) bool: harm in Dice, in boundary F,
        a lesion wiped out."""
        counts = np.array([len(i) for i in self.sets.lesions if len(i)])
        allowed = -ONE_IMAGE / np.minimum(np.maximum(counts, 1), FEW_LESIONS) - 1e-9
        worse = [self.sets.means(a - b) < allowed for a, b in ((figures, coarse), (edges, coarse_edges))]
        return np.stack([*worse, self.sets.means(wiped(figures, coarse).astype(float)) > 0], axis=-2)

    def _harmless(self) -> np.ndarray:
        """(posts, shares, 2) bool."""
        figures, edges = self.shown
        coarse, coarse_edges = (x[:, -1:, :1] for x in (figures, edges))  # the last share is 0
        return np.asarray(~self.harms(figures, edges, coarse, coarse_edges).any(axis=(-1, -2)))

    def _best(
        self, harmless: np.ndarray, bars: Sequence[float], also: np.ndarray | None = None, least: float = -np.inf
    ) -> Chosen | None:
        """The best harmless (posts, shares, 2) candidate with its best bar, None where there is none. also: (posts, shares,
        2, bars), a further condition. least: what the objective has to reach.

        Where the coarse network says how likely a lesion is, that keeps normal images clean, and the best is taken; where
        it does not, the highest bar for a peak of all that come within TOLERANCE of the best: images that tell are few.
        """
        figure = np.stack([np.round(self.sets.figure(self.values(b)[0]), 6) for b in bars], axis=-1)
        total = np.stack([self._objective(b, figure[..., k]) for k, b in enumerate(bars)], axis=-1)
        allowed = harmless[..., None] & (total >= least)
        allowed = allowed if also is None else allowed & also
        if not allowed.any():
            return None
        total = np.where(allowed, total, -np.inf)
        found = []
        for i, j, net in np.argwhere(allowed.any(axis=-1)):
            row = total[i, j, net]
            # The lowest bar of nearly equal ones hides least elsewhere.
            k = int(np.flatnonzero(row >= row.max() - TOLERANCE)[0])
            found.append(self._chosen(int(i), int(j), int(net) == 0, bars[k], figure[i, j, net, k], row[k]))
        # From a trustworthy figure the first of equals.
        tolerance = 0.0 if self.says or also is not None else TOLERANCE
        best = max(c.objective for c in found)
        close = [c for c in found if c.objective >= best - tolerance]

        def order(c: Chosen) -> tuple[float, ...]:
            post = self.grid.posts[c.post]
            return post.min_peak, c.objective, c.net, -abs(post.threshold - 0.5)

        return max(close, key=order)

    def _objective(self, bar: float, figure: np.ndarray) -> np.ndarray:
        edges = self.sets.means(self.values(bar)[1])
        return np.round(figure + BOUNDARY_WEIGHT * (edges.mean(axis=-1) if edges.shape[-1] else 0.0), 6)

    def _not_worse(self, bar: float, old_figures: np.ndarray, old_edges: np.ndarray) -> np.ndarray:
        """(posts, shares, 2) bool: no figure of any set below the old one, no lesion wiped out that was outlined."""
        figures, edges = self.values(bar)
        sets, slack = self.sets, 1e-9
        good = (sets.means(figures) >= sets.means(old_figures) - slack).all(axis=-1)
        good &= (sets.means(edges) >= sets.means(old_edges) - slack).all(axis=-1)
        good &= (sets.clean(figures) >= sets.clean(old_figures) - slack).all(axis=-1)
        return good & ~(wiped(figures, old_figures) & (self.hidden == 0)).any(axis=-1)

    def result(self, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
        """(n,) figures and boundary F of a choice."""
        figures, edges = self.values(chosen.bar)
        where = chosen.post, chosen.share, int(not chosen.net)
        return figures[where], edges[where]

    def _chosen(self, post: int, share: int, net: bool, bar: float, figure: float, objective: float) -> Chosen:
        relaxed = [] if net else ["safety net"]
        relaxed += ["min_peak"] if self.grid.posts[post].min_peak < LEAST_PEAK else []
        relaxed += ["min_presence"] if self.says and bar == 0 else []
        return Chosen(post, share, net, bar, float(figure), float(objective), tuple(relaxed))


def choose_among(tables: Sequence[Table]) -> tuple[int, Chosen]:
    """The index of a table and its choice; tables of the same images. Of equals the last table's: the best protected
    candidate of all, or one that needs fewer protections where several sets allow it."""
    best = max(((t.protected(), k) for k, t in enumerate(tables)), key=lambda found: (found[0].objective, found[1]))
    result = tables[best[1]].result(best[0])
    free = [(found, k) for k, t in enumerate(tables) if (found := t.free(best[0], *result)) is not None]
    chosen, k = max(free, key=lambda found: (found[0].objective, found[1])) if free else best
    return k, chosen


def wiped(figures: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Which lesions the coarse network outlined and the result does not (of lesion-free images it says nothing)."""
    return (coarse >= OUTLINED) & (figures <= WIPED)
