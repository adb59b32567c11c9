"""Long axis, short axis and area against shapes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrarefiner_monai.masks.measure import measure


def ellipse(shape, centre_xy, semi_axes, angle, spacing=(1.0, 1.0)):
    """An ellipse of semi-axes in mm, turned by ``angle``, on a grid of pixels of (row, column) spacing."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    x, y = (columns - centre_xy[0]) * spacing[1], (rows - centre_xy[1]) * spacing[0]
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    return ((u / semi_axes[0]) ** 2 + (v / semi_axes[1]) ** 2 <= 1).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    semi=st.tuples(st.floats(20, 60), st.floats(0.3, 0.9)),
    angle=st.floats(0, np.pi),
    spacing=st.tuples(st.floats(0.5, 1.5), st.floats(0.5, 1.5)),
)
def test_ellipse_has_the_axes_it_was_drawn_with(semi, angle, spacing):
    a, b = semi[0], semi[0] * semi[1]
    mask = ellipse((300, 320), (160.3, 149.6), (a, b), angle, spacing)
    result = measure(mask, spacing)
    pixel = max(spacing)
    assert result.long_axis == pytest.approx(2 * a, abs=1.5 * pixel)
    assert result.short_axis == pytest.approx(2 * b, abs=2.5 * pixel)
    # Pixels along the outline are in or out as a whole.
    outline = 2 * np.pi * np.hypot(a, b) / np.sqrt(2)
    assert result.area == pytest.approx(np.pi * a * b, abs=0.02 * np.pi * a * b + 0.05 * pixel * outline)
    assert (result.unit, result.components) == ("mm", 1)
    long_axis, short_axis = np.diff(result.long_axis_xy, axis=0)[0], np.diff(result.short_axis_xy, axis=0)[0]
    mm = np.array([spacing[1], spacing[0]])
    assert abs((long_axis * mm) @ (short_axis * mm)) < 1e-6 * a * b
    assert np.linalg.norm(long_axis * mm) == pytest.approx(result.long_axis)


def test_one_pixel_measures_one_pixel():
    mask = np.zeros((9, 12), np.uint8)
    mask[4, 7] = 1
    result = measure(mask)
    assert (result.long_axis, result.short_axis, result.area, result.unit) == (1.0, 1.0, 1.0, "px")
    assert measure(mask, (0.5, 0.2)).area == pytest.approx(0.1)


@pytest.mark.parametrize("length", [2, 5, 40])
@pytest.mark.parametrize("upright", [False, True])
def test_a_bar_of_n_pixels_is_n_long(length, upright):
    mask = np.zeros((60, 64), np.uint8)
    mask[10, 5 : 5 + length] = 1
    result = measure(mask.T if upright else mask)
    assert result.long_axis == pytest.approx(length)
    assert result.short_axis == pytest.approx(1.0)


def test_empty_mask_measures_nothing():
    result = measure(np.zeros((5, 8), np.uint8), (0.1, 0.1))
    assert (result.long_axis, result.short_axis, result.area, result.components) == (0.0, 0.0, 0.0, 0)
    assert result.to_dict()["long_axis_xy"] is None


def test_the_largest_of_several_components_is_measured():
    mask = np.zeros((50, 50), np.uint8)
    mask[2:4, 2:4] = 1
    mask[20:40, 10:40] = 1
    result = measure(mask)
    assert (result.area, result.components) == (600.0, 2)


def test_a_moved_mask_measures_the_same():
    mask = ellipse((120, 150), (60, 50), (30, 12), 0.4)
    moved = np.roll(mask, (7, 40), (0, 1))
    a, b = measure(mask), measure(moved)
    assert (a.long_axis, a.short_axis, a.area) == pytest.approx((b.long_axis, b.short_axis, b.area))
    assert b.long_axis_xy[0] == pytest.approx((a.long_axis_xy[0][0] + 40, a.long_axis_xy[0][1] + 7))
