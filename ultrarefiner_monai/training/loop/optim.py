"""Optimiser and learning-rate schedule from their configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ultrarefiner_monai.config import OptimiserConfig


def build_optimiser(config: OptimiserConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; every group brings its own learning rate."""
    # Fused: a quarter of the time on a CPU, a twelfth of a refiner's step.
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def build_schedule(
    config: OptimiserConfig, optimiser: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """Factor on each group's learning rate, per step: linear warm-up, then poly, cosine or constant."""
    warmup, total = config.warmup_epochs * steps_per_epoch, max(1, epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
        if config.schedule == "poly":
            return (1 - progress) ** config.poly_power
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    return LambdaLR(optimiser, factor)


@dataclass(frozen=True)
class Accumulation:
    """Which iterations step the optimiser when gradients of ``every`` batches are added up.

    An epoch of ``batches`` ends with a step, however many batches are left for it: nothing is carried into the next
    epoch, so a run that is resumed there has lost nothing.
    """

    batches: int
    every: int

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return math.ceil(self.batches / self.every)

    def at(self, iteration: int) -> tuple[bool, int]:
        """(whether iteration 1, 2, … of the run ends with a step, how many batches share that step)."""
        place = (iteration - 1) % self.batches + 1
        last = self.batches % self.every
        share = last if place > self.batches - last else self.every
        return place % self.every == 0 or place == self.batches, share
