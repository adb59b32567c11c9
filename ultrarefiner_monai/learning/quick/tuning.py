"""The champion's mask decoder, tuned for some seconds on corrections and on what is replayed.

All of the decoder learns, in small batches: for a given time more steps do better than larger ones, and the first dozen
alone can spoil what a click does.

Each run begins with the champion's weights and is held near them (L2-SP, Li et al., ICML 2018): many quick runs cannot
drift away, and few corrections cannot spoil much. The games of clicks and the losses are those of phase 2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ultrarefiner_monai.config import GateConfig, LearningConfig, RefineConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.quick.overlay import Tensors, overlaid, refiner_of, with_tensors
from ultrarefiner_monai.learning.quick.samples import Sample, batch_of
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.models.refiner import Gate, Refiner
from ultrarefiner_monai.training.phases.losses import RefinerLoss
from ultrarefiner_monai.training.phases.refiner import play

__all__ = ["Recipe", "RECIPE", "draw", "learner", "tune", "with_tensors"]

# Of the refiner's parameters: names that begin so are tuned.
PARTS = {
    "decoder": "sam.mask_decoder.",
    "upscaling": "sam.mask_decoder.output_upscaling.",
    "masks": "sam.mask_decoder.output_hypernetworks_mlps.",
    "mask_branch": "sam.prompt_encoder.mask_downscaling.",
}


@dataclass(frozen=True)
class Recipe:
    """How a quick run learns; the values were found by experiment (docs/research/benchmarks.md).

    lr: AdamW's. anchor: pull towards the champion, (w - w_0) times this per step and unit of lr. steps: so many per sample,
    between least and most. newest: how often the newest samples are drawn as against the others; fresh: how many they are.
    """

    parts: tuple[str, ...] = ("decoder",)
    lr: float = 2e-4
    anchor: float = 10.0
    batch: int = 2
    steps_per_sample: float = 1.0
    least_steps: int = 24
    most_steps: int = 48
    newest: float = 3.0
    fresh: int = 2
    clip: float = 1.0
    game: RefineConfig = RefineConfig(
        click_share=0.6, click_rounds=2, click_mistakes=0.0, missed_share=0.25, max_clicks=6
    )

    def steps(self, samples: int) -> int:
        return int(min(self.most_steps, max(self.least_steps, math.ceil(self.steps_per_sample * samples))))


RECIPE = Recipe()


def tune(
    champion: System,
    samples: Sequence[Sample],
    replay: Sequence[Sample],
    options: LearningConfig,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    recipe: Recipe = RECIPE,
    at_least: int = 0,
) -> Tensors:
    """The tuned tensors by their names in a checkpoint (``sam.*``), float32 on the CPU; the champion is left as it is.

    samples: corrections, oldest first. replay: of them ``options.replay_share`` of a batch is drawn; may be empty. seconds:
    ends there, by the clock, but for the first ``at_least`` steps; steps: how many at most (None: by the recipe). With equal arguments and no limit by the clock
    the result is the same. Raises InputError without a sample, for a model that cannot be tuned, and where numbers run away.
    """
    if not samples:
        raise InputError("there is no correction to learn from yet")
    refiner, names = learner(champion, recipe.parts)
    values = dict(refiner.named_parameters())
    tuned = [values[name] for name in names]
    start = [p.detach().clone() for p in tuned]
    device = tuned[0].device
    optimiser = torch.optim.AdamW(tuned, lr=recipe.lr, weight_decay=0.0)
    criterion = RefinerLoss(recipe.game.focal_weight)
    rng = np.random.default_rng(seed)
    planned, begun = steps or recipe.steps(len(samples)), time.monotonic()
    for step in range(planned):
        spent = 0.0 if seconds is None else (time.monotonic() - begun) / max(seconds, 1e-9)
        if spent >= 1 and step >= at_least:
            break
        rate = recipe.lr * _schedule(min(1.0, max(step / planned, spent)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = draw(samples, replay, options.replay_share, recipe, rng)
        embedding, coarse_prob, batch = batch_of(chosen, refiner.image_size, device)
        loss = play(refiner, embedding, coarse_prob, batch, recipe.game, criterion, rng)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tuned, recipe.clip)
        if not torch.isfinite(norm):
            raise InputError("the numbers ran away while the decoder was tuned: nothing was kept")
        optimiser.step()
        if recipe.anchor:
            # Apart from Adam's step, which would rescale it away, as AdamW does with weight decay.
            with torch.no_grad():
                for value, first in zip(tuned, start, strict=True):
                    value.lerp_(first, min(1.0, rate * recipe.anchor))
    return {name: values[name].detach().cpu().clone() for name in names}


def learner(champion: System, parts: Sequence[str]) -> tuple[Refiner, list[str]]:
    """A copy of the champion's refiner whose named parts learn, all others shared with it; and their parameters' names."""
    own = overlaid(refiner_of(champion), {})
    gate = own.config.gate
    if gate.mode == "confidence" and gate.g_min == gate.g_max:
        # A constant gate mixes a share of the refined mask in. Learnt through it, the refined mask would overshoot to make up
        # for the rest, and what clicks give, which no gate tempers, would be worse.
        own.config = replace(own.config, gate=GateConfig(mode="off"))
        own.gate = Gate(own.config.gate)
    prefixes = tuple(PARTS[part] for part in parts)
    names = [name for name, _ in own.named_parameters() if name.startswith(prefixes)]
    for name in names:
        own.get_parameter(name).requires_grad_(True)
    return own.eval(), names


def draw(
    samples: Sequence[Sample], replay: Sequence[Sample], share: float, recipe: Recipe, rng: np.random.Generator
) -> list[Sample]:
    """One batch: each item of ``replay`` with probability ``share``, else of ``samples``, the newest more often."""
    weights = np.ones(len(samples))
    weights[-recipe.fresh :] = recipe.newest
    weights /= weights.sum()
    out: list[Sample] = []
    for _ in range(recipe.batch):
        if len(replay) and rng.random() < share:
            out.append(replay[int(rng.integers(len(replay)))])
        else:
            out.append(samples[int(rng.choice(len(samples), p=weights))])
    return out


def _schedule(progress: float) -> float:
    """Warm-up over the first tenth, then a cosine to a twentieth."""
    if progress < 0.1:
        return 0.1 + 9.0 * progress
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
