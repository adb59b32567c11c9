"""What the refiner makes of the coarse result and a user's clicks: the one way that serving and training share.

    coarse_prob, clicks -> mended coarse_prob -> SAM, with discs on the clicks -> SAM again, with its own mask -> RefinerOutput

The refiner sharpens a mask sooner than it gives one up or finds another one; so the clicks mend the coarse result before
(``clicks.mend``), at the mask prompt's size (a quarter of the sam frame): finer than that the decoder does not see.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Clicks, InputError, Prompts, RefinerOutput
from ultrarefiner_monai.interaction.clicks import check_clicks, click_pixels, mend
from ultrarefiner_monai.models.prompts.moments import ValidHW
from ultrarefiner_monai.models.refiner import Refiner


def refine(
    refiner: Refiner,
    config: SystemConfig,
    image_embedding: torch.Tensor | None,
    coarse_prob: torch.Tensor,
    prompts: Prompts,
    image: torch.Tensor | None = None,
    valid_hw: ValidHW = None,
    passes: int = 2,
    tokens: torch.Tensor | None = None,
) -> RefinerOutput:
    """The refiner's result for a user's clicks and boxes, batched, in the sam frame.

    image_embedding: (B, 256, E, E), or None in ROI mode, which needs ``image`` (B, 1, S, S) in [0, 1]. coarse_prob:
    (B, 1, S, S) in [0, 1]; where it is mended it has no gradient. valid_hw: (rows, columns) that the image covers.
    passes: 1 where a glance at the result is enough, to place the next simulated click. Differentiable in the refiner's
    weights, both passes: ``first_logits`` are the first one's. tokens: see ``Refiner.interactive``.
    """
    start = mended(coarse_prob, prompts, config)
    if passes == 1:
        return refiner(image_embedding, start, prompts, image=image, valid_hw=valid_hw)
    return refiner.interactive(image_embedding, start, prompts, image=image, valid_hw=valid_hw, tokens=tokens)


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
        clicks = _clicks_of(given, i, size / side, side)
        if not clicks:
            continue
        try:
            changed[i] = mend(small[i], check_clicks(clicks, (side, side)), config.post)
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


def _clicks_of(prompts: Prompts, item: int, scale: float, side: int) -> Clicks:
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
