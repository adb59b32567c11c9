"""The region of interest: a square of the sam frame that the refiner sees enlarged, and the way back from it.

Coordinates are pixel indices; a square with first pixel ``x0`` and side ``s`` covers the continuous range from
``x0 - .5`` to ``x0 - .5 + s``. Where the square lies is a constant for the gradient; what is in it is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.models.prompts.derive import derive_prompts
from ultrarefiner_monai.models.prompts.moments import ValidHW
from ultrarefiner_monai.models.sam.network import box_is_given

MIN_SHARE = 0.125  # the least side of a region as share of the frame: a smaller one shows SAM only blur


@dataclass(frozen=True)
class Roi:
    """origin_xy: (B, 2), the index of the first pixel (may be fractional). side: (B,). size: S, of frame and crop."""

    origin_xy: torch.Tensor
    side: torch.Tensor
    size: int

    def crop(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) in the sam frame -> (B, 1, S, S) of the region."""
        steps = (torch.arange(self.size, device=x.device, dtype=x.dtype) + 0.5) / self.size * 2 - 1  # -1..1 in the ROI
        scale = self.side / self.size
        centre = (self.origin_xy + self.side[:, None] / 2) / self.size * 2 - 1
        return F.grid_sample(
            x, _grid(steps, scale, centre), mode="bilinear", padding_mode="border", align_corners=False
        )

    def paste_prob(self, logits: torch.Tensor, coarse_prob: torch.Tensor) -> torch.Tensor:
        """logits (B, 1, M, M) of the region -> probability (B, 1, S, S); outside the region it is coarse_prob."""
        prob = torch.sigmoid(self._sample(logits, self.size))
        return torch.where(self._inside(self.size)[:, None], prob, coarse_prob)

    def paste_logits(self, logits: torch.Tensor, coarse_prob: torch.Tensor) -> torch.Tensor:
        """logits (B, C, M, M) of the region -> (B, C, M, M) of the sam frame; outside it logit(coarse_prob)."""
        side = logits.shape[-1]
        outside = torch.logit(resize(coarse_prob, side, side), eps=1e-4)
        return torch.where(self._inside(side)[:, None], self._sample(logits, side), outside)

    def enter(self, prompts: Prompts) -> Prompts:
        """Prompts in the sam frame -> in the region. Absent boxes stay absent; a mask prompt is taken as the region's."""
        return self._moved(prompts, lambda xy: (xy + 0.5 - self._low()) * self._factor() - 0.5)

    def leave(self, prompts: Prompts) -> Prompts:
        """The inverse of ``enter`` for points and boxes. The mask prompt stays the region's."""
        return self._moved(prompts, lambda xy: (xy + 0.5) / self._factor() + self._low() - 0.5)

    def valid_inside(self, valid_hw: ValidHW) -> ValidHW:
        """Rows and columns of the region that the image covers, per item."""
        if valid_hw is None:
            return None
        valid = torch.as_tensor(valid_hw, device=self.side.device).reshape(-1, 2).expand(len(self.side), 2)
        inside = ((valid.to(self.side) - self.origin_xy.flip(1)) * self.size / self.side[:, None]).round()
        return inside.clamp(1, self.size).long()

    def _low(self) -> torch.Tensor:
        return self.origin_xy[:, None]

    def _factor(self) -> torch.Tensor:
        return (self.size / self.side)[:, None, None]

    def _moved(self, prompts: Prompts, move) -> Prompts:  # type: ignore[no-untyped-def]
        points, boxes = prompts.points_xy, prompts.boxes_xyxy
        if boxes is not None:
            boxes = torch.where(box_is_given(boxes)[:, None], move(boxes.reshape(-1, 2, 2)).reshape(-1, 4), boxes)
        if points is not None and prompts.point_labels is not None:
            points = torch.where((prompts.point_labels == -1)[..., None], points, move(points))
        return replace(prompts, points_xy=points, boxes_xyxy=boxes)

    def _sample(self, x: torch.Tensor, side: int) -> torch.Tensor:
        """x (B, C, M, M) of the region at the pixel centres of a sam frame drawn with ``side`` pixels."""
        steps = (torch.arange(side, device=x.device, dtype=x.dtype) + 0.5) / side * 2 - 1
        scale = self.size / self.side
        centre = -((self.origin_xy + self.side[:, None] / 2) / self.size * 2 - 1) * scale[:, None]
        return F.grid_sample(
            x, _grid(steps, scale, centre), mode="bilinear", padding_mode="border", align_corners=False
        )

    def _inside(self, side: int) -> torch.Tensor:
        """(B, side, side) bool: whose pixel centres lie in the region."""
        centres = (torch.arange(side, device=self.side.device, dtype=self.side.dtype) + 0.5) * (self.size / side)
        low, high = self.origin_xy, self.origin_xy + self.side[:, None]
        along = (centres[None, None] >= low[..., None]) & (centres[None, None] <= high[..., None])  # (B, 2, side)
        return along[:, 1, :, None] & along[:, 0, None, :]


def _grid(steps: torch.Tensor, scale: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """grid_sample's grid (B, n, n, 2): steps (n,) * scale (B,) + centre (B, 2)."""
    axes = steps[None, None] * scale[:, None, None] + centre[..., None]
    n = len(steps)
    return torch.stack([axes[:, 0, None, :].expand(-1, n, -1), axes[:, 1, :, None].expand(-1, -1, n)], dim=-1)


@torch.no_grad()
def find_roi(coarse_prob: torch.Tensor, prompts: Prompts | None, config: SystemConfig, valid_hw: ValidHW) -> Roi:
    """The square around the coarse lesion and all of the user's prompts, ``refiner.roi_expand`` times their extent.

    At most the whole frame, at least an eighth of it, and moved inwards where it would stick out. An item with nothing
    to look at gets the whole frame.
    """
    size = coarse_prob.shape[-1]
    plain = replace(config.prompts, point=False, negative="none", mask="none", box="moments")
    boxes = derive_prompts(coarse_prob, plain, valid_hw=valid_hw).boxes_xyxy
    assert boxes is not None
    low, high = _extent(boxes[:, None, :2], boxes[:, None, 2:], box_is_given(boxes)[:, None])
    if prompts is not None and prompts.boxes_xyxy is not None:
        box = prompts.boxes_xyxy.detach()
        more = _extent(box[:, None, :2], box[:, None, 2:], box_is_given(box)[:, None])
        low, high = torch.minimum(low, more[0]), torch.maximum(high, more[1])
    if prompts is not None and prompts.points_xy is not None and prompts.point_labels is not None:
        points = prompts.points_xy.detach()
        more = _extent(points, points, prompts.point_labels != -1)
        low, high = torch.minimum(low, more[0]), torch.maximum(high, more[1])
    nothing = (high < low).any(dim=1)
    side = ((high - low).amax(dim=1) + 1) * config.refiner.roi_expand
    side = torch.where(nothing, float(size), side.clamp(MIN_SHARE * size, size))
    centre = torch.where(nothing[:, None], size / 2, (low + high + 1) / 2)
    origin = (centre - side[:, None] / 2).clamp_min(0)
    return Roi(torch.minimum(origin, size - side[:, None]), side, size)


def _extent(low: torch.Tensor, high: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N, 2) corners and (B, N) bool -> the lowest and highest of those given, (B, 2); inverted if none."""
    infinite = float("inf")
    return (
        torch.where(given[..., None], low, infinite).amin(dim=1),
        torch.where(given[..., None], high, -infinite).amax(dim=1),
    )
