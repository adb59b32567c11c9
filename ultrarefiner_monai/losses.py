"""Losses, on MONAI's. Each phase composes these; none has a variant of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import nn


class CoarseLoss(nn.Module):
    """Phase 1: w CE + (1 - w) Dice on two-class logits, plus a share for the presence logit where the network has one.

    The Dice is taken per image, so that a small lesion weighs as much as a large one. ``smooth`` (in pixels) keeps its
    gradient bounded on images without a lesion, which the cross-entropy then teaches.
    """

    def __init__(
        self, ce_weight: float = 0.5, presence_weight: float = 0.1, presence_smoothing: float = 0.0, smooth: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 <= ce_weight <= 1:
            raise ValueError(f"ce_weight must be in [0, 1], got {ce_weight}")
        self.presence_weight, self.presence_smoothing = presence_weight, presence_smoothing
        self.dice_ce = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            lambda_ce=ce_weight,
            lambda_dice=1 - ce_weight,
            smooth_nr=smooth,
            smooth_dr=smooth,
        )

    def forward(
        self, coarse_logits: torch.Tensor, label: torch.Tensor, presence_logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """coarse_logits: (B, 2, S, S). label: (B, 1, S, S) of 0 and 1. presence_logits: (B,) or None. -> scalar."""
        loss = self.dice_ce(coarse_logits, label)
        if presence_logits is not None and self.presence_weight:
            present = (label.flatten(1).amax(dim=1) > 0.5).to(presence_logits.dtype)
            target = self.presence_smoothing + (1 - 2 * self.presence_smoothing) * present
            loss = loss + self.presence_weight * F.binary_cross_entropy_with_logits(presence_logits, target)
        return loss
