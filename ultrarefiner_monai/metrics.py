"""Figures for one pair of masks, at the image's own size, in pixels. Dice, IoU, precision, recall, HD95, boundary F.

Conventions for empty masks, stated once: both empty is perfect (1, HD95 0); one empty scores 0 and HD95 is the image's
diagonal, so that a missed lesion is never left out of a mean.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

NORMAL_LIMIT = 0.002  # a lesion-free image with a larger share of its pixels marked is a false alarm


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
    return Scores(
        dice=2 * overlap / (n_pred + n_label),
        iou=overlap / (n_pred + n_label - overlap),
        precision=overlap / n_pred,
        recall=overlap / n_label,
        hd95_px=_hd95(pred, label),
        boundary_f=boundary_f(pred, label, tolerance_px),
        marked=marked,
    )


def _hd95(pred: np.ndarray, label: np.ndarray) -> float:
    """The larger of the two directed 95th percentiles (MONAI's convention)."""
    pair = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (pred, label)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls itself with an argument that it deprecated
        return float(compute_hausdorff_distance(pair[0], pair[1], include_background=True, percentile=95))


def _boundary(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def boundary_f(pred: np.ndarray, label: np.ndarray, tolerance_px: float) -> float:
    """Harmonic mean of the shares of each boundary within tolerance_px of the other (Csurka et al., BMVC 2013)."""
    edge_pred, edge_label = _boundary(pred), _boundary(label)
    precision = float((ndimage.distance_transform_edt(~edge_label)[edge_pred] <= tolerance_px).mean())
    recall = float((ndimage.distance_transform_edt(~edge_pred)[edge_label] <= tolerance_px).mean())
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
