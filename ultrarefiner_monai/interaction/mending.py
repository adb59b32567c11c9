"""What the refiner starts from when there are clicks: the coarse result as the clicks alone would mend it.

The refiner sharpens a mask sooner than it gives one up or finds another one; see ``clicks.mend``. Training and serving
both mend here, at the mask prompt's size (a quarter of the sam frame): finer than that the decoder does not see.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Clicks, InputError, Prompts
from ultrarefiner_monai.interaction.clicks import click_pixels, mend


def mended(coarse_prob: torch.Tensor, prompts: Prompts, config: SystemConfig) -> torch.Tensor:
    """coarse_prob (B, 1, S, S) in [0, 1] as the clicks and boxes in ``prompts`` (sam frame) mend it; no gradient.

    Items without clicks or box, and all of them with ``prompts.mend: false``, come back as they are.
    """
    if not config.prompts.mend:
        return coarse_prob
    size = coarse_prob.shape[-1]
    side = size // 4
    coarse_prob, given = coarse_prob.detach(), _on_cpu(prompts)
    # A GPU is waited for twice, whatever the number of images.
    small = resize(coarse_prob, side, side)[:, 0].cpu().numpy()
    changed: dict[int, np.ndarray] = {}
    for i in range(len(small)):
        clicks = clicks_of(given, i, size / side, side)
        if not clicks:
            continue
        try:
            changed[i] = mend(small[i], clicks, config.post)
        except InputError:  # a box beyond the image, in training with careless users
            continue
    if not changed:
        return coarse_prob
    rows = torch.tensor(list(changed), device=coarse_prob.device)
    probs = torch.from_numpy(np.stack(list(changed.values())))[:, None].to(coarse_prob)
    return coarse_prob.index_copy(0, rows, resize(probs, size, size))


def _on_cpu(prompts: Prompts) -> Prompts:
    points, labels, boxes = (
        None if t is None else t.detach().cpu() for t in (prompts.points_xy, prompts.point_labels, prompts.boxes_xyxy)
    )
    return replace(prompts, points_xy=points, point_labels=labels, boxes_xyxy=boxes)


def clicks_of(prompts: Prompts, item: int, scale: float, side: int) -> Clicks:
    """One item's prompts (sam frame) as clicks in a frame of ``side`` pixels, ``scale`` times smaller.

    A background click on a foreground one's pixel is left out: side by side in the image they may be one pixel here.
    """
    given: dict[int, list[tuple[float, float]]] = {1: [], 0: []}
    if prompts.points_xy is not None and prompts.point_labels is not None:
        for (x, y), label in zip(prompts.points_xy[item].tolist(), prompts.point_labels[item].tolist(), strict=True):
            if label in given:
                place = np.clip([(x + 0.5) / scale - 0.5, (y + 0.5) / scale - 0.5], 0, side - 1)
                given[label].append((float(place[0]), float(place[1])))
    held = set(click_pixels(given[1], (side, side)))
    background = tuple(p for p in given[0] if not held & set(click_pixels([p], (side, side))))
    box = None
    if prompts.boxes_xyxy is not None:
        x0, y0, x1, y1 = ((v + 0.5) / scale - 0.5 for v in prompts.boxes_xyxy[item].tolist())
        box = (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None
    return Clicks(foreground_xy=tuple(given[1]), background_xy=background, box_xyxy=box)
