from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from ultrarefiner_monai.config import GateConfig, PromptConfig, RefinerConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import Prompts
from ultrarefiner_monai.models.refiner import DISC, Gate, Refiner, canonical, draw_discs, select_softly
from ultrarefiner_monai.models.roi import Roi, find_roi
from ultrarefiner_monai.models.sam.network import build_sam

SIDE = 64
TINY = SamConfig(
    arch="compact", image_size=SIDE, embed_dim=32, depth=1, num_heads=2, window_size=3, global_attn_indexes=(0,)
)
CONFIG = SystemConfig(sam=TINY)
ROI = replace(CONFIG, refiner=RefinerConfig(roi=True))


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    torch.manual_seed(0)
    return Refiner(build_sam(TINY), CONFIG).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def roi_refiner(refiner: Refiner) -> Refiner:
    return Refiner(refiner.sam, ROI).requires_grad_(False).eval()


@pytest.fixture()
def image() -> torch.Tensor:
    return torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.fixture()
def coarse() -> torch.Tensor:
    """Two soft L-shapes (their centroid and that of their background lie where they should)."""
    prob = torch.zeros(2, 1, SIDE, SIDE)
    prob[0, 0, 10:40, 12:40] = 0.9
    prob[0, 0, 10:24, 28:40] = 0
    prob[1, 0, 30:56, 20:52] = 0.8
    prob[1, 0, 30:42, 38:52] = 0
    return torch.nn.functional.avg_pool2d(prob, 5, stride=1, padding=2)


def user(points: list[tuple[float, float]], labels: list[int], box: list[float] | None = None) -> Prompts:
    return Prompts(torch.tensor([points]), torch.tensor([labels]), None if box is None else torch.tensor([box]))


def test_prompts_are_exact_in_mixed_precision(refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor) -> None:
    """Which has eight bits for a place: no pixel beyond 256 that is not beside another one."""
    embedding = refiner.embed(image)
    exact = refiner(embedding, coarse).prompts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = refiner(embedding.bfloat16(), coarse.bfloat16().float()).prompts
    rounded = refiner(embedding, coarse.bfloat16().float()).prompts
    for name in ("points_xy", "boxes_xyxy", "mask_logits"):
        assert torch.equal(getattr(mixed, name), getattr(rounded, name)), name
        assert (getattr(mixed, name) - getattr(exact, name)).abs().max() < 0.1, name


# --- the plain frame --------------------------------------------------------------------------------------------------


def test_shapes_ranges_and_the_one_mask(refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor) -> None:
    output = refiner(refiner.embed(image), coarse)
    assert output.mask_logits.shape == (2, 3, 16, 16) and output.iou_pred.shape == (2, 3)
    assert output.refined_logits.shape == (2, 1, 16, 16) and output.refined_prob.shape == (2, 1, SIDE, SIDE)
    assert 0 <= output.refined_prob.min() and output.refined_prob.max() <= 1
    weights = torch.softmax(output.iou_pred / 0.1, dim=1)
    mixed = sum(weights[:, i, None, None] * output.mask_logits[:, i] for i in range(3))
    assert torch.allclose(output.refined_logits[:, 0], mixed, atol=1e-5)


def test_selection_by_hand() -> None:
    logits = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert select_softly(logits, torch.zeros(1, 3), 0.1).item() == pytest.approx(7 / 3)
    assert select_softly(logits, torch.tensor([[0.0, 0.0, 5.0]]), 0.1).item() == pytest.approx(4)


def test_users_points_and_box_replace_the_derived_ones_and_the_mask_stays(
    refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor
) -> None:
    embedding = refiner.embed(image[:1])
    derived = refiner(embedding, coarse[:1]).prompts
    points_only = refiner(embedding, coarse[:1], user([(20.0, 30.0)], [1])).prompts
    assert points_only.points_xy is not None and points_only.points_xy.tolist() == [[[20, 30]]]
    assert points_only.boxes_xyxy is None
    assert derived.boxes_xyxy is not None and derived.mask_logits is not None
    assert torch.equal(points_only.mask_logits, derived.mask_logits)
    box_only = refiner(embedding, coarse[:1], Prompts(boxes_xyxy=torch.tensor([[5.0, 5.0, 50.0, 50.0]]))).prompts
    assert box_only.points_xy is None and torch.equal(box_only.mask_logits, derived.mask_logits)


def test_no_clicks_at_all_is_the_automatic_result(refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor) -> None:
    embedding = refiner.embed(image[:1])
    padding = Prompts(torch.zeros(1, 2, 2), torch.full((1, 2), -1))
    assert torch.equal(
        refiner(embedding, coarse[:1], padding).refined_prob, refiner(embedding, coarse[:1]).refined_prob
    )


@pytest.mark.parametrize("which", ["plain", "roi"])
def test_order_and_doubles_of_clicks_change_no_bit(
    refiner: Refiner, roi_refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor, which: str
) -> None:
    model = refiner if which == "plain" else roi_refiner
    embedding = refiner.embed(image[:1])
    clicks = [((20.0, 30.0), 1), ((20.0, 12.5), 1), ((50.0, 50.0), 0), ((3.0, 60.0), 0)]
    results = []
    for order in [*permutations(clicks), [*clicks, clicks[0]]]:
        prompts = user([p for p, _ in order], [label for _, label in order], [5.0, 5.0, 50.0, 50.0])
        with torch.no_grad():
            results.append(model.interactive(embedding, coarse[:1], prompts, image[:1]).refined_prob)
    assert all(torch.equal(results[0], other) for other in results[1:])
    other = user([p for p, _ in clicks], [1 - label for _, label in clicks], [5.0, 5.0, 50.0, 50.0])
    assert not torch.equal(results[0], model.interactive(embedding, coarse[:1], other, image[:1]).refined_prob)


def test_canonical_pads_items_with_fewer_points_and_keeps_gradients() -> None:
    points = torch.tensor([[[5.0, 1.0], [2.0, 3.0], [2.0, 3.0]], [[9.0, 9.0], [7.0, 7.0], [0.0, 0.0]]]).requires_grad_()
    sorted_ = canonical(Prompts(points, torch.tensor([[0, 1, 1], [-1, 1, -1]])))
    assert sorted_.points_xy is not None and sorted_.point_labels is not None
    assert sorted_.points_xy.tolist() == [[[2, 3], [5, 1]], [[7, 7], [0, 0]]]
    assert sorted_.point_labels.tolist() == [[1, 0], [1, -1]]
    sorted_.points_xy.sum().backward()
    assert points.grad is not None and points.grad[:, :, 0].tolist() == [[1, 1, 0], [0, 1, 0]]


def test_interactive_is_two_passes_with_the_firsts_logits_as_mask(
    refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor
) -> None:
    embedding = refiner.embed(image[:1])
    prompts = user([(20.0, 30.0), (50.0, 10.0)], [1, 0])
    first = refiner(embedding, coarse[:1], prompts)
    second = refiner(embedding, coarse[:1], replace(prompts, mask_logits=first.refined_logits))
    assert torch.equal(refiner.interactive(embedding, coarse[:1], prompts).refined_prob, second.refined_prob)
    assert not torch.equal(first.refined_prob, second.refined_prob)


def test_an_item_of_a_batch_is_what_it_is_alone_even_beside_an_empty_one(
    refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor
) -> None:
    embedding = refiner.embed(image)
    with_empty = torch.cat([coarse[:1], torch.zeros(1, 1, SIDE, SIDE)]).requires_grad_()
    both = refiner(embedding, with_empty)
    alone = refiner(embedding[:1], coarse[:1])
    assert torch.allclose(both.refined_logits[:1], alone.refined_logits, atol=1e-4)
    both.refined_prob.sum().backward()
    assert with_empty.grad is not None and torch.isfinite(with_empty.grad).all()
    assert with_empty.grad[1].abs().max() == 0 and with_empty.grad[0].abs().max() > 0


# --- gradients --------------------------------------------------------------------------------------------------------

PATHS = {
    "point": PromptConfig(box="none", negative="none", mask="none"),
    "box": PromptConfig(point=False, negative="none", mask="none"),
    "negative": PromptConfig(point=False, box="none", mask="none"),
    "mask": PromptConfig(point=False, box="none", negative="none"),
    "all": PromptConfig(),
}


@pytest.mark.parametrize("path", PATHS)
def test_gradient_from_refined_prob_to_coarse_prob_equals_finite_differences(
    refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor, path: str
) -> None:
    model = Refiner(refiner.sam, replace(CONFIG, prompts=PATHS[path])).eval()
    embedding = refiner.embed(image).detach()
    target = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    coarse = coarse.requires_grad_()

    def loss(prob: torch.Tensor) -> torch.Tensor:
        return (model(embedding, prob).refined_prob.double() * target).sum()

    (gradient,) = torch.autograd.grad(loss(coarse), coarse)
    assert torch.isfinite(gradient).all() and (gradient.flatten(1).abs().amax(1) > 0).all()
    # Along the gradient, so that the difference stands out of float32's noise.
    direction = gradient * ((coarse.detach() - 0.3).abs() > 0.02)
    direction = direction / direction.abs().max()
    step = 5e-4
    with torch.no_grad():
        numeric = (loss(coarse + step * direction) - loss(coarse - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=0.03)


@pytest.mark.parametrize("mode", ["forward", "interactive"])
def test_gradient_reaches_decoder_image_and_clicks(refiner: Refiner, coarse: torch.Tensor, mode: str) -> None:
    model = Refiner(build_sam(TINY), CONFIG)
    image = torch.rand(1, 1, SIDE, SIDE, requires_grad=True)
    points = torch.tensor([[[20.0, 30.0]]], requires_grad=True)
    prompts = Prompts(points, torch.tensor([[1]]))
    getattr(model, mode)(model.embed(image), coarse[:1], prompts).refined_prob.sum().backward()
    reached = [image.grad, points.grad, model.sam.mask_decoder.iou_token.weight.grad]
    reached.append(model.sam.image_encoder.patch_embed.proj.weight.grad)
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in reached)


# --- region of interest -----------------------------------------------------------------------------------------------


def test_outside_the_roi_is_the_coarse_prediction(refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor) -> None:
    config = replace(CONFIG, refiner=RefinerConfig(roi=True, roi_expand=1.0))
    coarse = coarse.clamp_min(0.07)
    output = Refiner(refiner.sam, config)(None, coarse, image=image)
    roi = find_roi(coarse, None, config, None)
    inside = roi._inside(SIDE)[:, None]
    assert 0.1 < inside.float().mean() < 0.8
    assert torch.equal(output.refined_prob[~inside], coarse[~inside])
    assert (output.refined_prob[inside] != coarse[inside]).float().mean() > 0.99
    low = roi._inside(16)[:, None]
    assert torch.allclose(torch.sigmoid(output.refined_logits[~low]).amin(), torch.tensor(0.07), atol=1e-3)


def test_crop_and_paste_are_inverse_and_keep_places() -> None:
    """A ramp is cut out and pasted back: the same ramp, in the same place, also off the pixel grid."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ramp = (x + 2 * y)[None, None].repeat(2, 1, 1, 1) / 40 - 2
    roi = Roi(torch.tensor([[8.0, 20.0], [10.3, 4.7]]), torch.tensor([32.0, 40.5]), 64)
    crop = roi.crop(ramp)
    assert crop[0, 0, 10, 10].item() == pytest.approx((8 + 4.75 + 2 * (20 + 4.75)) / 40 - 2, abs=1e-5)
    pasted = roi.paste_logits(crop, torch.full((2, 1, 64, 64), 0.5))
    inside = roi._inside(64)[:, None]
    eroded = -torch.nn.functional.max_pool2d(-inside.float(), 5, stride=1, padding=2) > 0
    assert torch.allclose(pasted[eroded], ramp[eroded], atol=1e-4)
    assert (pasted[~inside] == 0).all()
    prob = roi.paste_prob(crop, torch.full((2, 1, 64, 64), 0.3))
    assert torch.allclose(prob[eroded], torch.sigmoid(ramp[eroded]), atol=1e-4) and (prob[~inside] == 0.3).all()


def test_prompts_enter_the_roi_where_the_crop_shows_them_and_leave_again() -> None:
    roi = Roi(torch.tensor([[8.0, 20.0]]), torch.tensor([32.0]), 64)
    spot = torch.zeros(1, 1, 64, 64)
    spot[0, 0, 25, 19] = 1
    prompts = Prompts(
        torch.tensor([[[19.0, 25.0], [0.0, 0.0]]]), torch.tensor([[1, -1]]), torch.tensor([[8.0, 20.0, 39.0, 51.0]])
    )
    entered = roi.enter(prompts)
    weight = roi.crop(spot)[0, 0]
    index = torch.arange(64.0)
    centre = [(weight * index[None]).sum() / weight.sum(), (weight * index[:, None]).sum() / weight.sum()]
    assert entered.points_xy is not None and entered.boxes_xyxy is not None
    assert torch.allclose(entered.points_xy[0, 0], torch.stack(centre), atol=1e-4)
    assert entered.points_xy[0, 1].tolist() == [0, 0]
    assert entered.boxes_xyxy[0].tolist() == [0.5, 0.5, 62.5, 62.5]
    back = roi.leave(entered)
    assert torch.allclose(back.points_xy, prompts.points_xy) and torch.allclose(back.boxes_xyxy, prompts.boxes_xyxy)


def test_roi_holds_lesion_and_every_click_and_stays_in_the_frame(coarse: torch.Tensor) -> None:
    far = Prompts(torch.tensor([[[60.0, 2.0]], [[2.0, 61.0]]]), torch.tensor([[1], [0]]))
    roi = find_roi(coarse, far, ROI, None)
    high = roi.origin_xy + roi.side[:, None]
    assert (roi.origin_xy >= 0).all() and (high <= SIDE + 1e-3).all()
    assert far.points_xy is not None
    points = far.points_xy[:, 0] + 0.5
    assert (points > roi.origin_xy).all() and (points < high).all()
    for i in range(2):
        ys, xs = (coarse[i, 0] > 0.5).nonzero(as_tuple=True)
        assert xs.min() >= roi.origin_xy[i, 0] and xs.max() + 1 <= high[i, 0]
        assert ys.min() >= roi.origin_xy[i, 1] and ys.max() + 1 <= high[i, 1]


def test_empty_coarse_mask_takes_the_whole_frame(roi_refiner: Refiner, refiner: Refiner, image: torch.Tensor) -> None:
    empty = torch.zeros(2, 1, SIDE, SIDE)
    roi = find_roi(empty, None, ROI, None)
    assert roi.origin_xy.abs().max() == 0 and (roi.side == SIDE).all()
    whole = refiner(refiner.embed(image), empty).refined_prob
    assert torch.allclose(roi_refiner(None, empty, image=image).refined_prob, whole, atol=1e-4)


def test_roi_keeps_gradients_to_coarse_and_maps_valid_part(
    roi_refiner: Refiner, image: torch.Tensor, coarse: torch.Tensor
) -> None:
    coarse = coarse.requires_grad_()
    output = roi_refiner(None, coarse, image=image, valid_hw=(56, 64))
    output.refined_prob.sum().backward()
    assert coarse.grad is not None and torch.isfinite(coarse.grad).all() and coarse.grad.abs().max() > 0
    roi = Roi(torch.tensor([[0.0, 32.0]]), torch.tensor([32.0]), 64)
    assert roi.valid_inside((48, 64)).tolist() == [[32, 64]]  # type: ignore[union-attr]


def test_what_is_needed_is_said(roi_refiner: Refiner, refiner: Refiner, coarse: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="image .* is needed"):
        roi_refiner(None, coarse)
    with pytest.raises(ValueError, match="embed"):
        refiner(None, coarse)
    with pytest.raises(ValueError, match=r"\(B, 1, 64, 64\), got \(2, 1, 32, 32\)"):
        refiner(torch.zeros(2, 256, 4, 4), coarse[..., :32, :32])


# --- gate -------------------------------------------------------------------------------------------------------------


def test_confidence_gate_by_hand() -> None:
    coarse_prob = torch.tensor([0.5, 1.0, 0.0, 0.75]).view(1, 1, 1, 4)
    refined_prob = torch.tensor([1.0, 0.0, 1.0, 0.25]).view(1, 1, 1, 4)
    final = Gate(GateConfig(mode="confidence"))(coarse_prob, refined_prob)
    # g = .8 (1 - |2 c - 1|): .8, 0, 0, .4
    assert torch.allclose(final.flatten(), torch.tensor([0.9, 1.0, 0.0, 0.55]), atol=1e-5)


def test_gate_off_returns_the_refined_probability(refiner: Refiner, coarse: torch.Tensor) -> None:
    refined = torch.rand_like(coarse)
    assert torch.equal(refiner.final_prob(coarse, refined), refined)


@pytest.mark.parametrize("mode", ["confidence", "learned", "product"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gate_stays_between_its_inputs_and_has_finite_gradients(mode: str, gamma: float) -> None:
    torch.manual_seed(1)
    gate = Gate(GateConfig(mode=mode, g_min=0.1, g_max=0.8, gamma=gamma))  # type: ignore[arg-type]
    coarse_prob = torch.rand(1, 1, 64, 64)
    coarse_prob[..., :4] = torch.tensor([0.0, 0.5, 1.0, 0.5])
    coarse_prob.requires_grad_()
    refined_prob = torch.rand(1, 1, 64, 64, requires_grad=True)
    final = gate(coarse_prob, refined_prob)
    low, high = torch.minimum(coarse_prob, refined_prob), torch.maximum(coarse_prob, refined_prob)
    assert (final >= low - 1e-6).all() and (final <= high + 1e-6).all()
    moved = (final - coarse_prob) / (refined_prob - coarse_prob)
    far = (refined_prob - coarse_prob).abs() > 0.1
    assert moved[far].min() >= 0.1 - 1e-4 and moved[far].max() <= 0.8 + 1e-4
    final.square().sum().backward()
    for gradient in (coarse_prob.grad, refined_prob.grad, *(p.grad for p in gate.parameters())):
        assert gradient is not None and torch.isfinite(gradient).all()
    if mode != "confidence":
        assert gate.net is not None and gate.net[-1].weight.grad.abs().max() > 0


def test_clicks_are_drawn_into_the_mask_prompt_as_a_set() -> None:
    points = torch.tensor([[[20.0, 40.0], [50.0, 12.0]], [[5.0, 5.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [-1, -1]])
    prompts = Prompts(points, labels, mask_logits=torch.zeros(2, 1, 16, 16))
    drawn = draw_discs(prompts, 0.1, 64)
    assert drawn[0, 0, 9, 4] == DISC and drawn[0, 0, 2, 12] == -DISC
    assert 0 < (drawn[0] != 0).sum() < 40 and not drawn[1].any()
    swapped = Prompts(points.flip(1), labels.flip(1), mask_logits=prompts.mask_logits)
    assert torch.equal(draw_discs(swapped, 0.1, 64), drawn)
