"""The twelve kinds of corruption, and what follows them: pure functions of masks (N, H, W) bool and explicit parameters.

Positions are (..., 2) float ``y, x`` in pixel indices; lengths are pixels, made from the lesion's size by whoever draws
them; everything random comes in as a parameter. Each returns masks (N, H, W) bool. ``identity`` and ``empty`` need
no function of their own but have one, so that the table of kinds is whole.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ultrarefiner_monai.training.data.corruption_fields import count_set, discs, level_for_count


def identity(masks: torch.Tensor) -> torch.Tensor:
    """As they are."""
    return masks.clone()


def empty(masks: torch.Tensor) -> torch.Tensor:
    """Nothing left."""
    return torch.zeros_like(masks)


def change_area(
    masks: torch.Tensor, sdf: torch.Tensor, factor: torch.Tensor, reluctance: torch.Tensor | None = None
) -> torch.Tensor:
    """Over-, giant over- and under-segmentation: move the outline until the area is ``factor`` (N,) times the lesion's.

    sdf: (N, H, W), the masks' signed distance. reluctance: (N, H, W) > 0, how hard the outline moves at each place; that
    makes it one-sided or uneven. Growth ends at the frame, which bounds what a large factor can do.
    """
    grows = (factor > 1)[:, None, None]
    cost = sdf.abs() if reluctance is None else sdf.abs() * reluctance
    area = count_set(masks)
    region = masks ^ grows  # outside for those that grow, inside for the others
    level = level_for_count(cost, region, (factor - 1).abs() * area)
    return masks ^ (region & (cost < level[:, None, None]))


def one_sided(
    centres: torch.Tensor, radius: torch.Tensor, angle: torch.Tensor, lean: torch.Tensor, size: tuple[int, int]
):
    """(N, H, W) reluctance for ``change_area``: 1 towards ``angle`` (N,), up to 1 + lean (N,) on the opposite side."""
    dy, dx = _offsets(centres, size)
    along = dy * angle.sin()[:, None, None] + dx * angle.cos()[:, None, None]
    return 1 + lean[:, None, None] * torch.sigmoid(-2.5 * along / radius.clamp(min=1)[:, None, None])


def missing_chunk(
    masks: torch.Tensor, fraction: torch.Tensor, corner: torch.Tensor, angle: torch.Tensor, wedge: torch.Tensor
) -> torch.Tensor:
    """Take away ``fraction`` (N,) of the area: a wedge around ``angle`` (N,) with its tip at ``corner`` (N, 2) where
    ``wedge`` (N,) bool, else a disc around ``corner``."""
    dy, dx = _offsets(corner, (masks.shape[1], masks.shape[2]))
    turn = torch.atan2(dy, dx) - angle[:, None, None]
    turn = (torch.remainder(turn + math.pi, 2 * math.pi) - math.pi).abs()
    cost = torch.where(wedge[:, None, None], turn, (dy.square() + dx.square()).sqrt())
    level = level_for_count(cost, masks, fraction * count_set(masks))
    return masks & (cost >= level[:, None, None])


def internal_holes(
    masks: torch.Tensor, centres: torch.Tensor, fractions: torch.Tensor, squeeze: torch.Tensor
) -> torch.Tensor:
    """Elliptic holes around ``centres`` (N, K, 2), each of ``fractions`` (N, K) of the lesion's area (0: none)."""
    radii = (fractions * count_set(masks)[:, None] / math.pi).sqrt()
    return masks & ~discs((masks.shape[1], masks.shape[2]), centres, radii, squeeze)


def bridge(
    masks: torch.Tensor, start: torch.Tensor, end: torch.Tensor, half_width: torch.Tensor, bulb: torch.Tensor
) -> torch.Tensor:
    """A band from ``start`` (N, 2) to ``end`` (N, 2), ``half_width`` (N,) to each side, ends in a disc of radius ``bulb`` (N,):
    the lesion stuck to something beside it."""
    dy, dx = _offsets(start, (masks.shape[1], masks.shape[2]))
    vy, vx = (end - start)[:, 0, None, None], (end - start)[:, 1, None, None]
    along = ((dy * vy + dx * vx) / (vy.square() + vx.square()).clamp(min=1e-6)).clamp(0, 1)
    band = (dy - along * vy).square() + (dx - along * vx).square() <= half_width.square()[:, None, None]
    ball = (dy - vy).square() + (dx - vx).square() <= bulb.square()[:, None, None]
    return masks | band | ball


def islands(masks: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor, squeeze: torch.Tensor) -> torch.Tensor:
    """False positives: ellipses around ``centres`` (N, K, 2) of ``radii`` (N, K; 0: none), kept two pixels off the lesion."""
    near = F.max_pool2d(masks[:, None].float(), 5, 1, 2)[:, 0] > 0
    return masks | (discs((masks.shape[1], masks.shape[2]), centres, radii, squeeze) & ~near)


def fragments(
    masks: torch.Tensor, through: torch.Tensor, angle: torch.Tensor, half_width: torch.Tensor, bend: torch.Tensor
) -> torch.Tensor:
    """Cuts through points (N, K, 2) along ``angle`` (N, K), ``half_width`` (N, K) to each side (0: no cut); ``bend``
    (N, H, W) pixels, by which the cuts are not straight."""
    out = masks
    for k in range(angle.shape[1]):
        dy, dx = _offsets(through[:, k], (masks.shape[1], masks.shape[2]))
        across = dx * angle[:, k].sin()[:, None, None] - dy * angle[:, k].cos()[:, None, None] + bend
        out = out & ~(across.abs() < half_width[:, k, None, None])
    return out


def shift(masks: torch.Tensor, centres: torch.Tensor, move: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn by ``turn`` (N,) radians around ``centres`` (N, 2) and move by ``move`` (N, 2) y, x pixels."""
    height, width = masks.shape[1:]
    dy, dx = _offsets(centres + move, (height, width))
    c, s = turn.cos()[:, None, None], turn.sin()[:, None, None]
    return _sample(masks, c * dy - s * dx + centres[:, 0, None, None], s * dy + c * dx + centres[:, 1, None, None])


def scatter_noise(
    masks: torch.Tensor, uniform: torch.Tensor, share: torch.Tensor, centres: torch.Tensor, radius: torch.Tensor
) -> torch.Tensor:
    """Specks: where ``uniform`` (N, H, W) in [0, 1) is below ``share`` (N,) the mask is turned over, the rarer the further
    away from the lesion (``centres`` (N, 2), ``radius`` (N,))."""
    dy, dx = _offsets(centres, (masks.shape[1], masks.shape[2]))
    far = (dy.square() + dx.square()) / (2 * radius.clamp(min=1).square())[:, None, None]
    return masks ^ (uniform < share[:, None, None] * torch.exp(-far))


# --- after the twelve -------------------------------------------------------------------------------------------------


def roughen(masks: torch.Tensor, move_y: torch.Tensor, move_x: torch.Tensor) -> torch.Tensor:
    """Contour jitter: each pixel is taken from (move_y, move_x) (N, H, W) pixels beside it. What lies deeper on either side
    of the outline than the jitter stays as it is."""
    height, width = masks.shape[1:]
    y = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=masks.device, dtype=torch.float32)
    return _sample(masks, y + move_y, x + move_x, border=True)


def soften(sdf: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """(N, H, W) signed distance or level in pixels -> probability sigmoid(sdf / temperature (N,)); above .5 where sdf > 0."""
    return torch.sigmoid(sdf / temperature[:, None, None])


def _offsets(points: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """dy (N, H, 1) and dx (N, 1, W) of every pixel from points (N, 2)."""
    y = torch.arange(size[0], device=points.device, dtype=torch.float32)
    x = torch.arange(size[1], device=points.device, dtype=torch.float32)
    return (y - points[:, :1])[:, :, None], (x - points[:, 1:])[:, None]


def _sample(masks: torch.Tensor, y: torch.Tensor, x: torch.Tensor, border: bool = False) -> torch.Tensor:
    """The mask at the pixels nearest to (y, x), each (N, H, W). Outside the frame: nothing, or the border's pixels."""
    height, width = masks.shape[1:]
    yy, xx = y.round().long(), x.round().long()
    index = yy.clamp(0, height - 1) * width + xx.clamp(0, width - 1)
    out = masks.flatten(1).gather(1, index.flatten(1)).view_as(masks)
    return out if border else out & (yy >= 0) & (yy < height) & (xx >= 0) & (xx < width)
