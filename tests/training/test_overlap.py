"""The overlaps of training, in torch for batches, are those of monai.metrics; they stay because they cost less and two empty
masks agree."""

from __future__ import annotations

import pytest
import torch
from monai.metrics import compute_dice, compute_iou

from ultrarefiner_monai.training.data.corruption_fields import dice
from ultrarefiner_monai.training.phases.losses import overlap
from ultrarefiner_monai.training.phases.selection import selection_figures


def test_overlaps_of_batches_are_monais() -> None:
    draw = torch.Generator().manual_seed(0)
    mask, label = (torch.rand(6, 1, 24, 32, generator=draw) > share for share in (0.4, 0.7))
    expected, iou = compute_dice(mask.float(), label.float())[:, 0], compute_iou(mask.float(), label.float())[:, 0]
    figures = selection_figures(mask, label, "x")
    for found in (overlap(mask.float(), label.float()), dice(mask[:, 0], label[:, 0]), figures["x_dice"]):
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    for found in (overlap(mask.float(), label.float(), "iou"), figures["x_iou"]):
        assert found.tolist() == pytest.approx(iou.tolist(), abs=1e-6)


def test_two_empty_masks_agree() -> None:
    empty = torch.zeros(1, 1, 4, 4)
    assert overlap(empty, empty).item() == dice(empty[:, 0].bool(), empty[:, 0].bool()).item() == 1
    assert compute_dice(empty, empty).isnan().all()
