"""What the machine makes of the echoes: grain of the speckle, resolution, grey map; and what a file makes of the picture."""

from __future__ import annotations

import io
import math
from collections.abc import Hashable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ultrarefiner_monai.training.data.acquisition_ranges import Ranges
from ultrarefiner_monai.training.data.random_image import RandImaged, picture_area

_LEVELS = 1024  # entries of the grey map
_CONV_FROM = 320  # pixels: from here on a short convolution is quicker than a matrix product


class RandSpeckled(RandImaged):
    """Multiplies with noise whose grain has another size, axially and laterally: speckle of another frequency."""

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.speckle_share)
        self.config = config

    def change(self, image: torch.Tensor) -> torch.Tensor:
        scale = len(image) / 224
        grains = (self.factor(self.config.speckle_axial), self.factor(self.config.speckle_lateral))
        height, width = (max(2, round(len(image) / (scale * grain))) for grain in grains)
        noise = F.interpolate(self.normals(1, 1, height, width), tuple(image.shape), mode="bilinear")[0, 0]
        return image * (1 + noise * self.R.uniform(*self.config.speckle))


class RandResolutiond(RandImaged):
    """Blurred as by a lower frequency or out of focus, sharpened as by edge enhancement, or sampled more coarsely."""

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.resolution_share)
        self.config = config

    def change(self, image: torch.Tensor) -> torch.Tensor:
        c, r, scale = self.config, self.R, len(image) / 224
        kind = r.uniform()
        if kind < 0.25:
            small = max(2, round(len(image) * self.factor((c.coarsest, 1.0))))
            coarse = F.interpolate(image[None, None], (small, small), mode="bilinear", antialias=True)
            return F.interpolate(coarse, tuple(image.shape), mode="bilinear")[0, 0]
        if kind < 0.6:
            soft = blur(image, r.uniform(0.6, 1.6) * scale, r.uniform(0.6, 1.6) * scale)
            return image + r.uniform(0.2, 1) * c.sharpen * (image - soft)
        soft = blur(image, r.uniform(0, c.blur_axial) * scale, r.uniform(0, c.blur_lateral) * scale)
        if r.uniform() < 0.5:
            return soft
        # A focus: sharp at one depth, blurred above and below.
        away = (torch.linspace(0, 1, len(image)) - float(r.uniform(0.1, 0.9))).abs() / float(r.uniform(0.2, 0.6))
        return torch.lerp(image, soft, away.clamp(max=1)[:, None])


def blur(image: torch.Tensor, axial: float, lateral: float) -> torch.Tensor:
    """(H, W) smoothed with a Gaussian of these standard deviations, in pixels; near 0 there is nothing to do."""
    for axis, sigma in ((0, axial), (1, lateral)):
        if sigma < 0.2:
            continue
        length = image.shape[axis]
        if length < _CONV_FROM:
            at = torch.arange(length, dtype=torch.float32)
            kernel = torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
            kernel /= kernel.sum(1, keepdim=True)
            image = kernel @ image if axis == 0 else image @ kernel.T
        else:
            reach = math.ceil(2.5 * sigma)
            weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
            shape, pad = ((1, 1, -1, 1), (0, 0, reach, reach)) if axis == 0 else ((1, 1, 1, -1), (reach, reach, 0, 0))
            padded = F.pad(image[None, None], pad, mode="replicate")
            image = F.conv2d(padded, (weights / weights.sum()).reshape(shape))[0, 0]
    return image


class RandGreyMapd(RandImaged):
    """Another grey map: gain, dynamic range of the log compression, gamma, and a monotone curve, as one table.

    A narrower range (``dynamic_range`` above 1) rejects weak echoes, a wider one lifts the black level:
    x -> 1 - k (1 - x), since a display shows x = 1 + dB / range. The black around the picture stays black.
    """

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.grey_share)
        self.config = config

    def change(self, image: torch.Tensor) -> torch.Tensor:
        table = torch.from_numpy(self._table())
        at = (image * (_LEVELS - 1) + 0.5).to(torch.int32)
        mapped = table.index_select(0, at.flatten()).reshape(image.shape)
        return mapped * picture_area(image) if table[0] > 0 else mapped

    def _table(self) -> np.ndarray:
        """(_LEVELS,) float32 in [0, 1], not falling."""
        c, r = self.config, self.R
        x = np.linspace(0, 1, _LEVELS)
        y = np.clip(x * self.factor(c.gain), 0, 1)
        if r.uniform() < 0.5:
            y = np.clip(1 - self.factor(c.dynamic_range) * (1 - y), 0, 1)
        if r.uniform() < 0.6:
            y = y ** self.factor(c.gamma)
        if c.curve and r.uniform() < 0.5:
            steps = np.exp(c.curve * r.standard_normal(6))
            y = np.interp(y, np.linspace(0, 1, 7), np.concatenate([[0], np.cumsum(steps)]) / steps.sum())
        return np.maximum.accumulate(y).astype(np.float32)


class RandCompressiond(RandImaged):
    """Through a JPEG file of low quality (8 bits)."""

    def __init__(self, image: Hashable, config: Ranges) -> None:
        super().__init__(image, config.compression_share)
        self.quality = config.quality

    def change(self, image: torch.Tensor) -> torch.Tensor:
        file = io.BytesIO()
        pixels = (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=round(self.factor(self.quality)))
        with Image.open(file) as back:
            return torch.from_numpy(np.asarray(back, dtype=np.float32) / 255)
