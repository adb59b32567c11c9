"""How bright a lesion is beside the tissue around it: its echogenicity, as far as grey values tell."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_RING = 0.045  # width of the tissue around a lesion that it is compared with, share of the frame's longer side
_LARGEST = 0.6  # share of the frame: beyond it there is nothing to compare with


def tissue_around(image: np.ndarray, lesion: np.ndarray) -> np.ndarray | None:
    """(H, W) bool: the tissue around ``lesion`` (H, W) bool that it is compared with; None where there is none."""
    if not 0 < lesion.mean() < _LARGEST:
        return None
    reach = max(2, round(_RING * max(image.shape)))
    ring = ndimage.maximum_filter(lesion, 2 * reach + 1) & ~lesion & (image > 0)
    return ring if ring.any() else None


def echo_level(image: np.ndarray, lesion: np.ndarray) -> float | None:
    """The mean of the lesion (H, W) bool over that of the tissue around it in ``image`` (H, W) in [0, 1]: 1 as bright, 0
    black. None where there is no lesion, or nothing around it to compare with.
    """
    ring = tissue_around(image, lesion)
    around = 0.0 if ring is None else float(image[ring].mean())
    return float(image[lesion].mean()) / around if around > 0 else None
