"""Points that a proposal network learns from: drawn from a label, and matched with what it proposes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from ultrarefiner_monai.models.ppn import ProposedPoints

# What a distance and a label count for in the matching, whatever ``PointsConfig`` gives the losses.
_PLACE, _LABEL = 5.0, 0.5
Target = tuple[np.ndarray, np.ndarray]  # xy (N, 2) in pixels of the label's frame, label (N,) 1 inside and 0 beside


def target_points(
    label: np.ndarray, inside: int, count: int, margin: float, valid: tuple[int, int] | None = None
) -> Target | None:
    """``count`` points for one label; None without a lesion, which has no place to learn.

    label: (M, M) bool. ``inside`` of them lie in the lesion, the deepest first, each far from those before it; the others
    beside its border, within ``margin`` of the side, spread around it. A lesion with fewer pixels than points is
    given all its pixels, the deepest more than once; where a lesion leaves no room beside it, all lie inside. valid: (rows, columns)
    that the image covers; none lies in the padding.
    """
    if not label.any():
        return None
    away = distance_transform_edt(~label) if not label.all() else np.zeros(label.shape)
    ring = (away > 0) & (away <= max(margin * label.shape[0], 1.5))
    if valid is not None:
        ring[valid[0] :], ring[:, valid[1] :] = False, False
    if not ring.any():
        inside = count
    inner = _spread(label, _depth(label), inside)
    # Beside the border the middle of the ring is best: near enough to matter, and surely outside.
    outer = _spread(ring, _depth(ring), count - inside) if count > inside else np.zeros((0, 2))
    return np.concatenate([inner, outer]), np.r_[np.ones(len(inner)), np.zeros(len(outer))]


def _depth(mask: np.ndarray) -> np.ndarray:
    return distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def _spread(mask: np.ndarray, depth: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) xy in ``mask``: the deepest pixel, then those that are deep and far from what is chosen (farthest point
    sampling, weighed by depth)."""
    ys, xs = np.nonzero(mask)
    places, worth = np.stack([xs, ys], axis=1).astype(float), depth[ys, xs]
    chosen = [int(worth.argmax())]
    far = np.full(len(places), np.inf)
    while len(chosen) < count:
        far = np.minimum(far, np.hypot(*(places - places[chosen[-1]]).T))
        gain = np.sqrt(worth) * far
        chosen.append(int(gain.argmax()) if gain.max() > 0 else chosen[0])
    return places[chosen]


def point_losses(
    points: ProposedPoints, targets: Sequence[Target | None], side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(place loss, label loss): SmoothL1 of matched places as shares of the frame, BCE of all labels.

    side: of the targets' frame. Matching: least sum of distance and label loss (Hungarian), anew in each step.
    """
    b, n = points.logits.shape
    xy = points.xy.new_zeros(b, n, 2)
    label = points.logits.new_zeros(b, n)
    weight = points.xy.new_zeros(b)
    for i, target in enumerate(targets):
        if target is None:
            continue
        order = matched(points, i, target, side)
        xy[i] = torch.from_numpy((target[0][order] + 0.5) / side).to(xy)
        label[i] = torch.from_numpy(target[1][order]).to(label)
        weight[i] = 1
    # A tenth of the frame is where SmoothL1 turns from a square to a line.
    place = F.smooth_l1_loss(points.xy, xy, reduction="none", beta=0.1).mean(dim=(1, 2))
    place = (place * weight).sum() / weight.sum().clamp(min=1)
    return place, F.binary_cross_entropy_with_logits(points.logits, label)


def matched(points: ProposedPoints, item: int, target: Target, side: int) -> np.ndarray:
    """For each proposed point of one image the index of its target."""
    xy = points.xy[item].detach().cpu().numpy()
    logits = points.logits[item].detach().cpu().numpy()
    wanted, labels = (target[0] + 0.5) / side, target[1]
    distance = np.abs(xy[:, None] - wanted[None]).sum(axis=2)
    wrong = np.logaddexp(0, np.where(labels[None] > 0.5, -logits[:, None], logits[:, None]))
    # A number that is none is found by the loss, with the images' names; the matching has to go on till there.
    rows, columns = linear_sum_assignment(np.nan_to_num(_PLACE * distance + _LABEL * wrong, nan=1e6, posinf=1e6))
    return columns[np.argsort(rows)]
