"""What a label's values mean: two values or refused, in any type; segments, fractions, edges, and too much of a frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.masks.label_values import (
    check_share,
    cut,
    from_fractions,
    from_numbers,
    from_segments,
    kind_of_name,
)

TYPES = "u1 i1 u2 i2 u4 i4 u8 i8 f4 f8 >i2 >f4".split()
SHAPE = (7, 5, 3)
masks = arrays.arrays(np.uint8, SHAPE, elements=st.integers(0, 1))


def disc(radius: float = 20, size: int = 100) -> np.ndarray:
    """Distance to the edge of a disc (H, W), positive inside."""
    y, x = np.mgrid[:size, :size]
    return radius - np.hypot(y - size / 2, x - size / 3)


@given(mask=masks, value=st.integers(1, 100), kind=st.sampled_from(TYPES))
def test_the_lesion_is_what_is_not_0_in_any_type(mask: np.ndarray, value: int, kind: str) -> None:
    np.testing.assert_array_equal(from_numbers(mask.astype(kind) * np.dtype(kind).type(value)), mask)


@given(mask=masks, first=st.integers(1, 100), second=st.integers(1, 100), kind=st.sampled_from(TYPES))
def test_two_labels_are_never_one(mask: np.ndarray, first: int, second: int, kind: str) -> None:
    values = (mask * first).astype(kind)
    values[0, 0, :2] = first, second
    if first == second:
        assert from_numbers(values).sum() == 2 + mask.sum() - mask[0, 0, :2].sum()
        return
    with pytest.raises(InputError, match=r"several values \(.*expected 0 and one other, the lesion"):
        from_numbers(values)


@given(mask=masks, bad=st.sampled_from([0.5, 0.91, 0.002, 1.5, -1.0, -0.01, np.nan, np.inf, -np.inf, 1e30]))
def test_what_is_no_whole_number_is_refused(mask: np.ndarray, bad: float) -> None:
    values = np.zeros(SHAPE)
    values[0] = mask[0]
    values[3, 2, 1] = bad
    with pytest.raises(InputError, match="not whole|negative|no numbers|several"):
        from_numbers(values)


def test_a_probability_map_is_named() -> None:
    with pytest.raises(InputError, match=r"not whole \(0.01, 0.91\): a probability map is no label"):
        from_numbers(np.where(disc() > 0, 0.91, 0.01).astype(np.float32))
    for high in (1e-4, 0.4):  # never "no lesion"
        with pytest.raises(InputError, match="a probability map is no label"):
            from_numbers(np.where(disc() > 0, high, 0))
    with pytest.raises(InputError, match="probability map"):
        from_numbers(1 / (1 + np.exp(-disc())))


def test_scaled_integers_are_whole() -> None:
    """nibabel saves floats 0 and 1 in uint8 as 255 / 255."""
    mask = disc() > 0
    np.testing.assert_array_equal(from_numbers(np.where(mask, 255 * (1 / 255) + 1e-7, 0)), mask)
    assert from_numbers(np.zeros(SHAPE, np.float32)).sum() == 0
    assert from_numbers(np.full(SHAPE, 3)).all()


@given(top=masks, below=masks)
def test_segments_that_viewers_named_are_joined(top: np.ndarray, below: np.ndarray) -> None:
    header = {"Segment0_LabelValue": "1", "Segment0_Layer": "0", "Segment0_Name": "Segment_1"}
    header |= {"Segment1_LabelValue": "7", "Segment1_Layer": "1", "Segment1_Name": "lesion 2"}
    np.testing.assert_array_equal(from_segments(np.stack([top, below * 7]), header), top | below)
    np.testing.assert_array_equal(from_segments(np.stack([top, below * 7]), {}), top | below)


def test_a_segment_beside_the_lesion_is_not_joined_to_it() -> None:
    values = np.zeros((1, 6, 6, 1), np.int16)
    values[0, 1, 1], values[0, 3, 3] = 1, 2
    header = {"Segment0_LabelValue": "1", "Segment0_Name": "lesion", "Segment1_LabelValue": "2"}
    with pytest.raises(InputError, match="'lesion', 'shadow'.*Delete what is no lesion"):
        from_segments(values, {**header, "Segment1_Name": "shadow"})
    assert from_segments(np.where(values == 1, 1, 0), {**header, "Segment1_Name": "shadow"}).sum() == 1  # it is empty
    assert from_segments(np.where(values == 2, 2, 0), {**header, "Segment1_Name": "Herd"}).sum() == 1  # alone: any name
    with pytest.raises(InputError, match="not whole"):
        from_segments(values * 0.3, header)


@pytest.mark.parametrize(
    "name, kind",
    [("", "unsaid"), ("Segment_12", "unsaid"), ("Tissue", "unsaid"), ("lesion", "lesion"), ("Mass left", "lesion")]
    + [("shadow", "other"), ("background", "other")],
)
def test_names(name: str, kind: str) -> None:
    assert kind_of_name(name) == kind


def test_edges_are_cut_and_probabilities_are_not() -> None:
    edge = disc(30)
    plain = (edge > 0).astype(np.uint8)
    soft = np.rint(255 * np.clip(edge + 0.5, 0, 1)).astype(np.uint8)  # anti-aliased: one pixel wide
    found = cut(soft)
    assert found is not None and np.array_equal(found, soft >= 128)
    noise = np.random.default_rng(0).integers(0, 20, edge.shape)
    found = cut(np.where(plain, 255 - noise, noise).astype(np.uint8))
    assert found is not None and np.array_equal(found, plain)
    for width in (2, 5, 20):  # a network's probabilities
        assert cut(np.rint(255 / (1 + np.exp(-edge / width))).astype(np.uint8)) is None
    picture = np.random.default_rng(0).integers(0, 256, edge.shape).astype(np.uint8)
    assert cut(picture) is None and cut(picture, soft=True) is None
    assert cut(np.zeros_like(picture)) is None and cut(np.full_like(picture, 250)) is None
    wide = cut(np.rint(255 / (1 + np.exp(-edge))).astype(np.uint8), soft=True)  # a mask that a data set resized
    assert wide is not None and np.array_equal(wide, plain)


def test_fractions() -> None:
    edge = disc()[None]
    plain = (edge > 0).astype(np.uint8)
    warnings: list[str] = []
    for low, high, largest in ((0, 255, 255), (0, 1, 1), (99, 120, 200), (0, 128, 255)):
        values = np.where(plain, high, low).astype(np.uint8)
        np.testing.assert_array_equal(from_fractions(values, largest, warnings), plain)
    assert not warnings and not from_fractions(plain * 0, 255, warnings).any()
    soft = np.rint(200 * np.clip(edge + 0.5, 0, 1)).astype(np.uint8)
    np.testing.assert_array_equal(from_fractions(soft, 200, warnings), soft >= 100)
    assert "cut at the half" in warnings[0]
    for bad in (plain * 50, np.rint(255 / (1 + np.exp(-edge / 4)))):  # below the half everywhere; probabilities
        with pytest.raises(InputError, match="a probability map is no label"):
            from_fractions(bad.astype(np.uint8), 255, warnings)


def test_nearly_all_of_a_frame_needs_to_be_confirmed() -> None:
    mask = np.zeros((3, 10, 10), np.uint8)
    mask[1, :9] = 1
    check_share(mask)  # nine tenths
    mask[1, 9, :7] = 1
    with pytest.raises(InputError, match=r"marks 97 % of frame 1: is it inverted\?.*\"confirm\": true"):
        check_share(mask)
    check_share(mask, confirmed=True)
    with pytest.raises(InputError, match="97 % of the picture"):
        check_share(mask[1:2])
