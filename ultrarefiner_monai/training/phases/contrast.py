"""What an encoder learns from boxes: which places of an image are lesion, which are not, and what their features should be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

SamBox = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the sam frame


class ProjectionHead(nn.Module):
    """(B, 256, E, E) -> (B, width, E, E) of length 1: where features are compared."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.Conv2d(channels, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.body(x), dim=1)


def ring_points(
    big: Sequence[SamBox], small: Sequence[SamBox], count: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """(B, count, 2) xy, drawn evenly from what lies in the big boxes and not in the small ones.

    The ring is four rectangles, of which one is drawn by its area: no draw is thrown away.
    """
    out = torch.empty(len(big), count, 2)
    for item, ((bx1, by1, bx2, by2), (sx1, sy1, sx2, sy2)) in enumerate(zip(big, small, strict=True)):
        parts = torch.tensor(
            [(bx1, by1, bx2, sy1), (bx1, sy2, bx2, by2), (bx1, sy1, sx1, sy2), (sx2, sy1, bx2, sy2)],
            dtype=torch.float64,
        )
        extent = (parts[:, 2:] - parts[:, :2]).clamp(min=0)
        area = extent.prod(dim=1)
        # Boxes that differ on one side by less than a pixel: along that side.
        area = area if area.sum() > 0 else extent.sum(dim=1) + 1e-9
        chosen = torch.multinomial(area, count, replacement=True, generator=generator)
        share = torch.rand(count, 2, dtype=torch.float64, generator=generator)
        out[item] = (parts[chosen, :2] + share * extent[chosen]).float()
    return out


def box_masks(boxes: Sequence[SamBox], grid: int, side: int) -> torch.Tensor:
    """(B, grid, grid) bool: the places of a grid over a frame of ``side`` pixels whose centre lies in the box; at least the one
    that holds the box's middle."""
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) * side / grid - 0.5
    out = torch.zeros(len(boxes), grid, grid, dtype=torch.bool)
    for item, (x1, y1, x2, y2) in enumerate(boxes):
        columns, rows = (centres >= x1) & (centres <= x2), (centres >= y1) & (centres <= y2)
        out[item] = rows[:, None] & columns[None]
        middle = [int(min(max(((a + b) / 2 + 0.5) * grid / side, 0), grid - 1)) for a, b in ((y1, y2), (x1, x2))]
        out[item, middle[0], middle[1]] = True
    return out


def entropy(logits: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(B,): mean entropy in nats of the probabilities of (B, 1, M, M) logits, where ``valid`` (B, 1, M, M) bool says that there
    is image."""
    prob = torch.sigmoid(logits)
    each = -(prob * F.logsigmoid(logits) + (1 - prob) * F.logsigmoid(-logits))
    return (each * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)


def info_nce(
    anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over (n, D) anchors of -log(exp(a p / t) / (exp(a p / t) + sum over (m, D) negatives of exp(a n / t))); all of length 1."""
    own = (anchors * positives).sum(dim=1, keepdim=True)
    logits = torch.cat([own, anchors @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def contrast(
    student: torch.Tensor,
    teacher: torch.Tensor,
    pseudo: torch.Tensor,
    small: torch.Tensor,
    big: torch.Tensor,
    valid: torch.Tensor,
    anchors: int,
    negatives: int,
    temperature: float,
) -> torch.Tensor | None:
    """InfoNCE of one image; None where its pseudo-mask and small box have no place in common, or nothing is left that is no lesion.

    student, teacher: (D, E, E), features of length 1, the teacher's without gradient. pseudo, small, big, valid: (E, E) bool, the teacher's mask, the
    boxes, and where there is image. Anchors: student's features where mask and small box agree; positives: the teacher's there;
    negatives: the student's where the small box is missed, and where the mask is beyond the big one; random background in place of none.
    """
    s, t = student.flatten(1).T, teacher.flatten(1).T.detach()
    chosen = _drawn((pseudo & small & valid).flatten(), anchors)
    wrong = [_drawn(mask.flatten(), negatives) for mask in (small & ~pseudo & valid, ~big & pseudo & valid)]
    away = torch.cat(wrong)
    if not len(away):
        away = _drawn((~big & ~pseudo & valid).flatten(), negatives)
    if not len(chosen) or not len(away):
        return None
    return info_nce(s[chosen], t[chosen], s[away], temperature)


def _drawn(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Up to ``count`` random indices of what is set in (N,) bool."""
    index = mask.nonzero()[:, 0]
    return index if len(index) <= count else index[torch.randperm(len(index), device=index.device)[:count]]
