"""Where the lesion lies in a probability map, differentiably: row and column marginals and their moments.

Nothing of the size (B, H, W, 2) is ever made, and only what exceeds the floor is worked on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.autograd.function import once_differentiable

MIN_MASS = 0.25  # pixels; it also bounds the gradient of a centroid by side / MIN_MASS

ValidHW: TypeAlias = tuple[int, int] | Sequence[tuple[int, int]] | torch.Tensor | None


class Frame:
    """Where the image lies in the square. valid: (rows, columns) per item; last: (B, 2), the largest x and y there."""

    def __init__(self, prob: torch.Tensor, valid_hw: ValidHW) -> None:
        batch, height, width = prob.shape
        given = torch.tensor([[height, width]]) if valid_hw is None else torch.as_tensor(valid_hw).reshape(-1, 2)
        self.valid: list[list[int]] = given.expand(batch, 2).tolist()
        if any(not (1 <= h <= height and 1 <= w <= width) for h, w in self.valid):
            raise ValueError(f"valid_hw must lie in 1..{height} and 1..{width}, got {self.valid}")
        self.last = prob.new_tensor([[w - 1, h - 1] for h, w in self.valid])
        self.y = torch.arange(height, device=prob.device, dtype=prob.dtype)
        self.x = torch.arange(width, device=prob.device, dtype=prob.dtype)


class _LesionMarginals(torch.autograd.Function):
    """prob (B, H, W) -> row sums (B, H) and column sums (B, W) of relu(prob - floor) inside the valid part.

    Only the rectangle around what exceeds the floor is worked on, forward and backward: most of the image does not.
    """

    @staticmethod
    def forward(ctx: Any, prob: torch.Tensor, floor: float, valid: list) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = prob.new_zeros(prob.shape[:2]), prob.new_zeros(prob.shape[0], prob.shape[2])
        ctx.crops = [support(prob[i, :h, :w], floor) for i, (h, w) in enumerate(valid)]
        ctx.floor = floor
        ctx.save_for_backward(prob)
        for i, (y, x) in enumerate(ctx.crops):
            weight = (prob[i, y, x] - floor).clamp_(min=0)
            rows[i, y], columns[i, x] = weight.sum(1), weight.sum(0)
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: torch.Tensor, grad_columns: torch.Tensor) -> tuple:
        (prob,) = ctx.saved_tensors
        grad = torch.zeros_like(prob)
        for i, (y, x) in enumerate(ctx.crops):
            crop = grad[i, y, x]
            torch.add(grad_rows[i, y, None], grad_columns[i, None, x], out=crop)
            crop *= prob[i, y, x] > ctx.floor
        return grad, None, None


def support(image: torch.Tensor, floor: float) -> tuple[slice, slice]:
    """The rectangle of image (H, W) that holds everything above the floor; empty slices where nothing is."""
    rows = (image.amax(1) > floor).nonzero()
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    y = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = (image[y].amax(0) > floor).nonzero()
    return y, slice(int(columns[0]), int(columns[-1]) + 1)


class WindowMarginals(torch.autograd.Function):
    """prob (B, H, W), window wy (B, H) and wx (B, W) -> prob @ wx (B, H) and wy @ prob (B, W), within the crops."""

    @staticmethod
    def forward(ctx: Any, prob: torch.Tensor, wy: torch.Tensor, wx: torch.Tensor, crops: list) -> tuple:
        rows, columns = torch.zeros_like(wy), torch.zeros_like(wx)
        for i, (y, x) in enumerate(crops):
            crop = prob[i, y, x]
            rows[i, y], columns[i, x] = crop @ wx[i, x], wy[i, y] @ crop
        ctx.crops = crops
        ctx.save_for_backward(prob, wy, wx)
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: torch.Tensor, grad_columns: torch.Tensor) -> tuple:
        prob, wy, wx = ctx.saved_tensors
        grad, grad_wy, grad_wx = torch.zeros_like(prob), torch.zeros_like(wy), torch.zeros_like(wx)
        for i, (y, x) in enumerate(ctx.crops):
            crop, gy, gx = prob[i, y, x], grad_rows[i, y], grad_columns[i, x]
            grad_wx[i, x], grad_wy[i, y] = gy @ crop, crop @ gx
            grad[i, y, x] = torch.stack([gy, wy[i, y]], dim=1) @ torch.stack([wx[i, x], gx])
        return grad, grad_wy, grad_wx, None


class Moments:
    """Mass, mean and standard deviation per axis of what counts as lesion; per item, with empty items made harmless."""

    def __init__(self, prob: torch.Tensor, floor: float, frame: Frame) -> None:
        self.frame = frame
        rows, columns = _LesionMarginals.apply(prob, floor, frame.valid)
        mass = rows.sum(1) / (1 - floor)
        self.empty = (mass < MIN_MASS).detach()
        safe = torch.where(self.empty, 1.0, mass * (1 - floor))
        mean_x, var_x = _mean_variance(columns, frame.x, safe)
        mean_y, var_y = _mean_variance(rows, frame.y, safe)
        self.mean = torch.stack([mean_x, mean_y], dim=1)
        # A pixel is a square of side 1 with a variance of its own: one pixel gets a box, and sqrt a finite gradient.
        self.std = torch.sqrt(torch.stack([var_x, var_y], dim=1).clamp_min(0) + 1 / 12)

    def box(self, factor: float) -> torch.Tensor:
        """mean -/+ factor * std, clamped to the image: (B, 4)."""
        low = (self.mean - factor * self.std).clamp_min(0)
        high = torch.minimum(self.mean + factor * self.std, self.frame.last)
        return torch.cat([low, high], dim=1)

    def masked(self, values: torch.Tensor, empty: Sequence[float] = ()) -> torch.Tensor:
        """values (B, K) where there is something, ``empty`` (zeros) where there is not; no gradient there."""
        other = values.new_tensor(empty) if len(empty) else values.new_zeros(())
        return torch.where(self.empty[:, None], other, values)


def _mean_variance(
    marginal: torch.Tensor, index: torch.Tensor, mass: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    mean = (marginal * index).sum(1) / mass
    return mean, (marginal * (index - mean[:, None]) ** 2).sum(1) / mass
