"""Corruption in the signed-distance domain: the outline moves by an offset and a smooth random field, holes open, lumps
grow on it, and all of it together is turned up until the Dice to the label is the one that was asked for.

A pixel belongs to the corrupted lesion where its level is positive. At strength 0 the level is the label's signed
distance; every part of the change grows with the strength, so bisection finds the strength and nothing is retried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ultrarefiner_monai.data.corruption_fields import dice

TOP_STRENGTH = 6.0
# Bisection first looks at every k-th pixel only, as long as about so many pixels of the lesion are seen.
LATTICE_PIXELS = 800


@dataclass(frozen=True)
class Change:
    """What happens to N distance maps (N, H, W) as the strength grows; lengths in pixels, one per unit of strength.

    drift: how far the outline moves out (in, where negative) at each pixel. holes, lumps: None, or distance to the
    nearest hole's or lump's centre over its radius at strength 1 (inf: none); hole_size, lump_size: (N,) that radius.
    """

    sdf: torch.Tensor
    drift: torch.Tensor
    holes: torch.Tensor | None = None
    hole_size: torch.Tensor | None = None
    lumps: torch.Tensor | None = None
    lump_size: torch.Tensor | None = None

    def level(self, strength: torch.Tensor) -> torch.Tensor:
        """(N,) strength >= 0 -> (N, H, W) level in pixels: about the signed distance to the corrupted outline."""
        s = strength[:, None, None]
        level = torch.addcmul(self.sdf, self.drift, s)
        if self.holes is not None and self.hole_size is not None:
            level = torch.minimum(level, (self.holes - s) * self.hole_size[:, None, None])
        if self.lumps is not None and self.lump_size is not None:
            level = torch.maximum(level, (s - self.lumps) * self.lump_size[:, None, None])
        return level

    def pick(self, rows: torch.Tensor) -> Change:
        """The change of some of the items."""
        return Change(**{name: None if value is None else value[rows] for name, value in vars(self).items()})

    def every(self, k: int) -> Change:
        """The change seen at every k-th pixel of both axes."""

        def thin(value: torch.Tensor | None) -> torch.Tensor | None:
            return value if value is None or value.ndim == 1 else value[:, ::k, ::k].contiguous()

        return Change(**{name: thin(value) for name, value in vars(self).items()})

    def inwards(self) -> Change:
        """The same amounts, all of them taking away."""
        return replace(self, drift=-self.drift.abs(), lumps=None, lump_size=None)

    def outwards(self) -> Change:
        """The same amounts, all of them adding."""
        return replace(self, drift=self.drift.abs(), holes=None, hole_size=None)


def nearest_disc(size: tuple[int, int], centres: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """(N, H, W): distance to the nearest of K centres (N, K, 2) y, x in units of its radius (N, K); inf without one."""
    y = torch.arange(size[0], device=centres.device, dtype=torch.float32)
    x = torch.arange(size[1], device=centres.device, dtype=torch.float32)
    out = torch.full((len(centres), *size), torch.inf, device=centres.device)
    for k in range(centres.shape[1]):
        scale = torch.where(radii[:, k] > 0, 1 / radii[:, k].clamp(min=1e-6), torch.inf)
        dy, dx = (y - centres[:, k, :1]).square(), (x - centres[:, k, 1:]).square()
        # 0 times inf at a centre itself would be nan.
        out = torch.minimum(
            out, torch.nan_to_num((dy[:, :, None] + dx[:, None]).sqrt() * scale[:, None, None], torch.inf)
        )
    return out


def strength_for_dice(change: Change, labels: torch.Tensor, target: torch.Tensor, steps: int = 14) -> torch.Tensor:
    """(2, N) strengths on both sides of where the Dice to ``labels`` (N, H, W) falls below ``target`` (N,).

    The first one's Dice is above the target, the second one's at most the target, unless even TOP_STRENGTH is too weak.
    """
    low = torch.zeros_like(target)
    high = torch.full_like(target, TOP_STRENGTH)
    for _ in range(steps):
        middle = (low + high) / 2
        good = dice(change.level(middle) > 0, labels) > target
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.stack((low, high))


def level_for_dice(
    change: Change, labels: torch.Tensor, band: torch.Tensor, aim: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn ``change`` up until the Dice to ``labels`` (N, H, W) bool lies in ``band`` (N, 2): level (N, H, W), Dice (N,).

    aim: (N,) the Dice in the band to aim at. Where a change cannot reach its band (growth that meets the frame, a lesion
    of a few pixels), the same amounts inwards are tried, then outwards; where none does, the nearest miss stays.
    """
    smallest = float(labels.flatten(1).sum(1).min()) if len(labels) else 0.0
    k = max(1, int((smallest / LATTICE_PIXELS) ** 0.5))
    seen = change.every(k) if k > 1 else change
    strength = strength_for_dice(seen, labels[:, ::k, ::k], aim)[1]
    level = change.level(strength)
    got = dice(level > 0, labels)
    for version in (change, change.inwards(), change.outwards()):
        missed = _miss(got, band) > 0
        if not missed.any():
            break
        rows = missed.nonzero()[:, 0]
        part = version.pick(rows)
        for side in strength_for_dice(part, labels[rows], aim[rows]):
            other = part.level(side)
            reached = dice(other > 0, labels[rows])
            better = _miss(reached, band[rows]) < _miss(got[rows], band[rows])
            level[rows[better]], got[rows[better]] = other[better], reached[better]
    return level, got


def _miss(got: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
    """(N,) how far a Dice lies outside its band (N, 2); 0 inside."""
    return torch.maximum(band[:, 0] - got, got - band[:, 1]).clamp(min=0)
