"""What the random changes of one image have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform


def plain(array: Any) -> torch.Tensor:
    """As a float32 tensor without MONAI's metadata, which costs more than what is done here."""
    tensor = torch.as_tensor(array)
    return (tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor).float()


class RandImaged(RandomizableTransform, MapTransform):
    """With probability ``prob`` the image (1, S, S) in [0, 1] under one key becomes ``change`` of it, kept in [0, 1]."""

    def __init__(self, image: Hashable, prob: float) -> None:
        MapTransform.__init__(self, [image])
        RandomizableTransform.__init__(self, prob)
        self.image = image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            out[self.image] = self.change(plain(out[self.image])[0]).clamp(0, 1)[None]
        return out

    @abstractmethod
    def change(self, image: torch.Tensor) -> torch.Tensor:
        """(S, S) in [0, 1] -> a new (S, S), which may leave the range."""

    def factor(self, pair: tuple[float, float]) -> float:
        """Between the two, evenly in the logarithm: half as much is as likely as twice as much."""
        return math.exp(self.R.uniform(math.log(pair[0]), math.log(pair[1])))

    def normals(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, float32; a faster generator than R, seeded by R."""
        fast = np.random.Generator(np.random.SFC64(int(self.R.randint(2**31))))
        return torch.from_numpy(fast.standard_normal(shape, dtype=np.float32))


def picture_area(image: torch.Tensor, cells: int = 56) -> torch.Tensor:
    """(S, S) -> (S, S) of 1 within the picture and 0 in the black around it. Black inside (a cyst) is picture."""
    cell = max(1, len(image) // cells)
    shown = F.avg_pool2d((image > 0).float()[None, None], cell, ceil_mode=True)[0, 0] > 0.9
    inside = torch.ones_like(shown)
    for axis in (0, 1):  # between shown cells on both sides
        before = shown.int().cummax(axis).values > 0
        after = shown.int().flip(axis).cummax(axis).values.flip(axis) > 0
        inside &= before & after
    full = inside.float().repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return torch.maximum(full[: len(image), : len(image)], (image > 0).float())


def smooth_curve(knots: np.ndarray, count: int) -> torch.Tensor:
    """(K,) values at even distances -> (count,) float32, without corners (cosine between the knots)."""
    at = np.linspace(0, len(knots) - 1, count)
    low = np.minimum(at.astype(int), len(knots) - 2)
    share = (1 - np.cos(np.pi * (at - low))) / 2
    return torch.from_numpy((knots[low] * (1 - share) + knots[low + 1] * share).astype(np.float32))
