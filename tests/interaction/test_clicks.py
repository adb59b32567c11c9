from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.interaction.clicks import box_window, check_clicks, click_pixels, core_clicks, honour_clicks

H, W = 150, 200
ROWS, COLUMNS = np.mgrid[:H, :W]


def ellipse(row: float, column: float, a: float, b: float) -> np.ndarray:
    """Signed: 1 in the middle, 0 on the outline."""
    return 1 - np.hypot((ROWS - row) / a, (COLUMNS - column) / b)


# One lesion; a fainter second one that a threshold of .5 misses.
PROB = 1 / (1 + np.exp(-12 * ellipse(75, 100, 30, 45)))
PROB = np.maximum(PROB, 0.35 * np.exp(-(((ROWS - 122) / 10) ** 2) - ((COLUMNS - 30) / 14) ** 2)).astype(np.float32)
MASK = (PROB > 0.5).astype(np.uint8)


def count(mask: np.ndarray) -> int:
    return ndimage.label(mask, np.ones((3, 3)))[1]


def honour(mask: np.ndarray, prob: np.ndarray, clicks: Clicks) -> np.ndarray:
    return honour_clicks(mask, prob, check_clicks(clicks, (mask.shape[0], mask.shape[1])))


def honoured(mask: np.ndarray, clicks: Clicks) -> bool:
    positive, negative, _ = check_clicks(clicks, (mask.shape[0], mask.shape[1]))
    return all(mask[p] for p in positive) and not any(mask[n] for n in negative)


xy = st.tuples(st.integers(0, W - 1), st.integers(0, H - 1))
boxes = st.tuples(xy, xy).map(
    lambda c: (min(c[0][0], c[1][0]), min(c[0][1], c[1][1]), max(c[0][0], c[1][0]), max(c[0][1], c[1][1]))
)
bases = st.sampled_from([MASK, np.zeros_like(MASK), np.ones_like(MASK), np.roll(MASK, 60, axis=1)])
probs = st.sampled_from([PROB, np.zeros_like(PROB), np.ones_like(PROB)])


@settings(max_examples=150, deadline=None)
@given(bases, probs, st.lists(xy, max_size=6), st.lists(xy, max_size=6), st.none() | boxes)
def test_every_click_is_honoured_in_any_order(mask, prob, foreground, background, box) -> None:
    background = [p for p in background if p not in foreground]
    clicks = Clicks(tuple(foreground), tuple(background), box)
    out = honour(mask, prob, clicks)
    assert out.dtype == np.uint8 and set(np.unique(out)) <= {0, 1}
    assert honoured(out, clicks)
    turned = Clicks(tuple(reversed(foreground)), tuple(reversed(background)), box)
    assert np.array_equal(out, honour(mask, prob, turned))
    if box is not None and not foreground:
        outside = np.ones_like(out, dtype=bool)
        outside[box_window(box, (H, W), margin=0.05)] = False
        assert not out[outside].any()


@given(st.lists(xy, min_size=1, max_size=4))
def test_clicks_that_are_already_right_change_nothing(points) -> None:
    clicks = Clicks(tuple(p for p in points if MASK[p[1], p[0]]), tuple(p for p in points if not MASK[p[1], p[0]]))
    assert np.array_equal(honour(MASK, PROB, clicks), MASK)


def test_input_is_left_alone() -> None:
    mask, prob = MASK.copy(), PROB.copy()
    honour(mask, prob, Clicks(((5, 5), (150, 75)), ((100, 75),), (20, 20, 160, 140)))
    assert np.array_equal(mask, MASK) and np.array_equal(prob, PROB)


def test_near_click_pulls_the_outline_locally() -> None:
    out = honour(MASK, PROB, Clicks(((149, 75),)))
    added = (out == 1) & (MASK == 0)
    assert count(out) == 1 and not (out < MASK).any()
    assert 9 < added.sum() < 0.1 * MASK.sum()
    assert np.hypot(ROWS - 75, COLUMNS - 149)[added].max() < 15


def test_far_click_adds_the_region_that_the_map_shows() -> None:
    out = honour(MASK, PROB, Clicks(((32, 121),)))
    added = (out == 1) & (MASK == 0)
    expected = (PROB > 0.5 * PROB[121, 32]) & (ROWS > 105) & (COLUMNS < 50)  # without the big lesion's rim
    assert count(out) == 2
    assert (added & expected).sum() / (added | expected).sum() > 0.9


def test_far_click_without_evidence_adds_a_disc() -> None:
    out = honour(MASK, PROB, Clicks(((180, 12),)))
    added = (out == 1) & (MASK == 0)
    assert count(out) == 2 and 9 <= added.sum() < 0.01 * H * W
    assert [round(float(c.mean())) for c in np.nonzero(added)] == [12, 180]


def test_deep_negative_click_removes_what_no_positive_click_holds() -> None:
    two = MASK | (ellipse(122, 30, 12, 16) > 0)
    out = honour(two, PROB, Clicks((), ((30, 122),)))
    assert np.array_equal(out, MASK)
    kept = honour(two, PROB, Clicks(((24, 122),), ((36, 122),)))
    assert kept[122, 24] and count(kept) == 2
    # Of what is nearer to the positive click nothing is taken.
    nearer = (two == 1) & (COLUMNS < 30)
    assert kept[nearer].all()


def test_shallow_negative_click_bites_locally() -> None:
    out = honour(MASK, PROB, Clicks((), ((139, 75),)))
    removed = (MASK == 1) & (out == 0)
    assert count(out) == 1 and not (out > MASK).any()
    assert 4 < removed.sum() < 0.2 * MASK.sum()
    assert np.hypot(ROWS - 75, COLUMNS - 139)[removed].max() < 25


def test_negative_click_half_way_to_the_core_does_not_remove_the_lesion() -> None:
    out = honour(MASK, PROB, Clicks((), ((100, 58),)))  # 13 of 30 pixels deep
    assert not out[58, 100] and out[75, 100] and count(out) == 1


def test_negative_click_in_a_weak_half_leaves_the_sure_one() -> None:
    prob = np.where(COLUMNS < 100, 0.95, 0.6).astype(np.float32)
    out = honour(MASK, prob, Clicks((), ((128, 75),)))  # deep, but the network was not sure there
    assert out[75, 70] and not out[75, 128]
    assert not honour(MASK, prob, Clicks((), ((90, 75),))).any()


@pytest.mark.parametrize(
    "clicks", [Clicks(((500, 195),)), Clicks(((650, 210),)), Clicks((), ((700, 375),)), Clicks((), ((500, 245),))]
)
def test_what_a_click_moves_joins_the_outline_without_horns_and_notches(clicks: Clicks) -> None:
    mask = ndimage.zoom(MASK, 5, order=1)
    out = honour(mask, np.full(mask.shape, 0.9, np.float32), clicks).astype(bool)
    disc = np.hypot(*np.mgrid[-7:8, -7:8]) <= 7
    changed = ndimage.binary_dilation(out != (mask > 0), iterations=6)
    horns = out & ~ndimage.binary_opening(out, disc) & changed
    notches = ~out & ndimage.binary_closing(out, disc) & changed
    assert changed.any() and max(horns.sum(), notches.sum()) <= 14  # 24 to 51 pixels where discs just meet the outline


def test_negative_click_on_an_appendage_removes_it_whole() -> None:
    leak = MASK.copy()
    leak[72:78, 140:180] = 1
    leak[66:84, 172:190] = 1
    out = honour(leak, np.where(leak, 0.99, 0.01).astype(np.float32), Clicks((), ((181, 75),)))
    assert not out[:, 172:].any()
    assert (out & MASK).sum() > 0.97 * MASK.sum()


def test_box_cuts_and_falls_back_to_the_likeliest_region_or_an_ellipse() -> None:
    half = honour(MASK, PROB, Clicks(box_xyxy=(100, 0, 199, 149)))
    assert half[75, 130] and not half[:, :94].any()
    faint = honour(MASK, PROB, Clicks(box_xyxy=(10, 105, 52, 140)))
    assert faint[122, 30] and count(faint) == 1
    nothing = honour(MASK, np.zeros_like(PROB), Clicks(box_xyxy=(10, 105, 52, 140)))
    assert nothing.sum() == pytest.approx(math.pi / 4 * 43 * 36, rel=0.03)


def test_box_of_one_pixel_gives_that_pixel() -> None:
    out = honour(np.zeros_like(MASK), np.zeros_like(PROB), Clicks(box_xyxy=(7, 9, 7, 9)))
    assert out.sum() == 1 and out[9, 7]


def test_pixels_are_rounded_and_clamped_by_at_most_one() -> None:
    assert click_pixels([(1.5, 0.49), (-0.9, 10), (10.0, 9.2)], (10, 11)) == [(0, 2), (9, 0), (9, 10)]


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        (Clicks(((W + 5, 3),)), "outside the image"),
        (Clicks((), ((3, -2),)), "outside the image"),
        (Clicks(((math.nan, 3),)), "finite"),
        (Clicks(((5, 5),), ((5.2, 4.9),)), "same pixel"),
        (Clicks(box_xyxy=(10, 10, 5, 20)), "x0 <= x1"),
        (Clicks(box_xyxy=(0, 0, math.inf, 20)), "finite"),
        (Clicks(box_xyxy=(W, 0, W + 10, 20)), "outside the image"),
    ],
)
def test_unusable_clicks_are_refused(clicks: Clicks, message: str) -> None:
    with pytest.raises(InputError, match=message):
        honour(MASK, PROB, clicks)


def test_positive_click_beside_a_denied_component_is_another_lesion() -> None:
    """A false alarm denied in its core stays away when the lesion next to it is clicked; without the denial it is pulled."""
    mask = (ellipse(60, 50, 25, 18) > 0).astype(np.uint8)
    prob = 0.9 * mask.astype(np.float32)
    beside = ((50.0, 32.0),)  # just above its outline
    denied = honour(mask, prob, Clicks(foreground_xy=beside, background_xy=((50, 60),)))
    assert denied[32, 50] and not denied[60, 50] and count(denied) == 1 and denied.sum() < 0.2 * mask.sum()
    pulled = honour(mask, prob, Clicks(foreground_xy=beside))
    assert pulled[32, 50] and pulled[60, 50] and count(pulled) == 1


def test_core_clicks_lie_in_the_middle_of_each_component() -> None:
    two = (ellipse(40, 40, 15, 15) > 0) | (ellipse(110, 150, 10, 10) > 0)
    assert core_clicks(two).foreground_xy == ((40.0, 40.0), (150.0, 110.0))
    assert not core_clicks(np.zeros((H, W), np.uint8))
    speck = np.zeros((H, W), np.uint8)
    speck[H - 1, 0] = 1
    assert core_clicks(speck).foreground_xy == ((0.0, float(H - 1)),)
