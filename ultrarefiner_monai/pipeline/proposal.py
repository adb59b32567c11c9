"""What a predictor says of one frame, and what it keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Proposal:
    """What is offered for one frame; arrays are (H, W) in the image frame.

    mask: uint8, 0 or 1. final_prob: float32 in [0, 1], what the mask was made from (the coarse one where the safety net
    fired). coarse_prob: float32 in [0, 1]; it may be read-only, shared by an image's answers. iou_pred: SAM's estimate,
    mixed like the masks; where the coarse mask is returned, what its probabilities promise
    (``uncertainty.expected_iou``; None for an empty mask). uncertainty, flip_uncertainty: see ``uncertainty``; the
    latter None without flip_tta and with clicks. safety_rule: the rule that fired (``postprocess.safety_net``) or None.
    presence: P(there is a lesion at all) by the coarse network, None where it does not say. Below ``post.min_presence`` the
    automatic mask is empty, and coarse_prob is scaled to below the threshold: a click is answered where it is, and brings
    back nothing of the rest.
    refiner: "trained", "untrained" (there are no weights: the coarse mask stands) or "off" (not asked for).
    timings: seconds of preprocess, coarse, encode, decode, post and total; 0 for what was not run or came from the
    cache. "cached": 1.0 where neither the coarse network nor the encoder ran, else 0.0.
    """

    mask: np.ndarray
    final_prob: np.ndarray
    coarse_prob: np.ndarray
    iou_pred: float | None
    uncertainty: float
    safety_rule: str | None
    refiner: str
    version: str
    timings: dict[str, float] = field(default_factory=dict)
    flip_uncertainty: float | None = None
    presence: float | None = None


@dataclass(frozen=True)
class Features:
    """What the frozen parts say of one image; all that a refiner's decoder needs to be asked, or taught.

    image_embedding: (1, C, E, E) float16, read-only, of the whole image. coarse_prob: (c, c) in [0, 1], coarse frame, as the
    refiner reads it (settled, and scaled down where it is ``doubted``). shape: (H, W) of the image.
    """

    image_embedding: np.ndarray
    coarse_prob: np.ndarray
    shape: tuple[int, int]
    doubted: bool
