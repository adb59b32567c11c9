"""The last step of phase 1: how a probability becomes a mask is chosen on the selection images, never on the fold reported.

Three numbers decide whether the tool marks things on normal images: the threshold, the probability that a component must
reach somewhere, and the smallest component. They are tried on a small grid with the predictor that serves, at the images'
own size, and the checkpoint that leaves the run carries the best ones.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.checkpoints import load_system, read_checkpoint, save_system
from ultrarefiner_monai.config import PostConfig
from ultrarefiner_monai.data.datalist import Item
from ultrarefiner_monai.data.readers import read_mask, read_study
from ultrarefiner_monai.inference import Predictor
from ultrarefiner_monai.metrics import NORMAL_LIMIT
from ultrarefiner_monai.postprocess import prob_to_mask

log = logging.getLogger(__name__)
THRESHOLDS = (0.4, 0.5, 0.6)
PEAKS = (0.0, 0.7, 0.8, 0.9, 0.95)
AREAS = (0.0005, 0.002)


def finish(best: str | Path, out: str | Path, items: Sequence[Item], device: str = "cpu") -> PostConfig:
    """Write ``best`` again as ``out``: in half precision, with the options that suit the selection images ``items``."""
    system = load_system(best, device=device)
    predictor = Predictor(system, device=device)
    pairs = [(predictor.coarse(read_study(i.image).frame(0)).coarse_prob, read_mask(i.mask)[0] > 0) for i in items]
    post, figure = choose(pairs, system.config.post)
    stored = read_checkpoint(best)
    meta: dict[str, Any] = {**stored.meta, "calibration": {"images": len(items), "select": round(figure, 4)}}
    save_system(out, replace(system.config, post=post), system.coarse, None, meta, half=True)
    log.info("threshold %.2f, min_peak %.2f, min_area %.4f: %.4f", post.threshold, post.min_peak, post.min_area, figure)
    return post


def choose(pairs: Sequence[tuple[np.ndarray, np.ndarray]], start: PostConfig) -> tuple[PostConfig, float]:
    """The best options for [(prob (H, W) in [0, 1], label (H, W) bool), ...] and their figure; ``start`` wins a tie."""
    grid = [
        replace(start, threshold=t, min_peak=p, min_area=a) for t, p, a in itertools.product(THRESHOLDS, PEAKS, AREAS)
    ]
    candidates = [start, *grid]
    figures = [float(np.mean([_figure(prob_to_mask(p, c), label) for p, label in pairs])) for c in candidates]
    best = int(np.argmax(figures))  # the first of equals
    return candidates[best], figures[best]


def _figure(mask: np.ndarray, label: np.ndarray) -> float:
    """Dice of an image with a lesion; 1 or 0 for one without, as in ``phases.selection_figures``."""
    if not label.any():
        return float(mask.mean() <= NORMAL_LIMIT)
    return 2 * float((mask.astype(bool) & label).sum()) / float(mask.sum() + label.sum())
