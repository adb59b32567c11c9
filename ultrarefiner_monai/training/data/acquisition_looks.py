"""What the beam, the machine and the file make of a picture, in this order.

The beam: gain over depth and width, shadows and enhancement, poor contact, noise in the depth. The machine: grain of the
speckle, resolution, grey map. The file: compression.
"""

from __future__ import annotations

import io
import math
from collections.abc import Hashable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ultrarefiner_monai.training.data.acquisition_ranges import Ranges
from ultrarefiner_monai.training.data.random_image import RandImaged, picture_area, smooth_curve

_CELLS = 56  # shadows are drawn on so many cells a side and interpolated
_LEVELS = 1024  # entries of the grey map
_CONV_FROM = 320  # pixels: from here on a short convolution is quicker than a matrix product


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
