"""What the beam meets on its way: gain over depth and width, shadows and enhancement, poor contact, noise in the depth."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch
import torch.nn.functional as F

from ultrarefiner_monai.training.data.acquisition_ranges import Ranges
from ultrarefiner_monai.training.data.random_image import RandImaged, picture_area, smooth_curve

_CELLS = 56  # shadows are drawn on so many cells a side and interpolated


class RandGaind(RandImaged):
    """A time-gain curve (smooth, over depth, with a trend) and a gain that is uneven from left to right."""

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.gain_share)
        self.config = config

    def change(self, image: torch.Tensor) -> torch.Tensor:
        knots = int(self.R.randint(4, 9))  # as many as a machine has sliders
        depth = self.config.depth_gain * self.R.standard_normal(knots)
        depth += self.R.uniform(-1, 1) * self.config.depth_gain * np.linspace(-1.5, 1.5, knots)
        lateral = self.config.lateral_gain * self.R.standard_normal(int(self.R.randint(3, 6)))
        rows, columns = smooth_curve(np.clip(depth, -1, 1), len(image)), smooth_curve(lateral, len(image))
        return image * torch.exp(rows)[:, None] * torch.exp(columns)


class RandNoiseFloord(RandImaged):
    """Receiver noise, which the time-gain curve lifts with depth. Black surroundings of the picture stay black."""

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.noise_share)
        self.config = config

    def change(self, image: torch.Tensor) -> torch.Tensor:
        size = len(image)
        width = int(size / self.R.uniform(1, 2))
        noise = F.interpolate(self.normals(1, 1, size, width), (size, size), mode="bilinear")[0, 0]
        depth = torch.linspace(0, 1, size) ** float(self.R.uniform(0.5, 3))
        return (
            image + noise * picture_area(image) * (depth * float(self.R.uniform(0.2, 1) * self.config.noise))[:, None]
        )


class RandShadowd(RandImaged):
    """Acoustic shadows, enhancement (brighter behind something) and poor contact at a border.

    All follow the beam: straight down for a linear probe, in a fan for a curved one. From a random depth to the bottom
    (poor contact: from the skin on), with soft edges.
    """

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.shadow_share)
        self.config = config

    def change(self, image: torch.Tensor) -> torch.Tensor:
        cells, r = min(_CELLS, len(image)), self.R
        across = np.linspace(0, 1, cells, dtype=np.float32)[None]
        depth = across.T
        fan = r.uniform(0, 0.8) if r.uniform() < 0.4 else 0.0
        field = np.ones((cells, cells), np.float32)
        for _ in range(int(r.randint(1, self.config.shadows + 1))):
            kind, start, width = r.uniform(), r.uniform(0.15, 0.75), r.uniform(0.03, 0.22)
            place, factor = r.uniform(0.05, 0.95), r.uniform(*self.config.shadow)
            if kind < 0.25:
                factor = r.uniform(1.15, 1.7)  # enhancement
            elif kind < 0.45:
                place, start, width = float(r.uniform() < 0.5), -1.0, r.uniform(0.1, 0.5)  # poor contact
            middle = place + fan * (place - 0.5) * depth
            spread = width * (1 + fan * depth)
            side = _step((spread / 2 - np.abs(across - middle)) / r.uniform(0.006, 0.03))
            behind = _step((depth - start) / r.uniform(0.01, 0.05))
            field *= 1 + np.float32(factor - 1) * (side * behind).astype(np.float32)
        smooth = F.interpolate(torch.from_numpy(field)[None, None], tuple(image.shape), mode="bilinear")
        return image * smooth[0, 0]


def _step(x: np.ndarray) -> np.ndarray:
    """The logistic function, in a form that does not overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)
