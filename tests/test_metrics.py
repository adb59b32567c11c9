"""Figures whose answer can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ultrarefiner_monai.metrics import bootstrap_interval, boundary_f, score


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
