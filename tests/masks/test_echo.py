"""How bright a lesion is beside its surroundings."""

from __future__ import annotations

import numpy as np
import pytest

from ultrarefiner_monai.masks.echo import echo_level, tissue_around

ROWS, COLUMNS = np.mgrid[:80, :100]
LESION = (ROWS - 40) ** 2 + (COLUMNS - 50) ** 2 < 15**2


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0, 1.6])
def test_a_lesion_is_compared_with_the_tissue_around_it(level: float) -> None:
    image = np.where(LESION, 0.5 * level, 0.5).astype(np.float32)
    image[:, 80:] = 1.0  # far away
    image[:5] = 0.0
    assert echo_level(image, LESION) == pytest.approx(level)


def test_what_lies_outside_the_picture_is_no_tissue() -> None:
    image = np.where(LESION, 0.2, 0.4).astype(np.float32)
    image[:, 50:] = np.where(LESION, image, 0)[:, 50:]  # black beside it, as beyond the border of a sector
    assert echo_level(image, LESION) == pytest.approx(0.5)


def test_without_something_to_compare_there_is_no_level() -> None:
    image = np.full(LESION.shape, 0.5, np.float32)
    assert echo_level(image, np.zeros_like(LESION)) is None
    assert echo_level(image, np.ones_like(LESION)) is None
    assert echo_level(np.where(LESION, image, 0), LESION) is None
    assert tissue_around(image, LESION) is not None
