from __future__ import annotations

import numpy as np
import pytest

from ultrarefiner_monai.config import PostConfig
from ultrarefiner_monai.pipeline.coarse import FADE, settle

ROWS, COLUMNS = np.ogrid[:96, :96]


def disc(row: float, column: float, radius: float) -> np.ndarray:
    return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_second_finding_has_to_be_nearly_as_sure_as_the_first(dtype: type) -> None:
    prob = np.zeros((96, 96), dtype)
    first, equal, faint = disc(20, 20, 10), disc(60, 60, 8), disc(80, 15, 8)
    prob[first], prob[equal], prob[faint] = 0.9, 0.88, 0.6
    arrays = {"coarse_prob": prob, "presence": np.ones(1, dtype)}
    out = settle(arrays, PostConfig(peak_ratio=0.95))
    assert out["coarse_prob"].dtype == dtype and out["presence"] is arrays["presence"]
    assert np.array_equal(out["coarse_prob"][~faint], prob[~faint])
    # Not shown any more, and still to be found by a click.
    assert np.allclose(out["coarse_prob"][faint], 0.6 * FADE, atol=1e-3)
    assert settle(arrays, PostConfig()) is arrays


def test_a_finding_that_stands_alone_stays_however_faint_it_is() -> None:
    prob = np.where(disc(40, 40, 9), 0.4, 0.01).astype(np.float32)
    speck = prob.copy()
    speck[5, 90] = 1  # smaller than what may be shown: it sets no bar
    for one in (prob, speck):
        out = settle({"coarse_prob": one}, PostConfig(peak_ratio=0.95))["coarse_prob"]
        assert np.array_equal(out, one)
    empty = {"coarse_prob": np.zeros((96, 96), np.float32)}
    assert not settle(empty, PostConfig(peak_ratio=0.95))["coarse_prob"].any()
