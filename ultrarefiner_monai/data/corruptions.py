"""The random transform that makes simulated coarse masks of labels, for phase 2 (system.md section 5).

Draws which kind, how strong and where; the kinds themselves are pure functions in ``corruption_kinds`` and
``corruption_sdf``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ultrarefiner_monai.config import CorruptionConfig


@dataclass(frozen=True)
class CorruptedBatch:
    """corrupted_prob: (B, 1, H, W) in [0, 1]. dice: (B,) of corrupted_prob > .5 against the label; two empty masks: 1.

    kind: B names. asked: (B, 2) lowest and highest Dice that was asked for, NaN where none was.
    """

    corrupted_prob: torch.Tensor
    dice: torch.Tensor
    kind: list[str]
    asked: torch.Tensor


class Corruptor:
    """masks -> CorruptedBatch, from its own generator."""

    def __init__(self, config: CorruptionConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def set_seed(self, seed: int) -> None:
        """What is drawn from here on depends on ``seed`` alone."""
        self.generator.manual_seed(seed)

    def __call__(self, masks: torch.Tensor, difficulty: float | None = None) -> CorruptedBatch:
        """masks: (B, 1, H, W), 0 or 1. difficulty: 0 (easy) to 1 (the full mix), None: 1."""
        dice = torch.ones(masks.shape[0], device=masks.device)
        return CorruptedBatch(
            masks.float(), dice, ["identity"] * masks.shape[0], torch.full((masks.shape[0], 2), torch.nan)
        )
