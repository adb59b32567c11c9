"""One letterbox for image, mask, points and boxes: there and back, differentiable.

The aspect ratio is kept, padding goes to the right and below. Coordinates are pixel indices (see ``types``): a point
``x`` of an axis with ``n`` pixels that is resized to ``m`` lands at ``(x + 0.5) * m / n - 0.5``, which is exactly where
``torch.nn.functional.interpolate(align_corners=False)`` puts it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ultrarefiner_monai.core.types import Clicks, Prompts


def resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize of (B, C, H, W) to (B, C, height, width), antialiased along with any axis that shrinks.

    Used in training and in serving alike. Differentiable. Values stay inside the input's range.
    """
    if x.ndim != 4:
        raise ValueError(f"resize expects (B, C, H, W), got {tuple(x.shape)}")
    if x.shape[-2:] == (height, width):
        return x
    shrinks = height < x.shape[-2] or width < x.shape[-1]
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks)


@dataclass(frozen=True)
class Letterbox:
    """Maps between an image frame of (height, width) and a square frame of ``size`` pixels."""

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"Letterbox needs positive sizes, got {self}")

    @property
    def inner_hw(self) -> tuple[int, int]:
        """(rows, columns) of the square that the image covers; the rest is padding."""
        scale = self.size / max(self.height, self.width)
        return (
            min(self.size, max(1, round(self.height * scale))),
            min(self.size, max(1, round(self.width * scale))),
        )

    def _factors(self, like: torch.Tensor) -> torch.Tensor:
        rows, columns = self.inner_hw
        return like.new_tensor([columns / self.width, rows / self.height])

    def apply(self, x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """(B, C, height, width) in the image frame -> (B, C, size, size). Images and masks alike."""
        if x.shape[-2:] != (self.height, self.width):
            raise ValueError(f"expected (..., {self.height}, {self.width}), got {tuple(x.shape)}")
        rows, columns = self.inner_hw
        inner = resize(x, rows, columns)
        return F.pad(inner, (0, self.size - columns, 0, self.size - rows), value=fill)

    def invert(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) in the square frame (any side S: it is brought to ``size`` first) -> (B, C, height, width)."""
        if x.shape[-1] != self.size or x.shape[-2] != self.size:
            x = resize(x, self.size, self.size)
        rows, columns = self.inner_hw
        return resize(x[..., :rows, :columns], self.height, self.width)

    def points(self, points_xy: torch.Tensor) -> torch.Tensor:
        """(..., 2) xy in the image frame -> the same in the square frame."""
        return (points_xy + 0.5) * self._factors(points_xy) - 0.5

    def points_back(self, points_xy: torch.Tensor) -> torch.Tensor:
        """(..., 2) xy in the square frame -> the same in the image frame."""
        return (points_xy + 0.5) / self._factors(points_xy) - 0.5

    def boxes(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """(..., 4) xyxy in the image frame -> the same in the square frame."""
        return torch.cat([self.points(boxes_xyxy[..., :2]), self.points(boxes_xyxy[..., 2:])], dim=-1)

    def boxes_back(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """(..., 4) xyxy in the square frame -> the same in the image frame."""
        return torch.cat([self.points_back(boxes_xyxy[..., :2]), self.points_back(boxes_xyxy[..., 2:])], dim=-1)


def to_prompts(clicks: Clicks, letterbox: Letterbox, device: str | torch.device = "cpu") -> Prompts:
    """Clicks in the image frame -> Prompts of batch 1 in the sam frame, clamped to the image; always in one order."""
    limit = torch.tensor([letterbox.width - 1.0, letterbox.height - 1.0])
    points = labels = boxes = None
    xy = [*clicks.foreground_xy, *clicks.background_xy]
    if xy:
        inside = torch.minimum(torch.tensor(xy, dtype=torch.float32).clamp(min=0), limit)
        points = letterbox.points(inside)[None].to(device)
        labels = torch.tensor([[1] * len(clicks.foreground_xy) + [0] * len(clicks.background_xy)], device=device)
    if clicks.box_xyxy is not None:
        corners = torch.tensor([clicks.box_xyxy], dtype=torch.float32).clamp(min=0)
        boxes = letterbox.boxes(torch.minimum(corners, limit.repeat(2))).to(device)
    return Prompts(points_xy=points, point_labels=labels, boxes_xyxy=boxes)
