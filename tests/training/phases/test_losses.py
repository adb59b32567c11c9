from __future__ import annotations

import pytest
import torch

from ultrarefiner_monai.training.phases.losses import CoarseLoss, teaching_loss


def logits_for(label: torch.Tensor, strength: float) -> torch.Tensor:
    signed = (2 * label - 1) * strength
    return torch.cat([-signed, signed], dim=1)


@pytest.fixture
def label() -> torch.Tensor:
    label = torch.zeros(2, 1, 8, 8)
    label[0, 0, 2:5, 2:6] = 1  # the second image has no lesion
    return label


def test_right_answers_cost_nothing_and_wrong_ones_much(label: torch.Tensor) -> None:
    loss = CoarseLoss()
    assert loss(logits_for(label, 20.0), label) < 1e-3
    assert loss(logits_for(label, -20.0), label) > 5


def test_gradient_is_finite_and_not_zero_with_and_without_lesion(label: torch.Tensor) -> None:
    coarse_logits = torch.zeros(2, 2, 8, 8, requires_grad=True)
    CoarseLoss()(coarse_logits, label).backward()
    assert coarse_logits.grad is not None and torch.isfinite(coarse_logits.grad).all()
    assert (coarse_logits.grad.abs().flatten(1).sum(1) > 0).all()


def test_presence_is_taught_and_can_be_left_out(label: torch.Tensor) -> None:
    coarse_logits = logits_for(label, 20.0)
    right, wrong = torch.tensor([9.0, -9.0]), torch.tensor([-9.0, 9.0])
    assert CoarseLoss()(coarse_logits, label, right) < CoarseLoss()(coarse_logits, label, wrong) - 0.5
    silent = CoarseLoss(presence_weight=0)
    assert silent(coarse_logits, label, wrong) == silent(coarse_logits, label)


def test_small_and_large_lesions_weigh_the_same() -> None:
    """Dice is taken per image: missing a 4-pixel lesion costs as much as missing a 400-pixel one."""
    small, large = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    small[..., :2, :2] = 1
    large[..., :20, :20] = 1
    dice_only = CoarseLoss(ce_weight=0, presence_weight=0, smooth=1e-5)
    nothing = logits_for(torch.zeros(1, 1, 32, 32), 30.0)
    assert dice_only(nothing, small).item() == pytest.approx(dice_only(nothing, large).item(), abs=1e-3)


def test_impossible_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="ce_weight"):
        CoarseLoss(ce_weight=1.5)


def test_smoothed_presence_wants_no_certainty(label: torch.Tensor) -> None:
    smoothed, coarse_logits = CoarseLoss(presence_smoothing=0.05), logits_for(label, 20.0)
    sure, fair = torch.tensor([20.0, -20.0]), torch.logit(torch.tensor([0.95, 0.05]))
    assert smoothed(coarse_logits, label, fair) < smoothed(coarse_logits, label, sure)


def test_images_without_a_lesion_weigh_what_they_are_told_to() -> None:
    label = torch.zeros(4, 1, 16, 16)
    label[:3, :, 4:9, 4:9] = 1
    torch.manual_seed(0)
    coarse_logits, presence = torch.randn(4, 2, 16, 16, requires_grad=True), torch.randn(4)
    values = {w: CoarseLoss(normal_weight=w)(coarse_logits, label, presence) for w in (0.0, 0.5, 1.0)}
    assert values[0.5].item() == pytest.approx((values[0.0] + values[1.0]).item() / 2, rel=1e-5)
    assert values[1.0].item() == pytest.approx(CoarseLoss()(coarse_logits, label, presence).item(), rel=1e-6)
    values[0.0].backward()
    assert coarse_logits.grad is not None and (coarse_logits.grad[3] == 0).all() and (coarse_logits.grad[:3] != 0).any()
    assert torch.isfinite(CoarseLoss(normal_weight=0.3)(coarse_logits, torch.zeros_like(label), presence))


def test_a_teacher_is_followed_where_it_is_unsure_too(label: torch.Tensor) -> None:
    prob, presence = 0.5 * label + 0.1, torch.tensor([0.7, 0.2])
    logits = torch.logit(torch.cat([1 - prob, prob], dim=1)) / 2  # softmax gives prob
    right = teaching_loss(logits, torch.logit(presence), prob, presence)
    for other in (logits + torch.tensor([0.0, 1.0])[:, None, None], logits - torch.tensor([0.0, 1.0])[:, None, None]):
        assert teaching_loss(other, torch.logit(presence), prob, presence) > right + 0.01
    assert teaching_loss(logits, -torch.logit(presence), prob, presence) > right
    silent = teaching_loss(logits, None, prob, presence)
    assert silent < right and teaching_loss(logits, torch.logit(presence), prob, None) == silent
