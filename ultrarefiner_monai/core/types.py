"""Small data classes and names that the whole package shares.

Frames
------
*image frame*: the pixels of the original frame. ``x`` runs to the right (columns), ``y`` down (rows). Coordinates are
pixel indices: the centre of the first pixel is ``(0, 0)``, the centre of the last one ``(W - 1, H - 1)``.
*coarse frame*: the letterboxed square that the coarse network sees (224 x 224 by default).
*sam frame*: the letterboxed square that the SAM encoder sees (1024 x 1024 by default).
Every array is in row-major (H, W) order; names say ``xy`` or ``xyxy`` wherever coordinates are held.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

LABEL_NAME = "lesion"
LABELS = {LABEL_NAME: 1}
NOTICE = "Research use only. Not a medical device."


class InputError(ValueError):
    """The user's input cannot be used: says what was expected, what came and what to do. HTTP answers it with a 4xx."""


@dataclass(frozen=True)
class Prompts:
    """What SAM's prompt encoder is given, for a batch, in the sam frame.

    points_xy: (B, N, 2) or None. point_labels: (B, N), 1 foreground, 0 background, -1 padding; with points_xy.
    boxes_xyxy: (B, 4) or None. mask_logits: (B, 1, M, M) with M = 4 x the embedding's side (256 for SAM), or None.
    """

    points_xy: torch.Tensor | None = None
    point_labels: torch.Tensor | None = None
    boxes_xyxy: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if (self.points_xy is None) != (self.point_labels is None):
            raise ValueError("points_xy and point_labels belong together: both or neither must be given")
        if self.points_xy is not None and self.point_labels is not None:
            if self.points_xy.ndim != 3 or self.points_xy.shape[-1] != 2:
                raise ValueError(f"points_xy must be (B, N, 2), got {tuple(self.points_xy.shape)}")
            if self.point_labels.shape != self.points_xy.shape[:2]:
                raise ValueError(
                    f"point_labels must be {tuple(self.points_xy.shape[:2])}, got {tuple(self.point_labels.shape)}"
                )
        if self.boxes_xyxy is not None and (self.boxes_xyxy.ndim != 2 or self.boxes_xyxy.shape[-1] != 4):
            raise ValueError(f"boxes_xyxy must be (B, 4), got {tuple(self.boxes_xyxy.shape)}")


@dataclass(frozen=True)
class Clicks:
    """What the user gave for one frame, in the image frame. The order carries no meaning: it is sorted at the border.

    foreground_xy, background_xy: ((x, y), ...) in pixels. box_xyxy: (x0, y0, x1, y1), x0 <= x1 and y0 <= y1, or None.
    """

    foreground_xy: tuple[tuple[float, float], ...] = ()
    background_xy: tuple[tuple[float, float], ...] = ()
    box_xyxy: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "foreground_xy", tuple(sorted(set(map(_pair, self.foreground_xy)))))
        object.__setattr__(self, "background_xy", tuple(sorted(set(map(_pair, self.background_xy)))))

    def __bool__(self) -> bool:
        return bool(self.foreground_xy or self.background_xy or self.box_xyxy is not None)

    def to_dict(self) -> dict:
        return {
            "foreground_xy": [list(p) for p in self.foreground_xy],
            "background_xy": [list(p) for p in self.background_xy],
            "box_xyxy": None if self.box_xyxy is None else list(self.box_xyxy),
        }


def _pair(point: tuple[float, float]) -> tuple[float, float]:
    x, y = point
    return float(x), float(y)


@dataclass
class RefinerOutput:
    """What the refiner returns for a batch, in the sam frame unless said otherwise.

    refined_logits: (B, 1, M, M), the one mask mixed from three at low resolution. refined_prob: (B, 1, S, S) in [0, 1].
    mask_logits: (B, 3, M, M), the three masks. iou_pred: (B, 3). prompts: what the decoder was given. first_logits: the
    refined_logits of the first of two passes, None where there was one.
    """

    refined_logits: torch.Tensor
    refined_prob: torch.Tensor
    mask_logits: torch.Tensor
    iou_pred: torch.Tensor
    prompts: Prompts = field(default_factory=Prompts)
    first_logits: torch.Tensor | None = None
