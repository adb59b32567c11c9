"""Figures for one pair of masks, at the image's own size, in pixels. Dice, IoU, precision, recall, HD95, boundary F.

Conventions for empty masks, stated once: both empty is perfect (1, HD95 0); one empty scores 0 and HD95 is the image's
diagonal, so that a missed lesion is never left out of a mean. A distance runs from the centre of a mask's outermost pixel
to that of the nearest one of the other; HD95 is the larger of the two directed 95th percentiles.

Where both masks hold something, Dice, IoU and HD95 are those of ``monai.metrics`` (tests/masks/test_metrics.py compares
them); with an empty mask monai says NaN or infinity. One pass here finds all figures in less time than monai's HD95 alone.
Boundary F is close to monai's surface Dice, the share of both outlines together that lies within the tolerance: it is the
harmonic mean of the two outlines' own shares, so that a long ragged outline does not outvote a short one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.masks.postprocess import bounding_slices

NORMAL_LIMIT = 0.002  # a lesion-free image with a larger share of its pixels marked is a false alarm
FIGURES = ("dice", "iou", "precision", "recall", "hd95_px", "boundary_f")


@dataclass(frozen=True)
class Scores:
    """All in [0, 1], hd95_px in pixels. marked: share of the image's pixels that the prediction covers."""

    dice: float
    iou: float
    precision: float
    recall: float
    hd95_px: float
    boundary_f: float
    marked: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def score(pred_mask: np.ndarray, label_mask: np.ndarray, tolerance_px: float = 2.0) -> Scores:
    """Compare two (H, W) masks of 0 and 1. tolerance_px: how far a boundary pixel may be off and still count as found."""
    if pred_mask.shape != label_mask.shape or pred_mask.ndim != 2:
        raise ValueError(f"expected two (H, W) masks of one shape, got {pred_mask.shape} and {label_mask.shape}")
    pred, label = pred_mask.astype(bool), label_mask.astype(bool)
    overlap, n_pred, n_label = int((pred & label).sum()), int(pred.sum()), int(label.sum())
    marked = n_pred / pred.size
    if n_pred == 0 and n_label == 0:
        return Scores(1.0, 1.0, 1.0, 1.0, 0.0, 1.0, marked)
    if n_pred == 0 or n_label == 0:
        return Scores(0.0, 0.0, 0.0, 0.0, float(np.hypot(pred.shape[0], pred.shape[1])), 0.0, marked)
    there, back = outline_distances(pred, label)
    return Scores(
        dice=2 * overlap / (n_pred + n_label),
        iou=overlap / (n_pred + n_label - overlap),
        precision=overlap / n_pred,
        recall=overlap / n_label,
        hd95_px=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        boundary_f=_boundary_f(there, back, tolerance_px),
        marked=marked,
    )


def outline_distances(pred: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two non-empty (H, W) bool masks -> pixels from each outermost pixel of ``pred`` to the nearest of ``label``'s, and back.

    The image's border is an outline for a mask that reaches it.
    """
    where = bounding_slices(pred | label)  # what is outside both is nearest to nothing: the transform need not see it
    assert where is not None
    edges = [m[where] & ~ndimage.binary_erosion(m[where], border_value=0) for m in (pred, label)]
    to_pred, to_label = (ndimage.distance_transform_edt(~edge) for edge in edges)
    return to_label[edges[0]], to_pred[edges[1]]


def boundary_f(pred: np.ndarray, label: np.ndarray, tolerance_px: float) -> float:
    """Harmonic mean of the shares of each outline within tolerance_px of the other (Csurka et al., BMVC 2013)."""
    return _boundary_f(*outline_distances(pred, label), tolerance_px)


def _boundary_f(there: np.ndarray, back: np.ndarray, tolerance_px: float) -> float:
    precision, recall = float((there <= tolerance_px).mean()), float((back <= tolerance_px).mean())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def bootstrap_interval(
    values: np.ndarray, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (n,), images drawn with replacement."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected a non-empty (n,) array, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), size=(samples, len(values)))].mean(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """``after`` against ``before`` on the same images. count: images. before, after: means; difference: after - before.

    low, high: interval of the mean difference (95 % where nothing else was asked for). p: two-sided, that there is none.
    higher, lower: images where the figure rose and fell.
    """

    count: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    higher: int
    lower: int

    def to_dict(self) -> dict[str, float | int | list[float]]:
        """Rounded, with ``low`` and ``high`` as ``ci95`` and the difference as a share of ``before`` (``relative``)."""
        return {
            "images": self.count,
            "before": round(self.before, 4),
            "after": round(self.after, 4),
            "difference": round(self.difference, 4),
            "relative": round(self.difference / self.before, 4) if self.before else 0.0,
            "ci95": [round(self.low, 4), round(self.high, 4)],
            "p": round(self.p, 4),
            "higher": self.higher,
            "lower": self.lower,
        }


def paired_bootstrap(
    before: np.ndarray, after: np.ndarray, seed: int = 0, samples: int = 10_000, level: float = 0.95
) -> Paired:
    """Percentile bootstrap of the mean difference of two (n,) arrays, images drawn with replacement as pairs.

    level: of the interval from ``low`` to ``high``; ``low`` alone is a one-sided bound at level (1 + level) / 2.
    p is twice the smaller share of resampled means on one side of zero, zero itself on both, never less than
    2 / (samples + 1): it says below .05 where the interval leaves zero out.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ValueError(f"expected two (n,) arrays of one length, not empty, got {before.shape} and {after.shape}")
    change = after - before
    rng = np.random.default_rng(seed)
    means = change[rng.integers(0, len(change), size=(samples, len(change)))].mean(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    side = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return Paired(
        count=len(change),
        before=float(before.mean()),
        after=float(after.mean()),
        difference=float(change.mean()),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (side + 1) / (samples + 1)),
        higher=int((change > 0).sum()),
        lower=int((change < 0).sum()),
    )


def cell(value: float | None) -> str:
    """A figure for a table's cell: five digits; empty where there is none."""
    return "" if value is None else f"{value:.5g}"
