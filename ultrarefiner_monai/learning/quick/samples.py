"""What quick learning reads of one labelled image: kept features and the label, and batches of them.

No network but the decoder runs on these: coarse result and image embedding come from the server's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ultrarefiner_monai.core.geometry import Letterbox, resize
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.pipeline.coarse import coarse_to_sam
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.pipeline.proposal import Features
from ultrarefiner_monai.training.data.refining import VALID
from ultrarefiner_monai.training.data.transforms import LABEL
from ultrarefiner_monai.training.phases.phase import Batch


@dataclass(frozen=True)
class Sample:
    """One labelled frame. id: names it. group: patient or near-duplicates, which are never on both sides of a comparison.

    label: (M, M) uint8, 0 to 255, soft at the edges, in the decoder's frame. likeness: shared by near-duplicates and by the frames
    of one cine, which count once; empty: like no other.
    """

    id: str
    group: str
    features: Features
    label: np.ndarray
    likeness: str = ""

    @property
    def lesion(self) -> bool:
        return bool(self.label.max(initial=0) >= 128)


def distinct(samples: Iterable[Sample]) -> list[Sample]:
    """The first one of each likeness: a hundred copies of one image say as much as one."""
    found: dict[str, Sample] = {}
    for sample in samples:
        found.setdefault(sample.likeness or sample.id, sample)
    return list(found.values())


def sample_of(predictor: Predictor, name: str, group: str, image: np.ndarray, label: np.ndarray) -> Sample:
    """image: (H, W) float32 in [0, 1]; label: (H, W), not 0 where the lesion is. Raises InputError for sizes that differ and
    for a model without a refiner. Features come from the predictor's cache, or are computed."""
    if image.shape != label.shape:
        raise InputError(f"{name}: its label is {label.shape[::-1]} pixels, its image {image.shape[::-1]}")
    config = predictor.system.config
    features = predictor.features(image)
    assert config.sam is not None
    return Sample(name, group, features, small_label(label, config.sam.image_size, config.sam.mask_size))


def small_label(label: np.ndarray, size: int, mask_size: int) -> np.ndarray:
    """(H, W) -> (M, M) uint8, M = ``mask_size``, by way of the sam frame (``size``), as phase 2 makes it."""
    mask = torch.from_numpy((label > 0).astype(np.float32))[None, None]
    square = (Letterbox(label.shape[0], label.shape[1], size).apply(mask).clamp(0, 1) * 255).round() / 255
    small = resize(square, mask_size, mask_size)
    return np.asarray((small[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def batch_of(samples: Sequence[Sample], size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """(embedding (B, C, E, E), coarse_prob (B, 1, S, S) in the sam frame, batch with LABEL (B, 1, M, M) and VALID), float32.

    size: S, the side of the sam frame.
    """
    embedding = torch.cat([torch.tensor(s.features.image_embedding) for s in samples]).to(device).float()
    probs, valid = [], []
    for sample in samples:
        prob = torch.tensor(sample.features.coarse_prob).float()[None, None]
        sam_box = Letterbox(*sample.features.shape, size)
        probs.append(coarse_to_sam(prob, Letterbox(*sample.features.shape, prob.shape[-1]), sam_box))
        valid.append(sam_box.inner_hw)
    labels = torch.stack([torch.from_numpy(s.label)[None] for s in samples]).float() / 255
    return embedding, torch.cat(probs).to(device), {LABEL: labels.to(device), VALID: torch.tensor(valid)}
