"""Clicks as a user would give them, for training: on the worst mistakes of the present result, some of them careless.

The decoder works at M x M (a quarter of the sam frame); errors are looked for there, which is 16 times cheaper than at
full size, and clicks are handed over in the sam frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.interaction.robot import next_click

# How likely 1, 2, 3 ... clicks are: mostly few, for that is what users give.
COUNT_WEIGHTS = (0.3, 0.22, 0.16, 0.11, 0.08, 0.06, 0.04, 0.03)
CARELESS = 0.06  # a careless click lands this share of the side away from where it should

Click = tuple[float, float, int]  # x, y in the M frame, label


def draw_counts(number: int, most: int, rng: np.random.Generator) -> list[int]:
    """How many clicks each of ``number`` items gets, 1 to ``most``."""
    weights = np.array(COUNT_WEIGHTS[:most] + (COUNT_WEIGHTS[-1],) * max(0, most - len(COUNT_WEIGHTS)))
    return [int(n) + 1 for n in rng.choice(len(weights), size=number, p=weights / weights.sum())]


def worst_clicks(mask: np.ndarray, label: np.ndarray, count: int, given: Sequence[Click]) -> list[Click]:
    """Up to ``count`` clicks on the largest errors of mask (M, M) bool against label (M, M) bool, one after the other.

    Within a round a click is taken to mend its surroundings as far as the error's depth there.
    """
    mask = mask.copy()
    clicks: list[Click] = []
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for _ in range(count):
        found = next_click(mask, label, [(x, y) for x, y, _ in (*given, *clicks)])
        if found is None:
            break
        x, y, positive = found
        clicks.append((float(x), float(y), int(positive)))
        wrong = mask != label
        distance = np.hypot(rows - y, columns - x)
        right = distance[~wrong]
        radius = float(right.min()) if right.size else float("inf")
        mask[distance <= 1.5 * radius] = label[distance <= 1.5 * radius]
    return clicks


def careless(clicks: Sequence[Click], share: float, side: int, rng: np.random.Generator) -> list[Click]:
    """The same clicks, some of them beside their mark."""
    out = []
    for x, y, label in clicks:
        if rng.random() < share:
            dx, dy = rng.normal(scale=CARELESS * side, size=2)
            x, y = float(np.clip(x + dx, 0, side - 1)), float(np.clip(y + dy, 0, side - 1))
        out.append((x, y, label))
    return out


def as_prompts(
    clicks: Sequence[Sequence[Click]], scale: float, boxes: torch.Tensor | None, like: torch.Tensor
) -> Prompts:
    """Clicks in the M frame -> Prompts in the sam frame, which is ``scale`` times as large. Items are padded with -1."""
    most = max((len(c) for c in clicks), default=0)
    points = like.new_zeros(len(clicks), max(most, 1), 2)
    labels = torch.full((len(clicks), max(most, 1)), -1, dtype=torch.long, device=like.device)
    for i, item in enumerate(clicks):
        for j, (x, y, label) in enumerate(item):
            points[i, j] = points.new_tensor([(x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5])
            labels[i, j] = label
    return Prompts(points_xy=points, point_labels=labels, boxes_xyxy=boxes)


def rough_boxes(label: torch.Tensor, given: Sequence[bool], scale: float, rng: np.random.Generator) -> torch.Tensor:
    """Boxes as a user draws them around label (B, 1, M, M) bool: (B, 4) in the sam frame; inverted where not ``given``."""
    boxes = []
    for mask, wanted in zip(label[:, 0].cpu().numpy(), given, strict=True):
        if not wanted or not mask.any():
            boxes.append([0.0, 0.0, -1.0, -1.0])
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=float)
        size = np.array([box[2] - box[0], box[3] - box[1]] * 2) + 1
        box = np.clip(box + rng.uniform(-0.08, 0.08, size=4) * size, 0, mask.shape[0] - 1)
        boxes.append(((box + 0.5) * scale - 0.5).tolist())
    return torch.tensor(boxes, dtype=torch.float32, device=label.device)


def simulate(
    answer: Callable[[Prompts], torch.Tensor],
    start: torch.Tensor,
    label: torch.Tensor,
    counts: Sequence[int],
    boxes: torch.Tensor | None,
    scale: float,
    mistakes: float,
    rng: np.random.Generator,
    most_rounds: int = 3,
) -> Prompts:
    """The prompts of a whole interaction, in the sam frame.

    answer: prompts -> refined_prob (B, 1, M, M), without gradient. start: the result before any click, the same shape.
    label: (B, 1, M, M) bool. counts: clicks per item. most_rounds: results are computed anew so many times at most; the
    clicks of a round are placed on one result. Items whose result has no error left get no more clicks.
    """
    clicks: list[list[Click]] = [[] for _ in counts]
    rounds = min(most_rounds, max(counts, default=0))
    prob = start
    for r in range(rounds):
        masks, truth = (prob[:, 0] >= 0.5).cpu().numpy(), label[:, 0].cpu().numpy()
        for i, total in enumerate(counts):
            due = -(-total * (r + 1) // rounds) - len(clicks[i])
            new = worst_clicks(masks[i], truth[i], due, clicks[i]) if due > 0 else []
            clicks[i] += careless(new, mistakes, masks.shape[1], rng)
        if r + 1 < rounds:
            with torch.no_grad():
                prob = answer(as_prompts(clicks, scale, boxes, start))
    return as_prompts(clicks, scale, boxes, start)
