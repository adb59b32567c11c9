"""Lesions of another echogenicity: most breast lesions are dark, and a network that has seen few others learns "dark".

Isoechoic and hyperechoic lesions (lipomas, some fibroadenomas and carcinomas) are then passed over with certainty.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from scipy import ndimage

from ultrarefiner_monai.masks.echo import tissue_around

_GAIN = (0.3, 3.0)
_EDGE = (0.004, 0.02)  # how softly the change ends at the outline, share of the frame's side


class RandEchogenicityd(RandomizableTransform, MapTransform):
    """With probability ``prob`` the lesion's brightness becomes ``levels`` times that of the tissue around it.

    image (1, S, S) in [0, 1], label (C, S, S) whose first channel is the lesion's. The change is a gain, as of a
    different backscatter: speckle keeps its contrast; it fades over the outline. Images without a lesion stay.
    """

    def __init__(
        self, image: Hashable, label: Hashable, prob: float = 0.3, levels: tuple[float, float] = (0.5, 1.5)
    ) -> None:
        MapTransform.__init__(self, [image, label])
        RandomizableTransform.__init__(self, prob)
        self.image, self.label, self.levels = image, label, levels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            level, edge = self.R.uniform(*self.levels), self.R.uniform(*_EDGE)
            image = np.asarray(out[self.image], dtype=np.float32)[0]
            changed = with_echogenicity(image, np.asarray(out[self.label])[0] > 0.5, level, edge)
            out[self.image] = torch.from_numpy(changed)[None]
        return out


def with_echogenicity(image: np.ndarray, lesion: np.ndarray, level: float, edge: float = 0.01) -> np.ndarray:
    """image (H, W) float32 in [0, 1] whose ``lesion`` (H, W) bool is ``level`` times as bright as what lies around it.

    edge: standard deviation of the transition, share of the longer side. The gain is kept within 0.3 and 3.
    """
    ring = tissue_around(image, lesion)
    if ring is None:
        return image
    floor = 0.02  # black lesions: nothing divided by nothing
    gain = np.clip((level * image[ring].mean() + floor) / (image[lesion].mean() + floor), *_GAIN)
    soft = ndimage.gaussian_filter(lesion.astype(np.float32), edge * max(image.shape))
    return np.clip(image * (1 + soft * np.float32(gain - 1)), 0, 1)
