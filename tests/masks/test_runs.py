"""Masks as runs: there and back, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.masks.runs import mask_of, runs_of


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1)))
def test_there_and_back(mask: np.ndarray) -> None:
    runs = runs_of(mask)
    assert np.array_equal(mask_of(runs, mask.shape), mask)
    assert all(n > 0 for n in runs[1:]), "runs are as long as can be"


def test_by_hand() -> None:
    assert runs_of(np.array([[0, 0, 1], [1, 1, 0]])) == [2, 3, 1]
    assert runs_of(np.ones((2, 2))) == [0, 4] and runs_of(np.zeros((2, 2))) == [4]


def test_a_lesion_of_a_large_picture_is_short() -> None:
    rows, columns = np.ogrid[:768, :1024]
    disc = (rows - 400) ** 2 + (columns - 500) ** 2 < 200**2
    assert np.array_equal(mask_of(runs_of(disc), disc.shape), disc), "more runs than a byte can count"
    assert len(str(runs_of(disc))) < 6000, "500 frames of it fit into a request"


@pytest.mark.parametrize("runs", [[], [3], [5], [2, -1, 3], [2**62, 4]])
def test_other_sizes_are_refused(runs: list[int]) -> None:
    with pytest.raises(InputError, match="the frame has 4"):
        mask_of(runs, (2, 2))
