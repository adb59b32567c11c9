"""The figures of masks that epochs are judged by."""

from __future__ import annotations

import torch

from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT


def selection_figures(mask: torch.Tensor, label: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Figures of (B, 1, S, S) masks against labels, both bool.

    ``select`` is the Dice of an image with a lesion, and 1 or 0 for one without: whether it stayed (nearly) unmarked. A
    checkpoint chosen by it neither misses lesions nor invents them. Dice, IoU, precision, recall and accuracy are of the
    images with a lesion.
    """
    mask, label = mask.flatten(1).float(), label.flatten(1).float()
    lesion = label.sum(dim=1) > 0
    overlap, marked, wanted = (mask * label).sum(dim=1), mask.sum(dim=1), label.sum(dim=1)
    dice = 2 * overlap / (marked + wanted).clamp(min=1)
    clean = (mask.mean(dim=1) <= NORMAL_LIMIT).float()
    return {
        "select": torch.where(lesion, dice, clean),
        f"{name}_dice": dice[lesion],
        f"{name}_iou": (overlap / (marked + wanted - overlap).clamp(min=1))[lesion],
        f"{name}_precision": (overlap / marked.clamp(min=1))[lesion],
        f"{name}_recall": (overlap / wanted.clamp(min=1))[lesion],
        f"{name}_accuracy": (mask == label).float().mean(dim=1)[lesion],
        "normal_marked": 1 - clean[~lesion],
    }
