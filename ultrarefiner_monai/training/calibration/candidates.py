"""What each way from probability to mask would give for one selection image: figures of all candidates of the calibration.

A candidate is (post-processing, share g of the refined probability, with or without the safety net). Hundreds of them share
a few dozen different masks: components are labelled once per threshold and share, only what differs is measured, and all
of it inside the rectangle that any candidate could mark. The masks are those of ``postprocess.prob_to_mask``, pixel by pixel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.config import PostConfig, SafetyConfig
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.masks.postprocess import EIGHT, bounding_slices, fill_holes, safety_net

THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
PEAKS = (0.0, 0.5, 0.7, 0.8, 0.9)  # above that coarse networks lose lesions that they found
AREAS = (0.0005, 0.002)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the refined probability; 0: the refiner is turned down
BOUNDARY_PX = 2.0  # as in ``metrics.score``
_DISC = [(dy, dx) for dy, dx in itertools.product(range(-2, 3), repeat=2) if dy * dy + dx * dx <= BOUNDARY_PX**2]


@dataclass(frozen=True)
class Example:
    """One selection image: probabilities (H, W) in [0, 1] before any post-processing, its label (H, W) bool, and P(there is
    a lesion), None where the coarse network does not say. refined_prob: with the whole of the refiner (g = 1), None
    without one. set: the data folder it is from. tissue: a lesion-free crop of an image with a lesion."""

    coarse_prob: np.ndarray
    refined_prob: np.ndarray | None
    label: np.ndarray
    presence: float | None = None
    set: str = ""
    tissue: bool = False


@dataclass(frozen=True)
class Grid:
    """The candidates: each of ``posts`` with each of ``shares``, with (first) and without (second) the safety net."""

    posts: tuple[PostConfig, ...]
    shares: tuple[float, ...]
    safety: SafetyConfig

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.posts), len(self.shares), 2


def grid_around(start: PostConfig, safety: SafetyConfig, refiner: bool) -> Grid:
    """The grid that the calibration tries; ``start`` is its first candidate."""
    combinations = itertools.product(THRESHOLDS, PEAKS, AREAS)
    posts = [replace(start, threshold=t, min_peak=p, min_area=a) for t, p, a in combinations]
    start = replace(start, min_presence=0.0)
    unique = dict.fromkeys((start, *(replace(p, min_presence=0.0) for p in posts)))
    return Grid(tuple(unique), SHARES if refiner else (0.0,), replace(safety, enabled=True))


def figures_of(example: Example, grid: Grid) -> np.ndarray:
    """(2, posts, shares, 2) float64: the figure (Dice of a lesion; 1 or 0 for a clean or marked lesion-free image) and the
    boundary F at 2 px (0 without a lesion) of each candidate's result."""
    return _Tried(example, grid).all()


Masked = tuple[float, float, tuple[bool, ...]]  # share, threshold, which components are kept


class _Tried:
    def __init__(self, example: Example, grid: Grid) -> None:
        self.grid, self.shape = grid, example.label.shape
        coarse, refined = example.coarse_prob, example.refined_prob
        highest = coarse if refined is None else np.maximum(coarse, refined)
        lowest = min(p.threshold for p in grid.posts)
        margin = 3 + grid.safety.band_fusion_px
        # A mixture never exceeds the higher of the two: outside this rectangle no candidate marks anything.
        where = bounding_slices((highest > lowest) | example.label, margin)
        self.where = where or (slice(0, 1), slice(0, 1))
        self.coarse, self.label = coarse[self.where], example.label[self.where]
        self.refined = None if refined is None else refined[self.where]
        self.has_lesion = bool(example.label.any())
        self.edge = _outline(self.label)
        self.near = _grown(self.edge)
        self.parts: dict[tuple[float, float], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self.masks: dict[Masked, np.ndarray] = {}
        self.measured: dict[Masked, tuple[float, float]] = {}
        self.netted: dict[tuple[Masked, Masked], tuple[float, float]] = {}

    def all(self) -> np.ndarray:
        out = np.zeros((2, *self.grid.shape))
        for i, post in enumerate(self.grid.posts):
            coarse = self._mask(post, 0.0)
            for j, share in enumerate(self.grid.shares):
                key = self._mask(post, share)
                out[:, i, j, 0] = self._measure(coarse) if share == 0 else self._behind_net(coarse, key)
                out[:, i, j, 1] = self._measure(key)
        return out

    def _components(self, share: float, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """labels, and per label (background first) its area and the highest probability in it."""
        found = self.parts.get((share, threshold))
        if found is None:
            prob = self._prob(share)
            labels, count = ndimage.label(prob > threshold, EIGHT)
            areas = np.bincount(labels.ravel(), minlength=count + 1)
            peaks = np.zeros(count + 1, dtype=prob.dtype)
            np.maximum.at(peaks, labels[labels > 0], prob[labels > 0])
            found = self.parts[share, threshold] = labels, areas, peaks
        return found

    def _prob(self, share: float) -> np.ndarray:
        if self.refined is None or share == 0:
            return self.coarse
        return self.refined if share == 1 else self.coarse + np.float32(share) * (self.refined - self.coarse)

    def _mask(self, post: PostConfig, share: float) -> Masked:
        """The name of the mask that ``prob_to_mask`` makes of it; the mask itself lies in ``self.masks``."""
        labels, areas, peaks = self._components(share, post.threshold)
        keep = areas >= max(1.0, post.min_area * self.shape[0] * self.shape[1])
        if post.min_peak > post.threshold:
            keep &= peaks >= post.min_peak
        keep[0] = False
        key = (share, post.threshold, tuple(keep.tolist()))
        if key not in self.masks:
            mask = keep[labels]
            self.masks[key] = fill_holes(mask) if post.fill_holes else mask
        return key

    def _measure(self, key: Masked) -> tuple[float, float]:
        if key not in self.measured:
            self.measured[key] = self._figures(self.masks[key])
        return self.measured[key]

    def _behind_net(self, coarse: Masked, refined: Masked) -> tuple[float, float]:
        if (coarse, refined) not in self.netted:
            mask, rule = safety_net(self.masks[coarse], self.masks[refined], self.grid.safety)
            if rule is not None:
                figures = self._measure(coarse)
            else:
                figures = self._figures(mask) if self.grid.safety.band_fusion_px else self._measure(refined)
            self.netted[coarse, refined] = figures
        return self.netted[coarse, refined]

    def _figures(self, mask: np.ndarray) -> tuple[float, float]:
        if not self.has_lesion:
            return float(np.count_nonzero(mask) / (self.shape[0] * self.shape[1]) <= NORMAL_LIMIT), 0.0
        if not mask.any():
            return 0.0, 0.0
        edge = _outline(mask)
        precision, recall = float(self.near[edge].mean()), float(_grown(edge)[self.edge].mean())
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return dice_of(mask, self.label), f


def figures_of_mask(mask: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """The two figures of ``figures_of`` for one mask (H, W) of 0 and 1."""
    label = np.asarray(label, dtype=bool)
    post = PostConfig(threshold=0.5, min_area=0.0, min_peak=0.0, fill_holes=False)
    example = Example(np.asarray(mask, dtype=np.float32), None, label)
    figures = figures_of(example, Grid((post,), (0.0,), SafetyConfig()))
    return float(figures[0, 0, 0, 0]), float(figures[1, 0, 0, 0])


def _outline(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask (bool); the image's border is an outline, as in ``metrics.outline_distances``."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    inner[[0, -1]] = False
    inner[:, [0, -1]] = False
    return mask & ~inner


def _grown(mask: np.ndarray) -> np.ndarray:
    """All pixels within BOUNDARY_PX of ``mask``: the same as a distance transform says, several times as fast."""
    padded = np.pad(mask, 2)
    out = np.zeros_like(mask)
    height, width = mask.shape
    for dy, dx in _DISC:
        out |= padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
    return out
