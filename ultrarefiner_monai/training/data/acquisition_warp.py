"""Other fields of view: one warp for zoom, aspect, rotation, shear, shift, flip, crops and an elastic displacement."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import MapTransform, RandomizableTransform

from ultrarefiner_monai.training.data.acquisition_ranges import Ranges
from ultrarefiner_monai.training.data.random_image import plain

_TRIES = 3
_SHOWN = 0.02  # brighter than this is picture, not padding
_SMALLEST = 0.3  # a picture that is narrower, as a share of the frame, is not cropped


class RandFieldOfViewd(RandomizableTransform, MapTransform):
    """Image (1, S, S) and label (C, S, S) through one warp; what comes from outside is 0. No flip upside down.

    Interpolated linearly, the label too (its edges become soft). A warp that leaves less than ``keep_lesion`` of the
    lesion (the label's first channel, at one half) in the frame, or nothing, is drawn again, and after three attempts
    given up: the lesion of a label never gets lost.
    """

    def __init__(self, image: Hashable, label: Hashable, config: Ranges) -> None:
        MapTransform.__init__(self, [image, label])
        RandomizableTransform.__init__(self, config.warp_share)
        self.image, self.label, self.config = image, label, config

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        flip = self.R.uniform() < self.config.flip_share
        if not (flip or self._do_transform):
            return out
        both = torch.cat([plain(out[self.image]), plain(out[self.label])])
        if flip:
            both = both.flip(2)
        if self._do_transform:
            both = self.warped(both)
        out[self.image], out[self.label] = both[:1].clamp(0, 1), both[1:].clamp(0, 1)
        return out

    def warped(self, both: torch.Tensor) -> torch.Tensor:
        """(1 + C, S, S), the image first."""
        before = int((both[1] >= 0.5).sum()) if len(both) > 1 else 0
        for _ in range(_TRIES):
            source, matrix, offset = self._draw(both)
            moved = F.grid_sample(source[None], self._grid(matrix, offset, both.shape[-1]), align_corners=False)[0]
            if not before:
                return moved
            expected = before / abs(np.linalg.det(matrix))  # if all of it stayed in the frame
            after = int((moved[1] >= 0.5).sum())
            if after >= max(1.0, self.config.keep_lesion * expected):
                return moved
        return both

    def _draw(self, both: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """The picture, what is cropped away black; (2, 2) and (2,): places (x, y) in [-1, 1] -> where they come from."""
        c, r = self.config, self.R
        zoom = math.exp(r.uniform(*np.log(c.zoom)))
        centre, half, source = np.zeros(2), 1.0, both
        if r.uniform() < c.crop_share:
            source, centre, half = self._cropped(both)
            zoom **= 0.5  # a crop is a zoom already
        angle, stretch = r.uniform(-c.rotate, c.rotate), math.exp(r.uniform(*np.log(c.aspect)) / 2)
        cos, sin = math.cos(angle), math.sin(angle)
        shear = np.array([[1, r.uniform(-c.shear, c.shear)], [r.uniform(-c.shear, c.shear), 1]])
        matrix = half / zoom * np.diag([1 / stretch, stretch]) @ np.array([[cos, -sin], [sin, cos]]) @ shear
        return source, matrix, centre + matrix @ (2 * r.uniform(-c.shift, c.shift, 2))

    def _cropped(self, both: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, float]:
        """Cuts the picture's sides; what is left, its centre (x, y), and the half of its longer side."""
        c, size = self.config, both.shape[-1]
        shown = both[0] > _SHOWN
        rows, columns = (torch.nonzero(shown.any(d)).flatten() for d in (1, 0))
        if len(rows) < _SMALLEST * size or len(columns) < _SMALLEST * size:
            return both, np.zeros(2), 1.0
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        height, width = bottom - top, right - left
        cut = self.R.uniform(size=4)
        top, bottom = top + int(cut[0] * c.crop_top * height), bottom - int(cut[1] * c.crop_bottom * height)
        left, right = left + int(cut[2] * c.crop_side * width), right - int(cut[3] * c.crop_side * width)
        kept = torch.zeros_like(both)
        kept[:, top:bottom, left:right] = both[:, top:bottom, left:right]
        centre = np.array([left + right, top + bottom]) / size - 1
        return kept, centre, max(bottom - top, right - left) / size

    def _grid(self, matrix: np.ndarray, offset: np.ndarray, size: int) -> torch.Tensor:
        theta = torch.from_numpy(np.column_stack([matrix, offset]).astype(np.float32))[None]
        grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
        if self.config.elastic and self.R.uniform() < self.config.elastic_share:
            cells = int(self.R.randint(4, 8))
            field = self.R.uniform(-2 * self.config.elastic, 2 * self.config.elastic, (1, 2, cells, cells))
            smooth = F.interpolate(torch.from_numpy(field.astype(np.float32)), (size, size), mode="bicubic")
            grid = grid + smooth.permute(0, 2, 3, 1)
        return grid
