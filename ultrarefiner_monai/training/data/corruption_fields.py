"""What all corruptions are made of: distances, smooth random fields, discs, shape figures. Batched, no hidden draws.

Frames: masks are (N, H, W) bool in any frame; positions are (..., 2) float ``y, x`` in its pixel indices. Everything
that is random takes the random numbers as an argument, so that each function gives the same for the same input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

# --- distance ---------------------------------------------------------------------------------------------------------


def signed_distance(masks: torch.Tensor, reach: torch.Tensor | None = None) -> torch.Tensor:
    """(N, H, W) bool -> (N, H, W) float32 pixels: Euclidean distance to the outline, positive inside, never 0.

    The outline runs between pixel centres, so the first pixels inside and outside stand at +.5 and -.5. Only the frame's
    own pixels count: an empty mask is -(H + W) everywhere, a full one H + W. Exact, on the CPU and on a GPU.

    With ``reach`` (N,) pixels it takes a CPU half the time: further than that from the lesion's box the distance goes on by
    one per pixel and axis, and inside it is taken from the outermost pixels, which is right on straight outlines along
    the axes and off by less than .6 px elsewhere.
    """
    if masks.ndim != 3 or masks.dtype != torch.bool:
        raise ValueError(f"signed_distance expects (N, H, W) bool, got {tuple(masks.shape)} {masks.dtype}")
    far = masks.shape[1] + masks.shape[2]
    if masks.device.type == "cpu":
        out = masks.new_empty(masks.shape, dtype=torch.float32)
        limits = [far] * len(masks) if reach is None else [int(r) for r in reach]
        for mask, limit, row in zip(masks.numpy(), limits, out.numpy()):
            _distance_numpy(mask, limit, row, exact=reach is None)
        return out
    outside, inside = _distance_to(masks, float(far)), _distance_to(~masks, float(far))
    distance = torch.where(masks, inside - 0.5, 0.5 - outside).clamp(-far, far)
    distance[~masks.flatten(1).any(1)] = -far
    distance[masks.flatten(1).all(1)] = far
    return distance


def _distance_numpy(mask: np.ndarray, reach: int, out: np.ndarray, exact: bool) -> None:
    """One (H, W) bool mask's signed distance, written into ``out``."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        out[:] = -(height + width)
        return
    y0, y1 = max(rows[0] - reach, 0), min(rows[-1] + 1 + reach, height)
    x0, x1 = max(columns[0] - reach, 0), min(columns[-1] + 1 + reach, width)
    part = mask[y0:y1, x0:x1]
    inner = part.copy()
    inner[1:] &= part[:-1]
    inner[:-1] &= part[1:]
    inner[:, 1:] &= part[:, :-1]
    inner[:, :-1] &= part[:, 1:]
    outermost = part ^ inner  # of the lesion's pixels
    if not outermost.any():
        out[:] = height + width
        return
    # One transform for both sides: from outside the nearest of the lesion's pixels is an outermost one.
    distance = _nearest_zero(~outermost)
    out[y0:y1, x0:x1] = np.where(part, distance, -distance) + np.float32(0.5)
    if exact:  # the background pixel next to a lesion's pixel is never further away than the ring around its box
        box = np.s_[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]
        np.copyto(out[box], _nearest_zero(mask[box]) - np.float32(0.5), where=mask[box])
    # Beyond the window: columns to the left and right of it, then all rows above and below.
    out[y0:y1, :x0] = out[y0:y1, x0, None] - np.arange(x0, 0, -1, dtype=np.float32)
    out[y0:y1, x1:] = out[y0:y1, x1 - 1, None] - np.arange(1, width - x1 + 1, dtype=np.float32)
    out[:y0] = out[y0] - np.arange(y0, 0, -1, dtype=np.float32)[:, None]
    out[y1:] = out[y1 - 1] - np.arange(1, height - y1 + 1, dtype=np.float32)[:, None]


def _nearest_zero(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32: distance to the nearest pixel that is not set; there has to be one."""
    # Distances from the indices in single precision: scipy's own cost as much again as the transform.
    place = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    dy = place[0] - np.arange(mask.shape[0], dtype=np.int32)[:, None]
    dx = place[1] - np.arange(mask.shape[1], dtype=np.int32)[None]
    np.multiply(dy, dy, out=dy)
    np.multiply(dx, dx, out=dx)
    dy += dx
    return np.sqrt(dy, dtype=np.float32)


def _distance_to(masks: torch.Tensor, far: float) -> torch.Tensor:
    """(N, H, W) distance to the nearest set pixel, on any device: columns by running maxima, rows by lowest parabola."""
    n, height, width = masks.shape
    y = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None]
    above = torch.where(masks, y, y.new_tensor(-far)).cummax(1).values
    below = torch.where(masks, -y, y.new_tensor(-2 * far)).flip(1).cummax(1).values.flip(1)
    column = torch.minimum(y - above, -below - y).clamp(max=far).square()
    out = torch.full_like(column, 2 * far * far)
    for step in range(width):  # width passes over the batch: what a GPU is good at
        near = column[..., : width - step] + step * step
        out[..., step:] = torch.minimum(out[..., step:], near)
        near = column[..., step:] + step * step
        out[..., : width - step] = torch.minimum(out[..., : width - step], near)
    return out.sqrt()


# --- random fields ----------------------------------------------------------------------------------------------------


def field_cells(size: int, length: float) -> int:
    """How many random numbers an axis of ``size`` pixels needs for a field of correlation length ``length`` pixels."""
    return math.ceil(size / (length / 2)) + 7


def gaussian_field(normals: torch.Tensor, size: tuple[int, int], length: torch.Tensor) -> torch.Tensor:
    """Smooth Gaussian random fields (N, H, W), mean 0, variance 1, for standard normal numbers (N, gy, gx).

    length: (N,) pixels; pixels r apart are correlated by exp(-(r / length)²), so by 1/e at the length itself. gy and gx
    must be at least ``field_cells`` of the axis and the shortest length. White noise on a grid with half the length as
    its spacing, blurred by a Gaussian as wide as the spacing; the kernel is separable: two small matrix products.
    """
    rows = _grid_weights(size[0], normals.shape[1], length)
    columns = _grid_weights(size[1], normals.shape[2], length)
    return rows @ normals @ columns.transpose(1, 2)


def _grid_weights(size: int, cells: int, length: torch.Tensor) -> torch.Tensor:
    """(N, size, cells): Gaussian weights, rows of unit length so that the variance stays 1."""
    at = torch.arange(size, device=length.device, dtype=torch.float32)[None, :, None] * (2 / length)[:, None, None]
    grid = torch.arange(cells, device=length.device, dtype=torch.float32) - 3
    # Cut off where it no longer matters: numbers too small for single precision make products many times slower.
    weights = torch.exp(-0.5 * (at - grid).square().clamp(max=50))
    return weights / weights.norm(dim=2, keepdim=True)


# --- counting ---------------------------------------------------------------------------------------------------------


def level_for_count(values: torch.Tensor, where: torch.Tensor, count: torch.Tensor, steps: int = 18) -> torch.Tensor:
    """(N,) the level below which about ``count`` (N,) pixels of ``where`` (N, H, W) bool have ``values`` (N, H, W) >= 0.

    By bisection, since sorting costs far more. Pixels of one value cannot be parted; the count nearest from above is
    taken. A count above the number of pixels gives all of them.
    """
    masked = values.masked_fill(~where, torch.inf).flatten(1)
    top = values.masked_fill(~where, 0).flatten(1).amax(1)
    low, high = torch.zeros_like(top), top * 1.0001 + 1e-3
    for _ in range(steps):
        middle = (low + high) / 2
        enough = count_set(masked < middle[:, None]) >= count
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


def count_set(masks: torch.Tensor) -> torch.Tensor:
    """(N, ...) bool -> (N,) float32, how many are set."""
    if masks.device.type == "cpu":  # numpy counts ten times as fast as torch sums
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.float32)
    return masks.flatten(1).sum(1).float()


def dice(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(N, ...) bool and bool -> (N,) float32; 1 where both are empty."""
    both, total = count_set(first & second), count_set(first) + count_set(second)
    return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(total))


# --- places and discs -------------------------------------------------------------------------------------------------


def pick_pixels(masks: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """(N, K, 2) float y, x of set pixels of (N, H, W) bool, every one as likely, for uniform numbers (N, K, 2).

    An empty mask gives positions that mean nothing, but in the frame.
    """
    n, height, width = masks.shape
    mass = masks.float()
    rows = mass.sum(2).cumsum(1)
    y = torch.searchsorted(rows, uniform[..., 0] * rows[:, -1:], right=True).clamp(max=height - 1)
    line = mass.gather(1, y[..., None].expand(-1, -1, width)).cumsum(2)
    x = torch.searchsorted(line, (uniform[..., 1] * line[..., -1])[..., None], right=True)[..., 0].clamp(max=width - 1)
    return torch.stack((y, x), dim=-1).float()


def edge(masks: torch.Tensor) -> torch.Tensor:
    """(N, H, W) bool: the set pixels with a neighbour (of four, in the frame) that is not set."""
    inner = masks.clone()
    inner[:, 1:] &= masks[:, :-1]
    inner[:, :-1] &= masks[:, 1:]
    inner[:, :, 1:] &= masks[:, :, :-1]
    inner[:, :, :-1] &= masks[:, :, 1:]
    return masks & ~inner


def discs(size: tuple[int, int], centres: torch.Tensor, radii: torch.Tensor, squeeze: torch.Tensor) -> torch.Tensor:
    """(N, H, W) bool: the union of K discs per item. centres (N, K, 2) y, x; radii (N, K), none where <= 0.

    squeeze (N, K): as ellipses of the same area, that many times as high as a disc. A disc holds at least its centre.
    """
    height, width = size
    n = centres.shape[0]
    out = torch.zeros(n * height * width, dtype=torch.bool, device=centres.device)
    item, which = (radii > 0).nonzero(as_tuple=True)
    if len(item):
        y, x = centres[item, which].round().unbind(-1)
        r, high = radii[item, which], squeeze[item, which]
        # Only a window around each disc is looked at.
        reach = int((r * torch.maximum(high, 1 / high)).max().clamp(max=max(height, width)).ceil())
        step = torch.arange(-reach, reach + 1, device=centres.device)
        inside = (step[:, None] / high[:, None, None]).square() + (step[None] * high[:, None, None]).square()
        inside = inside <= r.square()[:, None, None]
        inside[:, reach, reach] = True
        yy, xx = y.long()[:, None, None] + step[:, None], x.long()[:, None, None] + step[None]
        inside &= (yy >= 0) & (yy < height) & (xx >= 0) & (xx < width)
        out[(item[:, None, None] * height * width + yy * width + xx)[inside]] = True
    return out.view(n, height, width)


# --- figures of a shape -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shapes:
    """Figures of N masks, each (N,) float32: area (px), centre (N, 2) y, x, radius of the disc of the same area (px),
    box (N, 4) y0, x0, y1, x1 of the pixels (inclusive), circularity 4 pi area / perimeter² in (0, 1], complexity: the
    outline's length over that of the ellipse with the same second moments, less 1, at least 0; severity in [0, 1]: how
    much harder than a large round lesion this one is hit."""

    area: torch.Tensor
    centre: torch.Tensor
    radius: torch.Tensor
    box: torch.Tensor
    circularity: torch.Tensor
    complexity: torch.Tensor
    severity: torch.Tensor

    def pick(self, rows: torch.Tensor) -> Shapes:
        """The same figures of some of the masks."""
        return Shapes(**{name: value[rows] for name, value in vars(self).items()})


def shapes_of(masks: torch.Tensor) -> Shapes:
    """(N, H, W) bool -> Shapes. Empty masks: area and radius 0, the frame's centre, severity 0."""
    n, height, width = masks.shape
    mass = masks.float()
    y = torch.arange(height, device=masks.device, dtype=torch.float32) - (height - 1) / 2
    x = torch.arange(width, device=masks.device, dtype=torch.float32) - (width - 1) / 2
    by_row = mass @ torch.stack((torch.ones_like(x), x, x.square()), 1)  # (N, H, 3): sums of 1, x and x²
    rows, columns = by_row[..., 0], torch.ones_like(y) @ mass
    area = rows.sum(1)
    safe = area.clamp(min=1)
    cy, cx = rows @ y / safe, by_row[..., 1].sum(1) / safe
    syy = rows @ y.square() / safe - cy.square() + 1 / 12
    sxx = by_row[..., 2].sum(1) / safe - cx.square() + 1 / 12
    sxy = by_row[..., 1] @ y / safe - cy * cx
    spread = ((syy - sxx).square() / 4 + sxy.square()).sqrt()
    long = 2 * ((syy + sxx) / 2 + spread).sqrt()
    short = 2 * ((syy + sxx) / 2 - spread).clamp(min=1 / 12).sqrt()
    # Ramanujan's approximation of an ellipse's perimeter.
    ellipse = math.pi * (3 * (long + short) - ((3 * long + short) * (long + 3 * short)).sqrt())
    outline = _perimeter(masks)
    circularity = (4 * math.pi * area / outline.square().clamp(min=1)).clamp(max=1)
    complexity = (outline / ellipse.clamp(min=1) - 1).clamp(min=0)
    radius = (area / math.pi).sqrt()
    tiny = (1 - radius / (0.12 * math.sqrt(height * width))).clamp(0, 1)
    irregular = (0.5 * (1 - circularity) + complexity).clamp(0, 1)
    empty = area == 0
    centre = torch.stack((cy + (height - 1) / 2, cx + (width - 1) / 2), 1)
    severity = (0.6 * tiny + 0.4 * irregular).masked_fill(empty, 0)
    return Shapes(area, centre, radius, _boxes(rows, columns), circularity, complexity, severity)


def _perimeter(masks: torch.Tensor) -> torch.Tensor:
    """(N,) length of the outline within the frame by counting crossings along four directions (Cauchy-Crofton)."""
    straight = count_set(masks[:, 1:] ^ masks[:, :-1]) + count_set(masks[:, :, 1:] ^ masks[:, :, :-1])
    slanted = count_set(masks[:, 1:, 1:] ^ masks[:, :-1, :-1]) + count_set(masks[:, 1:, :-1] ^ masks[:, :-1, 1:])
    return math.pi / 8 * (straight + slanted / math.sqrt(2))


def _boxes(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    sides = []
    for line in (rows, columns):
        there = (line > 0).float()
        sides += [there.argmax(1), line.shape[1] - 1 - there.flip(1).argmax(1)]
    return torch.stack((sides[0], sides[2], sides[1], sides[3]), 1)
