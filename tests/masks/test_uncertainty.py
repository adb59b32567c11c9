from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ultrarefiner_monai.masks.uncertainty import (
    binary_entropy,
    expected_iou,
    flip_uncertainty,
    outline_band,
    uncertainty,
)

ROWS, COLUMNS = np.mgrid[:60, :80]
SIGNED = 18 - np.hypot(ROWS - 30, COLUMNS - 40)


def soft(width: float) -> np.ndarray:
    return (1 / (1 + np.exp(-SIGNED / width))).astype(np.float32)


def test_entropy_by_hand() -> None:
    assert binary_entropy(np.array([0.0, 0.25, 0.5, 1.0])) == pytest.approx([0, 0.8112781, 1, 0], abs=1e-7)


def test_a_softer_outline_is_less_sure() -> None:
    figures = [uncertainty(p, (p > 0.5).astype(np.uint8)) for p in (soft(0.05), soft(0.5), soft(2), soft(8))]
    assert figures == sorted(figures) and figures[0] < 0.1 and figures[-1] > 0.9


def test_only_the_band_counts() -> None:
    prob = soft(1)
    mask = (prob > 0.5).astype(np.uint8)
    far = ~outline_band(mask)
    changed = prob.copy()
    changed[far] = 0.5
    assert uncertainty(changed, mask) == uncertainty(prob, mask)


def test_empty_mask_tells_how_likely_the_likeliest_pixel_was() -> None:
    mask = np.zeros((9, 9), np.uint8)
    prob = np.zeros((9, 9), np.float32)
    assert uncertainty(prob, mask) < 1e-9
    prob[4, 4] = 0.25
    assert uncertainty(prob, mask) == pytest.approx(0.8112781)
    prob[4, 4] = 0.9  # believed in, then dropped
    assert uncertainty(prob, mask) == 1


def test_mask_of_the_whole_image_has_a_figure() -> None:
    assert uncertainty(np.full((9, 9), 0.25, np.float32), np.ones((9, 9), np.uint8)) == pytest.approx(0.8112781)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, (12, 13), elements=st.floats(0, 1, width=32)),
    arrays(np.uint8, (12, 13), elements=st.integers(0, 1)),
)
def test_figures_stay_in_range(prob: np.ndarray, mask: np.ndarray) -> None:
    assert 0 <= uncertainty(prob, mask) <= 1
    assert 0 <= flip_uncertainty(prob / 2, mask) <= 1
    iou = expected_iou(prob, mask)
    assert iou is None if not mask.any() else 0 <= iou <= 1 + 1e-9


def test_flip_uncertainty_is_relative_to_the_largest_variance() -> None:
    mask = (SIGNED > 0).astype(np.uint8)
    assert flip_uncertainty(np.zeros(mask.shape), mask) == 0
    assert flip_uncertainty(np.full(mask.shape, 0.5), mask) == 1
    assert flip_uncertainty(np.full(mask.shape, 0.25), mask) == pytest.approx(0.25)


def test_expected_iou_by_hand() -> None:
    prob = np.array([[0.9, 0.7, 0.3, 0.1]])
    assert expected_iou(prob, np.array([[1, 1, 0, 0]])) == pytest.approx(1.6 / 2.4)
    assert expected_iou(np.array([[1.0, 0.0]]), np.array([[1, 0]])) == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        uncertainty(np.zeros((3, 3)), np.zeros((3, 4)))
