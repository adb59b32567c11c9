"""Points that a network proposes, as the clicks that a user might have made."""

from __future__ import annotations

import numpy as np

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.models.ppn import ProposedPoints
from ultrarefiner_monai.pipeline.recent_results import CoarseResult


def as_clicks(points: ProposedPoints, letterbox: Letterbox) -> Clicks:
    """The points of one image, each on the pixel of the image frame that it lies in, with the label that is likelier. A
    background point on the pixel of a foreground one is left out."""
    places = letterbox.points_back(points.pixels(letterbox.size)[0].double().cpu()).numpy()
    limit = np.array([letterbox.width - 1, letterbox.height - 1])
    pixels = [(float(x), float(y)) for x, y in np.clip(np.rint(places), 0, limit)]
    inside = (points.logits[0] > 0).tolist()
    foreground = {place for place, lesion in zip(pixels, inside, strict=True) if lesion}
    background = {place for place, lesion in zip(pixels, inside, strict=True) if not lesion} - foreground
    return Clicks(tuple(foreground), tuple(background))


def nothing_coarse(shape: tuple[int, int], config: SystemConfig) -> CoarseResult:
    """A coarse result in which nothing is found, of an image of ``shape`` (H, W)."""
    side = config.coarse.image_size
    return CoarseResult({"coarse_prob": np.zeros((side, side), np.float32)}, np.zeros(shape, np.float32))
