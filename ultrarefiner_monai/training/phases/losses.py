"""Losses, on MONAI's. Each phase composes these; none has a variant of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import nn


class CoarseLoss(nn.Module):
    """Phase 1: w CE + (1 - w) Dice on two-class logits, plus a share for the presence logit where the network has one.

    The Dice is taken per image, so that a small lesion weighs as much as a large one. ``smooth`` (in pixels) keeps its
    gradient bounded on images without a lesion, which the cross-entropy then teaches. ``normal_weight``: what such an
    image counts for beside one with a lesion; the presence logit learns from both alike.
    """

    def __init__(
        self,
        ce_weight: float = 0.5,
        presence_weight: float = 0.1,
        presence_smoothing: float = 0.0,
        normal_weight: float = 1.0,
        smooth: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= ce_weight <= 1:
            raise ValueError(f"ce_weight must be in [0, 1], got {ce_weight}")
        self.presence_weight, self.presence_smoothing = presence_weight, presence_smoothing
        self.normal_weight = normal_weight
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
        present = label.flatten(1).amax(dim=1) > 0.5
        if self.normal_weight == 1:
            loss = self.dice_ce(coarse_logits, label)
        else:
            loss = coarse_logits.new_zeros(())
            for rows, weight in ((present, 1.0), (~present, self.normal_weight)):
                if rows.any():
                    loss = loss + weight * rows.float().mean() * self.dice_ce(coarse_logits[rows], label[rows])
        if presence_logits is not None and self.presence_weight:
            target = self.presence_smoothing + (1 - 2 * self.presence_smoothing) * present.to(presence_logits.dtype)
            loss = loss + self.presence_weight * F.binary_cross_entropy_with_logits(presence_logits, target)
        return loss


def teaching_loss(
    coarse_logits: torch.Tensor, presence_logits: torch.Tensor | None, prob: torch.Tensor, presence: torch.Tensor | None
) -> torch.Tensor:
    """What a network pays for differing from its teachers: cross-entropy and Dice with their mean as the label.

    coarse_logits (B, 2, S, S), presence_logits (B,) or None: the network's. prob (B, 1, S, S), presence (B,) or None, in
    [0, 1]: the teachers'. Soft labels say where an image can be read in two ways (Hinton et al. 2015).
    """
    logits = coarse_logits[:, 1:] - coarse_logits[:, :1]
    loss = F.binary_cross_entropy_with_logits(logits, prob) + soft_dice_loss(torch.sigmoid(logits), prob).mean()
    if presence_logits is not None and presence is not None:
        loss = loss + 0.1 * F.binary_cross_entropy_with_logits(presence_logits, presence)
    return 0.5 * loss


class RefinerLoss(nn.Module):
    """Phase 2: BCE + Dice + focal_weight Focal, on one mask's logits against a label that may have soft edges.

    Dice is taken per image; ``smooth`` keeps its gradient bounded on images without a lesion.
    """

    def __init__(self, focal_weight: float = 0.5, gamma: float = 2.0, smooth: float = 1.0) -> None:
        super().__init__()
        self.focal_weight, self.gamma, self.smooth = focal_weight, gamma, smooth

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """logits: (B, 1, H, W). label: the same shape, in [0, 1]. -> scalar."""
        bce = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
        prob = torch.sigmoid(logits)
        loss = bce.mean() + soft_dice_loss(prob, label, self.smooth).mean()
        if self.focal_weight:
            # (1 - p_t)^gamma CE (Lin et al. 2017), p_t the probability of what is true.
            wrong = (prob - label).abs()
            loss = loss + self.focal_weight * (wrong**self.gamma * bce).mean()
        return loss


def soft_dice_loss(prob: torch.Tensor, label: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """(B, 1, H, W) in [0, 1] each -> (B,): 1 - Dice with squared denominators (Milletari et al. 2016), soft edges exact."""
    prob, label = prob.flatten(1), label.flatten(1)
    overlap = 2 * (prob * label).sum(dim=1) + smooth
    return 1 - overlap / (prob.square().sum(dim=1) + label.square().sum(dim=1) + smooth)


def change_penalty(
    kind: str, refined_prob: torch.Tensor, coarse_prob: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    """What a refiner pays for changing what was good; all (B, 1, H, W) in [0, 1] -> scalar.

    ``agreement``: mean(|refined - coarse_mask| [coarse_mask = label]). ``quality``: per image mean((refined -
    coarse_prob)^2) clamp((Dice(coarse_mask, label) - .6) / .4, 0, 1).
    """
    coarse_mask, truth = (coarse_prob >= 0.5).to(refined_prob.dtype), (label >= 0.5).to(refined_prob.dtype)
    if kind == "agreement":
        return ((refined_prob - coarse_mask).abs() * (coarse_mask == truth)).mean()
    if kind == "quality":
        change = (refined_prob - coarse_prob).square().flatten(1).mean(dim=1)
        return (change * ((overlap(coarse_mask, truth) - 0.6) / 0.4).clamp(0, 1)).mean()
    if kind == "none":
        return refined_prob.new_zeros(())
    raise ValueError(f"penalty must be quality, agreement or none, got {kind!r}")


def overlap(mask: torch.Tensor, label: torch.Tensor, what: str = "dice") -> torch.Tensor:
    """Dice (or ``iou``) of masks against labels, both (B, 1, H, W) of 0 and 1: (B,). Two empty masks agree: 1."""
    mask, label = mask.flatten(1), label.flatten(1)
    both, total = (mask * label).sum(dim=1), mask.sum(dim=1) + label.sum(dim=1)
    if what == "iou":
        return torch.where(total > 0, both / (total - both).clamp(min=1e-6), 1.0)
    return torch.where(total > 0, 2 * both / total.clamp(min=1e-6), 1.0)


def iou_loss(mask_logits: torch.Tensor, iou_pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """MSE of iou_pred (B, 3) against the real IoU of each of the three masks, logits (B, 3, H, W), with label (B, 1, H, W)."""
    masks, truth = (mask_logits.detach() > 0).to(iou_pred.dtype), (label >= 0.5).to(iou_pred.dtype)
    real = torch.stack([overlap(masks[:, k : k + 1], truth, "iou") for k in range(masks.shape[1])], dim=1)
    return F.mse_loss(iou_pred, real)
