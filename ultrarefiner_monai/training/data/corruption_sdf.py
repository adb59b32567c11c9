"""Corruption in the signed-distance domain: the outline moves by an offset and a smooth random field, holes open, lumps
grow on it, and all of it together is turned up until the Dice to the label is the one that was asked for.

A pixel belongs to the corrupted lesion where its level is positive. At strength 0 the level is the label's signed
distance; every part of the change grows with the strength, so bisection finds the strength and nothing is retried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ultrarefiner_monai.training.data.corruption_fields import count_set, dice

TOP_STRENGTH = 6.0
# The first estimate looks at every k-th pixel only, as long as about so many pixels of the lesion are seen.
LATTICE_PIXELS = 350


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
    # A disc without a radius lies out of sight.
    centres = torch.where(radii[..., None] > 0, centres, 1e6)
    scale = torch.where(radii > 0, 1 / radii.clamp(min=1e-6).square(), torch.inf)
    out: torch.Tensor | None = None
    for k in range(centres.shape[1]):
        dy = (y - centres[:, k, :1]).square() * scale[:, k, None]
        dx = (x - centres[:, k, 1:]).square() * scale[:, k, None]
        squares = dy[:, :, None] + dx[:, None]
        out = squares if out is None else torch.minimum(out, squares, out=out)
    if out is None:
        return torch.full((len(centres), *size), torch.inf, device=centres.device)
    return out.sqrt_()


def strength_from_table(change: Change, labels: torch.Tensor, target: torch.Tensor, bins: int = 512) -> torch.Tensor:
    """(N,) the strength at which the Dice to ``labels`` (N, H, W) falls to ``target`` (N,), from one look at each pixel.

    Each pixel changes sides at a strength known in closed form, which gives the Dice at all strengths at once. Exact but
    for pixels that change sides twice (a hole reaching what has grown), which are counted once.
    """
    n = len(labels)
    # Where drift points away from the outline's other side the quotient is negative: such pixels never change.
    at = -change.sdf / change.drift
    at.masked_fill_(at < 0, torch.inf)
    if change.holes is not None:
        at = torch.minimum(at, change.holes.masked_fill(~labels, torch.inf))
    if change.lumps is not None:
        at = torch.minimum(at, change.lumps.masked_fill(labels, torch.inf))
    # Bins are narrower for small strengths: even in the root.
    index = (at.nan_to_num_(TOP_STRENGTH).clamp_(max=TOP_STRENGTH) * (bins**2 / TOP_STRENGTH)).sqrt_().int()
    index += labels * (bins + 1)
    index += torch.arange(n, device=labels.device, dtype=torch.int32)[:, None, None] * (2 * bins + 2)
    changed = torch.bincount(index.flatten(), minlength=n * 2 * (bins + 1)).view(n, 2, bins + 1)[..., :bins].cumsum(2)
    gained, lost = changed[:, 0].float(), changed[:, 1].float()
    area = count_set(labels)[:, None]
    good = 2 * (area - lost) > target[:, None] * (2 * area - lost + gained)
    return TOP_STRENGTH * ((good.sum(1) + 1.0) / bins).clamp(max=1).square()


def strength_for_dice(change: Change, labels: torch.Tensor, target: torch.Tensor, steps: int = 14) -> torch.Tensor:
    """(2, N) strengths on both sides of where the Dice to ``labels`` (N, H, W) falls below ``target`` (N,), by bisection.

    The first one's Dice is above the target, the second one's at most the target, unless even TOP_STRENGTH is too weak.
    """
    low = torch.zeros_like(target)
    high = torch.full_like(target, TOP_STRENGTH**0.5)
    area = count_set(labels)
    for _ in range(steps):
        middle = (low + high) / 2
        found = change.level(middle.square()) > 0
        good = 2 * count_set(found & labels) > target * (area + count_set(found))
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.stack((low, high)).square()


def level_for_dice(
    change: Change, labels: torch.Tensor, band: torch.Tensor, aim: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn ``change`` up until the Dice to ``labels`` (N, H, W) bool lies in ``band`` (N, 2): level (N, H, W), Dice (N,).

    aim: (N,) the Dice in the band to aim at. Those that a first estimate puts outside their band are bisected. Where a
    change cannot reach its band (growth that meets the frame, a lesion of a few pixels), the same amounts inwards are
    tried, then outwards; where none does, the nearest miss stays.
    """
    smallest = float(count_set(labels).min()) if len(labels) else 0.0
    k = max(1, int((smallest / LATTICE_PIXELS) ** 0.5))
    seen = change.every(k) if k > 1 else change
    level = change.level(strength_from_table(seen, labels[:, ::k, ::k], aim))
    got = dice(level > 0, labels)
    for version in (lambda part: part, Change.inwards, Change.outwards):
        rows = (_miss(got, band) > 0).nonzero()[:, 0]
        if not len(rows):
            break
        part = version(change.pick(rows))
        for strength in strength_for_dice(part, labels[rows], aim[rows]):
            other = part.level(strength)
            reached = dice(other > 0, labels[rows])
            better = _miss(reached, band[rows]) < _miss(got[rows], band[rows])
            level[rows[better]], got[rows[better]] = other[better], reached[better]
    return level, got


def _miss(got: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
    """(N,) how far a Dice lies outside its band (N, 2); 0 inside."""
    return torch.maximum(band[:, 0] - got, got - band[:, 1]).clamp(min=0)
