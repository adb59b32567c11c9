"""From coarse_prob to SAM's prompts, differentiably: gradients of the refined mask reach the coarse network.

Points and boxes come from the map's one-dimensional moments (``moments``). Pixel indices are coordinates (see ``types``);
all is in the sam frame.

What counts as lesion for point and box is ``relu(p - floor) / (1 - floor)``: continuous, and exactly zero below the
floor, so that a faint background of any extent moves nothing. An item with less than ``MIN_MASS`` of it in total is
empty: no point (label -1), no box (inverted), no mask (all zero), and a gradient of exactly zero.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ultrarefiner_monai.config import PromptConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.models.prompts.moments import MIN_MASS, Frame, Moments, ValidHW, WindowMarginals, support

MASK_SCALE = 10.0  # direct: (2 p - 1) * 10
SHARPEN_SLOPE = 10.0
BOX_EDGE = 0.02  # softness of the negative point's window: share of the box's side, at least one pixel
REFERENCE_SIDE = 256  # gaussian_sigma and distance_temperature are pixels of a mask prompt of this side
NO_BOX = (0.0, 0.0, -1.0, -1.0)


def derive_prompts(
    coarse_prob: torch.Tensor, config: PromptConfig, mask_side: int = 256, valid_hw: ValidHW = None
) -> Prompts:
    """coarse_prob (B, 1, S, S) in [0, 1], sam frame -> Prompts in the sam frame.

    mask_side: side of the mask prompt, 4 x the embedding's. valid_hw: (rows, columns) that the image covers, one pair
    or one per item; the rest is the letterbox's padding, which is neither lesion nor background. None: all of it.
    points_xy: (B, N, 2), N = 0 to 2: the positive, then the negative one.
    """
    prob, moments = _seen(coarse_prob, config, valid_hw)
    box = _threshold_box(prob, moments) if config.box == "minmax" else moments.box(config.box_factor)

    xy, labels = [], []
    if config.point:
        xy.append(moments.masked(moments.mean + _offset_inside(prob, moments)))
        labels.append(torch.where(moments.empty, -1, 1))
    if config.negative != "none":
        negative, given = _negative(prob, config, moments, box)
        xy.append(torch.where(given[:, None], negative, 0.0))
        labels.append(torch.where(given, 0, -1))
    return Prompts(
        points_xy=torch.stack(xy, dim=1) if xy else None,
        point_labels=torch.stack(labels, dim=1) if xy else None,
        boxes_xyxy=None if config.box == "none" else moments.masked(box, NO_BOX),
        mask_logits=mask_prompt(prob[:, None], config, mask_side, moments.empty),
    )


def derive_mask_prompt(
    coarse_prob: torch.Tensor, config: PromptConfig, mask_side: int = 256, valid_hw: ValidHW = None
) -> torch.Tensor | None:
    """The mask prompt alone, (B, 1, mask_side, mask_side): what stays beside a user's points and box."""
    prob, moments = _seen(coarse_prob, config, valid_hw)
    return mask_prompt(prob[:, None], config, mask_side, moments.empty)


def _seen(coarse_prob: torch.Tensor, config: PromptConfig, valid_hw: ValidHW) -> tuple[torch.Tensor, Moments]:
    """(B, H, W) and its moments."""
    if coarse_prob.ndim != 4 or coarse_prob.shape[1] != 1:
        raise ValueError(f"coarse_prob must be (B, 1, H, W), got {tuple(coarse_prob.shape)}")
    prob = coarse_prob.flatten(0, 1)  # a view whose backward is free, unlike that of indexing
    if config.sharpen:
        prob = torch.sigmoid(SHARPEN_SLOPE * (prob - 0.5))
    return prob, Moments(prob, config.box_floor, Frame(prob, valid_hw))


# --- Box and points ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def _threshold_box(prob: torch.Tensor, moments: Moments) -> torch.Tensor:
    """The bounding box of prob > .5, without gradient; the moments' box where nothing exceeds .5."""
    box = moments.box(2.0).clone()
    for i, (height, width) in enumerate(moments.frame.valid):
        y, x = support(prob[i, :height, :width], 0.5)
        if y.stop > y.start:
            box[i] = box.new_tensor([x.start, y.start, x.stop - 1, y.stop - 1])
    return box


def _at(prob: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """prob (B, H, W) at the pixels nearest to xy (B, 2): (B,), detached."""
    x = xy[:, 0].detach().round().long().clamp(0, prob.shape[2] - 1)
    y = xy[:, 1].detach().round().long().clamp(0, prob.shape[1] - 1)
    return prob.detach()[torch.arange(len(prob), device=prob.device), y, x]


@torch.no_grad()
def _offset_inside(prob: torch.Tensor, moments: Moments) -> torch.Tensor:
    """(B, 2): zero where the centroid lies in the mask, else the way from there to a pixel well inside it; constant."""
    offset = torch.zeros_like(moments.mean)
    outside = (_at(prob, moments.mean) < 0.5) & ~moments.empty
    for item in outside.nonzero()[:, 0].tolist():
        height, width = moments.frame.valid[item]
        image = prob[item, :height, :width]
        threshold = min(0.5, 0.9 * float(image.max()))
        offset[item] = _deep_pixel(image > threshold, moments.mean[item]) - moments.mean[item]
    return offset


def _deep_pixel(mask: torch.Tensor, near_xy: torch.Tensor) -> torch.Tensor:
    """xy of a pixel of mask (H, W) that is well covered by mask all around, the nearest to near_xy among equals."""
    ys, xs = mask.nonzero(as_tuple=True)
    reach = max(1, round(len(ys) ** 0.5 / 8))
    # Along one axis and then along the other: the same mean over the square, for the square root of its cost.
    rows = F.avg_pool2d(mask[None, None].float(), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    coverage = F.avg_pool2d(rows, (1, 2 * reach + 1), stride=1, padding=(0, reach))[0, 0][ys, xs]
    distance = torch.hypot(xs - near_xy[0], ys - near_xy[1]) / math.hypot(*mask.shape)
    best = int((coverage - 0.5 * distance).argmax())
    return torch.stack([xs[best], ys[best]]).to(near_xy.dtype)


def _negative(
    prob: torch.Tensor, config: PromptConfig, moments: Moments, box: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative point (B, 2) and where there is one (B,).

    ``centroid`` lies in the middle of the box, that is in the lesion, whenever the lesion is about round. A negative
    point there would contradict the positive one: the box's corner takes its place. No background there: no point.
    """
    corner = _far_corner(prob, moments, box)
    point = corner if config.negative == "corner" else _background_centroid(prob, box, moments.frame)
    inside = _at(prob, point) >= 0.5
    point = torch.where(inside[:, None], corner, point)
    return point, (_at(prob, point) < 0.5) & ~moments.empty


def _background_centroid(prob: torch.Tensor, box: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Weighted centroid of (1 - p) within a box with sigmoid edges. The window is separable: two products with p."""
    edge = (BOX_EDGE * (box[:, 2:] - box[:, :2])).detach().clamp_min(1)
    crops = []
    for (x0, y0, x1, y1), (ex, ey), (height, width) in zip(box.tolist(), edge.tolist(), frame.valid):
        # Sixteen widths outside the box the window is 1e-7 and is left out.
        crops.append((_span(y0 - 16 * ey, y1 + 16 * ey, height), _span(x0 - 16 * ex, x1 + 16 * ex, width)))
    wx, wy = _soft_window(frame.x, box, edge, 0), _soft_window(frame.y, box, edge, 1)
    inside_x = torch.stack([(frame.x >= x.start) & (frame.x < x.stop) for _, x in crops])
    inside_y = torch.stack([(frame.y >= y.start) & (frame.y < y.stop) for y, _ in crops])
    wx, wy = wx * inside_x, wy * inside_y
    lesion_rows, lesion_columns = WindowMarginals.apply(prob, wy, wx, crops)
    rows = wy * (wx.sum(1, keepdim=True) - lesion_rows)
    columns = wx * (wy.sum(1, keepdim=True) - lesion_columns)
    mass = rows.sum(1)
    safe = torch.where(mass < MIN_MASS, 1.0, mass)
    centroid = torch.stack([(columns * frame.x).sum(1) / safe, (rows * frame.y).sum(1) / safe], dim=1)
    # A box without background: its centre, which carries no gradient and lies in the lesion, so it is moved or dropped.
    return torch.where((mass < MIN_MASS)[:, None], ((box[:, :2] + box[:, 2:]) / 2).detach(), centroid)


def _span(low: float, high: float, size: int) -> slice:
    start = min(max(0, math.floor(low)), size - 1)
    return slice(start, max(start + 1, min(size, math.ceil(high) + 1)))


def _soft_window(index: torch.Tensor, box: torch.Tensor, edge: torch.Tensor, axis: int) -> torch.Tensor:
    """(n,), (B, 4), (B, 2) -> (B, n): near 1 between the box's two sides along an axis (0: x), near 0 outside."""
    low, high, width = box[:, axis, None], box[:, axis + 2, None], edge[:, axis, None]
    return torch.sigmoid((index - low) / width) * torch.sigmoid((high - index) / width)


def _far_corner(prob: torch.Tensor, moments: Moments, box: torch.Tensor) -> torch.Tensor:
    """The corner of the box farthest from the positive point, background corners first: (B, 2), on the box's graph."""
    corners = torch.stack([box[:, [0, 1]], box[:, [2, 1]], box[:, [0, 3]], box[:, [2, 3]]], dim=1)
    distance = (corners - moments.mean[:, None]).detach().norm(dim=2)
    background = torch.stack([_at(prob, corners[:, i]) < 0.5 for i in range(4)], dim=1)
    choice = (distance + background * 1e6).argmax(1)
    return corners[torch.arange(len(corners), device=corners.device), choice]


# --- Mask prompt ------------------------------------------------------------------------------------------------------


def mask_prompt(prob: torch.Tensor, config: PromptConfig, side: int, empty: torch.Tensor) -> torch.Tensor | None:
    """prob (B, 1, S, S) -> mask_logits (B, 1, side, side); zero for the items of ``empty`` (B,). None for ``none``."""
    if config.mask == "none":
        return None
    small = resize(prob, side, side)
    if config.mask == "gaussian":
        small = _blur(small, config.gaussian_sigma * side / REFERENCE_SIDE)
    logits = (2 * small - 1) * MASK_SCALE
    if config.mask == "distance":
        # The distance itself has no useful gradient; it is given the direct prompt's (straight-through).
        unit = config.distance_temperature * side / REFERENCE_SIDE
        logits = logits + (signed_distance(small) / unit - logits).detach()
    return torch.where(empty[:, None, None, None], 0.0, logits)


def _blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (B, 1, M, M), one axis after the other; the border is repeated."""
    reach = min(max(1, math.ceil(3 * sigma)), x.shape[-1] - 1)
    t = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (t / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))


def signed_distance(prob: torch.Tensor) -> torch.Tensor:
    """prob (B, 1, M, M) -> signed distance to the outline of prob > .5 in pixels, positive inside; detached."""
    masks = (prob.detach() > 0.5).cpu().numpy()
    out = np.zeros(masks.shape, dtype=np.float64)
    for item, mask in enumerate(masks[:, 0]):
        if not mask.any():  # an outline nowhere: as far away as the image is large
            out[item] = -float(mask.shape[0])
            continue
        inside = ndimage.distance_transform_edt(np.pad(mask, 1, constant_values=False))[1:-1, 1:-1]
        out[item] = inside - ndimage.distance_transform_edt(~mask)
        out[item] -= 0.5 * np.sign(out[item])  # the outline runs between pixels
    return torch.from_numpy(out).to(prob)
