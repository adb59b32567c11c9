"""The scores of one image, from the predictor that serves: what is computed on the way is cached for the first click.

Of a cine three frames are scored, and the image gets the mean of their vectors and the largest of their other figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.core.image_file import ImageFile, Region
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.grouping import thumbnail_of
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.pipeline.outline import crops
from ultrarefiner_monai.pipeline.predictor import Predictor

_FEW_FRAMES = 3


@dataclass(frozen=True)
class Scores:
    """vector: (D,) float32. disagreement, boundary_entropy in [0, 1]; found: anything is outlined; presence in [0, 1], None
    from a network that does not say. See ``table.ScoreTable``."""

    vector: np.ndarray
    disagreement: float
    boundary_entropy: float
    found: bool
    presence: float | None


def scored_frames(n_frames: int) -> list[int]:
    """Which frames stand for an image: the only one; of a cine the middle one, and one of its beginning and its end."""
    if n_frames < _FEW_FRAMES:
        return [n_frames // 2]
    return [n_frames // 2, n_frames // 6, n_frames - 1 - n_frames // 6]


def score_frame(predictor: Predictor, image: np.ndarray, regions: Sequence[Region] = ()) -> Scores:
    """One frame's scores. image: (H, W) float32 in [0, 1]; regions: its B-mode regions, none: all of it."""
    return combined([_score(predictor, crop) for crop in crops(image, regions)])


def combined(parts: Sequence[Scores]) -> Scores:
    """Scores of several frames or regions as those of one image: the mean vector, the largest of the figures."""
    presences = [part.presence for part in parts if part.presence is not None]
    found = [part for part in parts if part.found] or list(parts)
    return Scores(
        np.asarray(np.mean([part.vector for part in parts], axis=0, dtype=np.float32)),
        max(part.disagreement for part in found),
        max(part.boundary_entropy for part in found),
        any(part.found for part in parts),
        max(presences) if presences else None,
    )


def _score(predictor: Predictor, crop: np.ndarray) -> Scores:
    coarse, automatic = predictor.coarse(crop), predictor.propose(crop)
    found = bool(coarse.mask.any())
    disagreement = 0.0
    if automatic.safety_rule is not None:  # they differ so much that the coarse mask was taken back
        disagreement = 1.0
    elif found:
        disagreement = 1 - dice_of(coarse.mask, automatic.mask)
    return Scores(_vector(predictor, crop), disagreement, coarse.uncertainty, found, coarse.presence)


def _vector(predictor: Predictor, crop: np.ndarray) -> np.ndarray:
    """(C,) float32: the image embedding's mean over the image, without the padding; the thumbnail where there is none."""
    try:
        features = predictor.seen_as("").features(crop)  # by the image alone: a view's vector would set it apart
    except InputError:  # no refiner, or one that encodes crops
        return thumbnail_of(crop)
    sam = predictor.system.config.sam
    assert sam is not None
    embedding = features.image_embedding.reshape(-1, *features.image_embedding.shape[-2:])
    rows, columns = (
        max(1, round(side * embedding.shape[1] / sam.image_size))
        for side in Letterbox(*features.shape, sam.image_size).inner_hw
    )
    return embedding[:, :rows, :columns].mean(axis=(1, 2), dtype=np.float32)


def encoder_key(predictor: Predictor) -> str:
    """Changes with whatever ``Scores.vector`` depends on: the image encoder's weights and options."""
    system = predictor.system
    if system.refiner is None or system.config.sam is None or system.config.refiner.roi:
        return "thumbnail"
    return predictor.part_keys[1]


def shown_picture(image_file: ImageFile) -> np.ndarray:
    """The thumbnail that stands for an image file: of its middle frame, there of the largest region."""
    k = scored_frames(image_file.n_frames)[0]
    return thumbnail_of(max(crops(image_file.frame(k), image_file.regions_of(k)), key=lambda crop: crop.size))
