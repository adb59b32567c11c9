from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrarefiner_monai.config import PromptConfig
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.models.prompts.derive import NO_BOX, derive_prompts, signed_distance
from ultrarefiner_monai.models.sam.network import box_is_given, mask_is_given

DEFAULT = PromptConfig()
OPTIONS = [
    PromptConfig(sharpen=sharpen, box=box, negative=negative, mask=mask)  # type: ignore[arg-type]
    for sharpen, box, negative, mask in product(
        (False, True),
        ("moments", "minmax", "none"),
        ("centroid", "corner", "none"),
        ("direct", "gaussian", "distance", "none"),
    )
]


def ellipse(
    height: int = 96, width: int = 96, cx: float = 40, cy: float = 50, a: float = 14, b: float = 9, slope: float = 0
) -> torch.Tensor:
    """(1, 1, height, width): a binary ellipse, or with a slope a soft one."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    level = 1 - ((x - cx) / a) ** 2 - ((y - cy) / b) ** 2
    soft = torch.sigmoid(slope * level) if slope else (level >= 0).float()
    return soft[None, None]


def total(prompts: Prompts) -> torch.Tensor:
    parts = [p for p in (prompts.points_xy, prompts.boxes_xyxy, prompts.mask_logits) if p is not None]
    return torch.stack([(p * torch.linspace(0.5, 1.5, p.numel()).to(p).view_as(p)).sum() for p in parts]).sum()


def fields(prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    assert prompts.points_xy is not None and prompts.point_labels is not None
    assert prompts.boxes_xyxy is not None and prompts.mask_logits is not None
    return prompts.points_xy, prompts.point_labels, prompts.boxes_xyxy, prompts.mask_logits


# --- values -----------------------------------------------------------------------------------------------------------


def test_ellipse_gives_centre_and_exact_box_with_factor_two() -> None:
    points, labels, boxes, _ = fields(derive_prompts(ellipse(), replace(DEFAULT, box_factor=2.0), 24))
    assert labels.tolist() == [[1, 0]]
    assert torch.allclose(points[0, 0], torch.tensor([40.0, 50.0]), atol=1e-3)
    assert torch.allclose(boxes[0], torch.tensor([26.0, 41.0, 54.0, 59.0]), atol=0.5)


@pytest.mark.parametrize("background", [1e-2, 0.1, 0.29])
def test_faint_background_moves_neither_point_nor_box(background: float) -> None:
    clean = ellipse(a=5, b=4)
    plain, _, box, _ = fields(derive_prompts(clean, DEFAULT, 24))
    noisy, _, same, _ = fields(derive_prompts(clean.clamp_min(background), DEFAULT, 24))
    assert torch.allclose(noisy[0, 0], plain[0, 0], atol=1e-3) and torch.allclose(same, box, atol=1e-3)


def test_minmax_is_the_thresholds_bounding_box_without_gradient() -> None:
    prob = ellipse(slope=6).requires_grad_()
    boxes = derive_prompts(prob, replace(DEFAULT, box="minmax", point=False, negative="none", mask="none")).boxes_xyxy
    assert boxes is not None and not boxes.requires_grad
    ys, xs = (prob[0, 0] > 0.5).nonzero(as_tuple=True)
    assert boxes[0].tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]


def test_one_pixel_lesion_has_a_point_on_it_and_a_box_around_it() -> None:
    prob = torch.zeros(1, 1, 64, 64)
    prob[0, 0, 20, 30] = 1
    prob.requires_grad_()
    prompts = derive_prompts(prob, DEFAULT, 64)
    points, labels, boxes, _ = fields(prompts)
    assert points[0, 0].tolist() == [30, 20] and labels[0, 0] == 1
    x0, y0, x1, y1 = boxes[0].tolist()
    assert 29 <= x0 < 30 < x1 <= 31 and 19 <= y0 < 20 < y1 <= 21
    total(prompts).backward()
    assert prob.grad is not None and torch.isfinite(prob.grad).all() and prob.grad.abs().max() < 1e4


def _crescent() -> torch.Tensor:
    return ellipse(cx=48, cy=48, a=40, b=40) * (1 - ellipse(cx=62, cy=48, a=36, b=36))


@pytest.mark.parametrize(
    "prob", [_crescent(), ellipse(a=30, b=30) * (1 - ellipse(a=15, b=15))], ids=["crescent", "ring"]
)
def test_positive_point_of_a_hollow_lesion_is_moved_inside_by_a_constant(prob: torch.Tensor) -> None:
    prob = prob.requires_grad_()
    points, _, _, _ = fields(derive_prompts(prob, DEFAULT, 24))
    x, y = points[0, 0].detach().round().long().tolist()
    assert prob[0, 0, y, x] == 1
    weights = prob.detach() > 0.5
    (gradient,) = torch.autograd.grad(points[0, 0, 0], prob)
    # The offset carries no gradient: it is the plain centroid's, (x - mean) / (mass of relu(p - floor)).
    xs = torch.arange(96.0).expand(96, 96)
    mean = xs[weights[0, 0]].mean()
    expected = torch.where(weights[0, 0], (xs - mean) / (weights.sum() * 0.7), 0.0)
    assert torch.allclose(gradient[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("negative", ["centroid", "corner"])
@pytest.mark.parametrize("prob", [ellipse(), ellipse(slope=5), _crescent(), ellipse(cx=3, cy=4)])
def test_negative_point_lies_in_background_near_the_lesion(prob: torch.Tensor, negative: str) -> None:
    config = replace(DEFAULT, negative=negative)  # type: ignore[arg-type]
    points, labels, boxes, _ = fields(derive_prompts(prob, config, 24))
    assert labels[0, 1] == 0
    x, y = points[0, 1].round().long().tolist()
    assert prob[0, 0, y, x] < 0.5
    x0, y0, x1, y1 = boxes[0].tolist()
    assert x0 - 1 <= x <= x1 + 1 and y0 - 1 <= y <= y1 + 1


def test_negative_centroid_is_the_weighted_centroid_of_the_background_in_the_soft_box() -> None:
    prob = _crescent()
    points, _, boxes, _ = fields(derive_prompts(prob, DEFAULT, 24))
    x0, y0, x1, y1 = boxes[0]
    index = torch.arange(96.0)
    ex, ey = (0.02 * (x1 - x0)).clamp_min(1), (0.02 * (y1 - y0)).clamp_min(1)
    wx = torch.sigmoid((index - x0) / ex) * torch.sigmoid((x1 - index) / ex)
    wy = torch.sigmoid((index - y0) / ey) * torch.sigmoid((y1 - index) / ey)
    weight = (1 - prob[0, 0]) * wy[:, None] * wx[None]
    expected = torch.stack([(weight * index[None]).sum(), (weight * index[:, None]).sum()]) / weight.sum()
    assert torch.allclose(points[0, 1], expected, atol=1e-3)


def test_lesion_that_fills_the_image_has_no_negative_point() -> None:
    points, labels, boxes, _ = fields(derive_prompts(torch.ones(1, 1, 32, 32), DEFAULT, 8))
    assert labels.tolist() == [[1, -1]] and points[0, 1].tolist() == [0, 0]
    assert boxes[0].tolist() == [0, 0, 31, 31]


@pytest.mark.parametrize("config", [DEFAULT, replace(DEFAULT, negative="corner"), replace(DEFAULT, box="minmax")])
def test_padding_counts_neither_as_background_nor_as_lesion(config: PromptConfig) -> None:
    """A lesion at the lower edge of the image: what fills the padding below must not matter, and attracts no point."""
    prob = ellipse(cy=60, cx=70, b=12)
    results = []
    for filling in (0.0, 1.0):
        filled = prob.clone()
        filled[:, :, 64:], filled[:, :, :, 80:] = filling, filling
        results.append(derive_prompts(filled, replace(config, mask="none"), 24, (64, 80)))
    for name in ("points_xy", "point_labels", "boxes_xyxy"):
        assert torch.allclose(getattr(results[0], name), getattr(results[1], name), atol=1e-4), name
    points, boxes = results[0].points_xy, results[0].boxes_xyxy
    assert points is not None and boxes is not None
    assert points[0, 1, 0] <= 79 and points[0, 1, 1] <= 63 and boxes[0, 3] <= 63


def test_valid_hw_may_differ_within_a_batch() -> None:
    prob = torch.cat([ellipse(), ellipse(cy=60)])
    both = derive_prompts(prob, DEFAULT, 24, torch.tensor([[96, 80], [64, 96]]))
    for i, valid in enumerate([(96, 80), (64, 96)]):
        one = derive_prompts(prob[i : i + 1], DEFAULT, 24, valid)
        for together, alone in zip(fields(both), fields(one)):
            assert torch.allclose(together[i : i + 1].float(), alone.float(), atol=1e-4)
    with pytest.raises(ValueError, match="valid_hw"):
        derive_prompts(prob, DEFAULT, 24, (97, 96))


# --- mask prompt ------------------------------------------------------------------------------------------------------


def test_mask_prompts_agree_in_sign_and_have_the_asked_side() -> None:
    prob = ellipse(128, 128, a=40, b=30, cx=60, cy=64)
    inside = torch.nn.functional.avg_pool2d(prob, 4)
    for kind in ("direct", "gaussian", "distance"):
        mask = derive_prompts(prob, replace(DEFAULT, mask=kind), 32).mask_logits  # type: ignore[arg-type]
        assert mask is not None and mask.shape == (1, 1, 32, 32)
        assert (mask[inside == 1] > 0).float().mean() > 0.9 and (mask[inside == 0] < 0).float().mean() > 0.95
    direct = derive_prompts(prob, DEFAULT, 128).mask_logits
    assert torch.equal(direct, (2 * prob - 1) * 10)


def test_gaussian_is_the_two_dimensional_gaussian() -> None:
    prob = torch.zeros(1, 1, 64, 64)
    prob[0, 0, 30:34, 30:34] = 1
    config = replace(DEFAULT, mask="gaussian", gaussian_sigma=8.0)
    mask = derive_prompts(prob, config, 64).mask_logits  # 8 px at 256 are 2 px at 64
    t = torch.arange(-6.0, 7.0)
    kernel = torch.exp(-0.5 * (t[:, None] ** 2 + t[None] ** 2) / 4)
    blurred = torch.nn.functional.conv2d(prob, (kernel / kernel.sum())[None, None], padding=6)
    assert mask is not None and torch.allclose(mask, (2 * blurred - 1) * 10, atol=1e-4)


def test_signed_distance_by_hand() -> None:
    prob = torch.zeros(1, 1, 5, 7)
    prob[0, 0, :, 3:] = 1
    assert signed_distance(prob)[0, 0, 2].tolist() == pytest.approx([-2.5, -1.5, -0.5, 0.5, 1.5, 1.5, 0.5])
    assert (signed_distance(torch.zeros(1, 1, 5, 5)) == -5).all()


# --- empty ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_empty_item_gives_no_prompt_and_exactly_zero_gradient(config: PromptConfig) -> None:
    """... while the other item of the batch keeps its own, unchanged."""
    empty = torch.full((1, 1, 96, 96), 1e-3)
    prob = torch.cat([ellipse(slope=4), empty, torch.zeros(1, 1, 96, 96)]).requires_grad_()
    prompts = derive_prompts(prob, config, 24)
    points, labels = prompts.points_xy, prompts.point_labels
    assert points is not None and labels is not None
    assert (labels[1:] == -1).all() and (points[1:] == 0).all() and labels[0, 0] == 1
    if prompts.boxes_xyxy is not None:
        assert box_is_given(prompts.boxes_xyxy).tolist() == [True, False, False]
        assert prompts.boxes_xyxy[1].tolist() == list(NO_BOX)
    if prompts.mask_logits is not None:
        assert mask_is_given(prompts.mask_logits).tolist() == [True, False, False]
    total(prompts).backward()
    assert prob.grad is not None and torch.isfinite(prob.grad).all()
    assert prob.grad[1:].abs().max() == 0 and prob.grad[0].abs().max() > 0
    alone = derive_prompts(prob[:1].detach(), config, 24)
    for name in ("points_xy", "boxes_xyxy", "mask_logits"):
        if (value := getattr(prompts, name)) is not None:
            assert torch.allclose(value[:1], getattr(alone, name), atol=1e-4)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpen", [False, True])
@pytest.mark.parametrize("negative", ["centroid", "corner"])
@pytest.mark.parametrize("mask", ["direct", "gaussian"])
def test_gradients_equal_finite_differences(sharpen: bool, negative: str, mask: str) -> None:
    config = replace(DEFAULT, sharpen=sharpen, negative=negative, mask=mask)  # type: ignore[arg-type]
    # An L: its centroid lies in it, that of its background does not, so that neither is moved by a detached offset.
    prob = torch.zeros(1, 1, 96, 96).double()
    prob[:, :, 10:70, 10:70] = 0.8
    prob[:, :, 10:40, 40:70] = 0
    prob = prob + 0.1 * ellipse(a=60, b=60)
    prob = torch.nn.functional.avg_pool2d(prob, 9, stride=3, padding=4).requires_grad_()  # smooth, off the floor's kink
    direction = torch.rand(prob.shape, generator=torch.Generator().manual_seed(0)).double() - 0.5
    direction *= (prob.detach() - config.box_floor).abs() > 0.01

    def f(step: float) -> torch.Tensor:
        return total(derive_prompts(prob + step * direction, config, 16, (30, 32)))

    (gradient,) = torch.autograd.grad(f(0.0), prob)
    numeric = (f(1e-4) - f(-1e-4)).item() / 2e-4
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_distance_passes_the_direct_prompts_gradient() -> None:
    gradients = []
    for mask in ("direct", "distance"):
        prob = ellipse(slope=4).requires_grad_()
        config = replace(DEFAULT, mask=mask, point=False, negative="none", box="none")  # type: ignore[arg-type]
        total(derive_prompts(prob, config, 24)).backward()
        gradients.append(prob.grad)
    assert torch.equal(gradients[0], gradients[1])


@settings(max_examples=40, deadline=None)
@given(
    cx=st.floats(-5, 70), cy=st.floats(-5, 50), a=st.floats(0.3, 40), b=st.floats(0.3, 40), slope=st.floats(0.5, 30),
    peak=st.floats(0, 1), option=st.sampled_from(OPTIONS),
)  # fmt: skip
def test_any_blob_on_a_non_square_valid_part_gives_finite_prompts_inside_it(
    cx: float, cy: float, a: float, b: float, slope: float, peak: float, option: PromptConfig
) -> None:
    prob = (peak * ellipse(64, 64, cx, cy, a, b, slope)).requires_grad_()
    prompts = derive_prompts(prob, option, 16, (48, 64))
    points, labels = prompts.points_xy, prompts.point_labels
    assert points is not None and labels is not None and torch.isfinite(points).all()
    assert (points >= -0.01).all() and (points[..., 0] <= 63.01).all() and (points[..., 1] <= 47.01).all()
    if prompts.boxes_xyxy is not None and labels[0, 0] == 1:
        x0, y0, x1, y1 = prompts.boxes_xyxy[0].tolist()
        assert 0 <= x0 <= x1 <= 63 and 0 <= y0 <= y1 <= 47
    total(prompts).backward()
    assert prob.grad is not None and torch.isfinite(prob.grad).all() and prob.grad.abs().max() < 1e5


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\), got \(2, 64, 64\)"):
        derive_prompts(torch.zeros(2, 64, 64), DEFAULT)
