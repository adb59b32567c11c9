"""Figures whose answer can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from scipy import ndimage

from ultrarefiner_monai.masks.metrics import bootstrap_interval, boundary_f, outline_distances, paired_bootstrap, score
from ultrarefiner_monai.masks.overlap import dice_of, mask_iou


def square(x0: int, x1: int, size: int = 20, width: int = 30) -> np.ndarray:
    mask = np.zeros((size, width), np.uint8)
    mask[5:15, x0:x1] = 1
    return mask


def test_equal_masks_are_perfect() -> None:
    s = score(square(5, 15), square(5, 15))
    assert (s.dice, s.iou, s.precision, s.recall, s.hd95_px, s.boundary_f) == (1, 1, 1, 1, 0, 1)


def test_half_overlap_by_hand() -> None:
    s = score(square(5, 15), square(10, 20))
    assert s.dice == pytest.approx(0.5)
    assert s.iou == pytest.approx(1 / 3)
    assert s.precision == s.recall == pytest.approx(0.5)
    assert s.hd95_px == pytest.approx(5)
    assert s.marked == pytest.approx(100 / 600)


def test_dice_is_symmetric_and_precision_is_not() -> None:
    a, b = square(5, 15), square(5, 10)
    assert score(a, b).dice == score(b, a).dice
    assert score(a, b).precision == score(b, a).recall == 0.5


def test_empty_masks_follow_the_stated_convention() -> None:
    empty, full = square(0, 0), square(5, 15)
    assert score(empty, empty).dice == 1 and score(empty, empty).hd95_px == 0
    for pair in ((empty, full), (full, empty)):
        assert score(*pair).dice == 0
        assert score(*pair).hd95_px == pytest.approx(np.hypot(20, 30))


def test_one_pixel_lesion() -> None:
    a, b = np.zeros((9, 7), np.uint8), np.zeros((9, 7), np.uint8)
    a[4, 3], b[4, 5] = 1, 1
    s = score(a, b)
    assert (s.dice, s.hd95_px) == (0, 2)
    assert boundary_f(a.astype(bool), b.astype(bool), 2.0) == 1
    assert boundary_f(a.astype(bool), b.astype(bool), 1.0) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        score(np.zeros((3, 4)), np.zeros((4, 3)))


def test_bootstrap_interval_holds_the_mean_and_is_reproducible() -> None:
    values = np.random.default_rng(1).random(80)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_interval(np.array([]))


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal((height, width)), 6)
    return (field > np.quantile(field, 0.8)).astype(np.uint8)


@pytest.mark.parametrize("case", range(8))
def test_hd95_is_monais_in_pixels_of_the_image(case: int) -> None:
    """Against another implementation: shapes of several parts that reach the border, on images that are not square."""
    rng = np.random.default_rng(case)
    pred, label = blob(rng, 70 + case, 110), blob(rng, 70 + case, 110)
    pair = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (pred, label)]
    expected = float(compute_hausdorff_distance(*pair, include_background=True, percentile=95))
    assert expected > 5
    assert score(pred, label).hd95_px == pytest.approx(expected, abs=1e-4)
    doubled = [np.kron(m, np.ones((2, 2), np.uint8)) for m in (pred, label)]
    assert score(*doubled).hd95_px == pytest.approx(2 * expected, rel=0.1)


@pytest.mark.parametrize("case", range(4))
def test_overlap_and_outlines_are_monais(case: int) -> None:
    rng = np.random.default_rng(100 + case)
    pred, label = blob(rng, 70 + case, 110), blob(rng, 70 + case, 110)
    pair = [torch.from_numpy(m[None, None].astype(np.float32)) for m in (pred, label)]
    found = score(pred, label)
    assert found.dice == dice_of(pred, label) == pytest.approx(float(compute_dice(*pair)), abs=1e-6)
    assert found.iou == mask_iou(pred, label) == pytest.approx(float(compute_iou(*pair)), abs=1e-6)
    there, back = outline_distances(pred.astype(bool), label.astype(bool))
    surface = float(compute_surface_dice(*pair, class_thresholds=[2.0], include_background=True))
    assert np.mean(np.concatenate([there, back]) <= 2.0) == pytest.approx(surface, abs=1e-6)
    # Between the shares of the two outlines, as surface Dice is.
    assert (
        min((there <= 2).mean(), (back <= 2).mean()) <= found.boundary_f <= max((there <= 2).mean(), (back <= 2).mean())
    )


def test_dice_of_is_the_dice_of_score() -> None:
    assert dice_of(square(5, 15), square(10, 20)) == score(square(5, 15), square(10, 20)).dice
    assert dice_of(square(0, 0), square(0, 0)) == 1 and dice_of(square(0, 0), square(5, 15)) == 0


def test_paired_bootstrap_sees_a_small_steady_gain_that_the_spread_of_images_hides() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(60)
    steady = paired_bootstrap(before, before + 0.02 + rng.normal(0, 0.02, 60))
    assert 0 < steady.low < steady.difference < steady.high and steady.p < 0.01
    assert steady.difference == pytest.approx(steady.after - steady.before)
    shuffled = paired_bootstrap(before, rng.permutation(before) + 0.02)  # the same means, no pairs
    assert shuffled.low < 0 < shuffled.high and shuffled.p > 0.05
    turned = paired_bootstrap(before + 0.02, before)
    assert turned.difference == pytest.approx(-0.02) and (turned.higher, turned.lower) == (0, 60)


def test_paired_bootstrap_without_a_difference() -> None:
    same = paired_bootstrap(np.arange(5.0), np.arange(5.0))
    assert (same.difference, same.low, same.high, same.p, same.higher, same.lower) == (0, 0, 0, 1, 0, 0)
    with pytest.raises(ValueError, match="one length"):
        paired_bootstrap(np.zeros(3), np.zeros(4))


def test_p_is_about_as_often_below_5_percent_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = [paired_bootstrap(np.zeros(50), rng.normal(0, 1, 50), samples=400).p < 0.05 for _ in range(300)]
    assert 0.02 < np.mean(hits) < 0.1
