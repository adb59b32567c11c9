"""A user's clicks in phases 2 and 3: where a game starts, what clicks are given, and what the refiner is asked for then.

What a click does is what it does in serving: ``pipeline.refine``.
"""

from __future__ import annotations

import numpy as np
import torch

from ultrarefiner_monai.config import RefineConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Prompts, RefinerOutput
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.pipeline.refine import refine
from ultrarefiner_monai.training.phases.losses import RefinerLoss, overlap
from ultrarefiner_monai.training.phases.simulate import draw_counts, rough_boxes, simulate

FAINT = (0.05, 0.5)  # a missed lesion's probability is this share of what it was

Played = tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]  # embedding, coarse_prob, valid_hw


def missed(coarse_prob: torch.Tensor, label: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """coarse_prob (B, 1, S, S) in which some items' lesions are overlooked, as the hardest images' are.

    Of a ``share`` of the items all is made faint; half of those get another item's mask as a false alarm, mirrored, where
    there is no lesion (label (B, 1, M, M) in [0, 1]). Such starts are rare among real predictions, and those that need
    clicks most.
    """
    out = coarse_prob.clone()
    truth = resize(label, *coarse_prob.shape[-2:]) >= 0.5
    for i in np.flatnonzero(rng.random(len(out)) < share):
        out[i] = coarse_prob[i] * float(rng.uniform(*FAINT))
        if len(out) > 1 and rng.random() < 0.5:
            other = coarse_prob[(i + int(rng.integers(1, len(out)))) % len(out)].flip(-1)
            out[i] = torch.where(truth[i], out[i], torch.maximum(out[i], other))
    return out


def loss_with_clicks(
    refiner: Refiner,
    frame: Played,
    target: torch.Tensor,
    loss: RefinerLoss,
    options: RefineConfig,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, RefinerOutput]:
    """Play a user on label target (B, 1, M, M): the mean ``loss`` of both passes, weighted, and the second one's output."""
    embedding, coarse_prob, valid = frame
    frame = embedding, missed(coarse_prob, target, options.missed_share, rng), valid
    prompts = users_prompts(refiner, frame, target >= 0.5, options, rng)
    output = refine(refiner, refiner.config, frame[0], frame[1], prompts, valid_hw=valid)
    assert output.first_logits is not None
    w = options.first_pass_weight
    both = loss(output.refined_logits, target) + w * loss(output.first_logits, target)
    return both / (1 + w), output


def users_prompts(
    refiner: Refiner, frame: Played, truth: torch.Tensor, options: RefineConfig, rng: np.random.Generator
) -> Prompts:
    """Clicks (1 to max_clicks) on what the refiner gets wrong, some items with a box, some of those with a box alone."""
    embedding, coarse_prob, valid = frame
    side = truth.shape[-1]
    scale = refiner.image_size / side
    counts = draw_counts(len(truth), options.max_clicks, rng)
    boxed = rng.random(len(truth)) < options.box_share
    counts = [0 if b and rng.random() < 0.5 else n for n, b in zip(counts, boxed, strict=True)]
    boxes = rough_boxes(truth, list(boxed), scale, rng) if boxed.any() else None

    def answer(prompts: Prompts) -> torch.Tensor:
        # One pass of the two: the results on the way only say where the next click goes.
        output = refine(refiner, refiner.config, embedding, coarse_prob, prompts, valid_hw=valid, passes=1)
        return torch.sigmoid(output.refined_logits)

    # In full precision also where the networks learn in a lower one: autocast would keep the weights that it casts here,
    # without a graph, for the passes that follow, and those would teach nothing.
    with torch.no_grad(), torch.autocast(embedding.device.type, enabled=False):
        # As it is served: nothing where the coarse network is nowhere sure enough.
        start = torch.sigmoid(refiner(embedding, coarse_prob, None, valid_hw=valid).refined_logits)
        sure = coarse_prob.flatten(1).amax(dim=1) >= refiner.config.post.min_peak
        start = start * sure[:, None, None, None]
        return simulate(answer, start, truth, counts, boxes, scale, options.click_mistakes, rng, options.click_rounds)


def dice_after(refiner: Refiner, frame: Played, start: torch.Tensor, label: torch.Tensor, count: int) -> torch.Tensor:
    """Dice (B,) after ``count`` clicks of a careful user on label (B, 1, M, M) bool; start: the result before them."""

    embedding, coarse_prob, valid = frame

    def answer(prompts: Prompts) -> torch.Tensor:
        output = refine(refiner, refiner.config, embedding, coarse_prob, prompts, valid_hw=valid)
        return torch.sigmoid(output.refined_logits)

    scale, rng = refiner.image_size / label.shape[-1], np.random.default_rng(0)
    prompts = simulate(answer, start, label, [count] * len(label), None, scale, 0.0, rng)
    return overlap((answer(prompts) >= 0.5).float(), label.float())
