"""One figure in [0, 1] per result: how unsure is the outline?

Formulas, with p = final_prob, M the mask, A its area in pixels:

* binary entropy  H(p) = -p log2 p - (1 - p) log2 (1 - p), 0 for a sure pixel, 1 at p = .5;
* the band B = pixels within r of the outline of M, r = max(2, .15 sqrt(A / pi)): 15 % of the radius of a disc
  of that area;
* uncertainty(p, M) = mean of H(p) over B. A sharp, sure outline is near 0, a wide grey transition near 1;
* for an empty M: H(min(max p, .5)), the entropy of the likeliest pixel: 1 when something was at least half believed in
  and then dropped, near 0 when nothing in the image looked like a lesion;
* for an M without outline (the whole image): mean of H(p) over the image;
* flip_uncertainty(members, M) = mean over B of 4 Var_k(p_k), the variance between K test-time augmented predictions
  relative to its largest possible value (1/4); for an empty M the maximum over the image instead of the mean over B.
"""

from __future__ import annotations

import math

import numpy as np

from ultrarefiner_monai.masks.postprocess import boundary_band

BAND_SHARE = 0.15
BAND_MIN_PX = 2.0


def binary_entropy(prob: np.ndarray) -> np.ndarray:
    """Entropy in bits of probabilities of any shape; 0 at 0 and 1, 1 at .5."""
    p = np.clip(np.asarray(prob, dtype=np.float64), 1e-12, 1 - 1e-12)
    q = 1 - p
    entropy, other = np.log2(p), np.log2(q)
    entropy *= p
    other *= q
    entropy += other
    return np.clip(-entropy, 0.0, 1.0)


def outline_band(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the band B of this module's head."""
    area = np.count_nonzero(mask)
    return boundary_band(mask, max(BAND_MIN_PX, BAND_SHARE * math.sqrt(area / math.pi)))


def uncertainty(final_prob: np.ndarray, mask: np.ndarray, band: np.ndarray | None = None) -> float:
    """final_prob (H, W) in [0, 1], mask (H, W) 0/1 -> [0, 1]. band: ``outline_band(mask)`` where it is known."""
    if final_prob.shape != mask.shape:
        raise ValueError(f"uncertainty needs one shape, got {final_prob.shape} and {mask.shape}")
    if not mask.any():
        return float(binary_entropy(np.array(min(float(final_prob.max()), 0.5))))
    band = outline_band(mask) if band is None else band
    return float(binary_entropy(final_prob[band] if band.any() else final_prob).mean())


def flip_uncertainty(spread: np.ndarray, mask: np.ndarray, band: np.ndarray | None = None) -> float:
    """spread (H, W): standard deviation between the augmented predictions, in [0, .5]; mask (H, W) -> [0, 1]."""
    if spread.shape != mask.shape:
        raise ValueError(f"flip_uncertainty needs one shape, got {spread.shape} and {mask.shape}")
    relative = np.clip(4 * np.square(spread, dtype=np.float64), 0, 1)
    if not mask.any():
        return float(relative.max())
    band = outline_band(mask) if band is None else band
    return float(relative[band].mean() if band.any() else relative.mean())


def expected_iou(prob: np.ndarray, mask: np.ndarray) -> float | None:
    """The IoU with the truth that the probabilities themselves promise, if they were calibrated.

    E|M and Y| / E|M or Y| = sum of p over M / (|M| + sum of p outside M), Y drawn pixel by pixel from p. It is what is
    reported where no trained IoU head is; None for an empty mask, of which p promises no overlap either way.
    """
    inside = np.asarray(mask, dtype=bool)
    if not inside.any():
        return None
    within = float(prob[inside].sum(dtype=np.float64))
    return within / (np.count_nonzero(inside) + float(prob.sum(dtype=np.float64)) - within)
