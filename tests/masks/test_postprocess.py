from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ultrarefiner_monai.config import PostConfig, SafetyConfig
from ultrarefiner_monai.masks.overlap import mask_iou
from ultrarefiner_monai.masks.postprocess import boundary_band, fill_holes, prob_to_mask, safety_net

LOOSE = PostConfig(min_area=0.0, fill_holes=False)


def disc(row: float, column: float, radius: float, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_threshold_is_exclusive_and_mask_is_uint8() -> None:
    prob = np.array([[0.0, 0.5, 0.500001, 1.0]], dtype=np.float32)
    mask = prob_to_mask(prob, LOOSE)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 1, 1]]


def test_empty_probabilities_give_an_empty_mask() -> None:
    assert not prob_to_mask(np.zeros((20, 30), np.float32), PostConfig(min_peak=0.9)).any()


def test_one_pixel_lesion_survives_when_min_area_allows_it() -> None:
    prob = np.zeros((20, 30), np.float32)
    prob[3, 4] = 0.9
    assert prob_to_mask(prob, LOOSE).sum() == 1
    assert prob_to_mask(prob, PostConfig(min_area=2 / 600)).sum() == 0
    assert prob_to_mask(prob, PostConfig(min_area=2 / 600), foreground=[(3, 4)])[3, 4] == 1


def test_components_without_a_sure_pixel_are_dropped() -> None:
    prob = np.zeros((60, 80), np.float32)
    prob[disc(20, 20, 8)] = 0.6
    prob[disc(40, 60, 8)] = 0.6
    prob[40, 60] = 0.95
    mask = prob_to_mask(prob, PostConfig(min_peak=0.9))
    assert np.array_equal(mask.astype(bool), disc(40, 60, 8))
    assert np.array_equal(prob_to_mask(prob, PostConfig(min_peak=0.9), peaks=False), prob_to_mask(prob, PostConfig()))


def test_diagonal_neighbours_are_one_component() -> None:
    prob = np.eye(10, dtype=np.float32)
    assert prob_to_mask(prob, PostConfig(min_area=0.1, fill_holes=False)).sum() == 10


def test_fill_holes_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = ndimage.gaussian_filter(generator.normal(size=(40, 50)), 2) > 0
        assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_hole_with_a_background_click_stays_open() -> None:
    ring = disc(30, 40, 20) & ~disc(30, 32, 4) & ~disc(30, 48, 4)
    filled = fill_holes(ring, keep_open=[(30, 32)])
    assert not filled[30, 32] and filled[30, 48]
    assert np.array_equal(filled, disc(30, 40, 20) & ~disc(30, 32, 4))


def test_band_is_symmetric_about_the_outline_and_empty_without_one() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    band = boundary_band(mask, 2)
    assert np.array_equal(np.flatnonzero(band.any(axis=0)), [8, 9, 10, 11]) and band[:, 8:12].all()
    assert not boundary_band(np.zeros((9, 9), bool), 2).any()
    assert not boundary_band(np.ones((9, 9), bool), 2).any()


def test_iou_of_masks() -> None:
    a, b = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    assert mask_iou(a, b) == 1
    a[0, :2], b[0, 1:3] = 1, 1
    assert mask_iou(a, b) == pytest.approx(1 / 3)


def pieces(count: int) -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    for i in range(count):
        mask[20:40, 2 + 10 * i : 10 + 10 * i] = 1
    return mask


COARSE = disc(30, 40, 15).astype(np.uint8)
EMPTY = np.zeros_like(COARSE)
FULL_BAR = np.zeros_like(COARSE)
FULL_BAR[20:40, 2:78] = 1


@pytest.mark.parametrize(
    ("coarse", "refined", "rule"),
    [
        (COARSE, COARSE, None),
        (COARSE, disc(30, 43, 15).astype(np.uint8), None),
        (EMPTY, EMPTY, None),
        (EMPTY, COARSE, "coarse_empty"),
        (COARSE, EMPTY, "refined_empty"),
        (COARSE, disc(30, 40, 5).astype(np.uint8), "area_ratio"),
        (disc(30, 40, 8).astype(np.uint8), COARSE, "area_ratio"),
        (COARSE, disc(30, 55, 15).astype(np.uint8), "iou"),
        (FULL_BAR, pieces(6), "components"),
        (FULL_BAR, pieces(5), None),
    ],
)
def test_safety_rules(coarse: np.ndarray, refined: np.ndarray, rule: str | None) -> None:
    mask, fired = safety_net(coarse, refined, SafetyConfig())
    assert fired == rule
    assert np.array_equal(mask, refined if rule is None else coarse)
    unchecked, fired = safety_net(coarse, refined, SafetyConfig(enabled=False))
    assert fired is None and np.array_equal(unchecked, refined)


def test_band_fusion_changes_the_coarse_mask_only_near_its_outline() -> None:
    refined = (disc(30, 43, 15) & ~disc(30, 40, 2)).astype(np.uint8)
    mask, rule = safety_net(COARSE, refined, SafetyConfig(band_fusion_px=4))
    band = boundary_band(COARSE, 4)
    assert rule is None
    assert np.array_equal(mask[band], refined[band]) and np.array_equal(mask[~band], COARSE[~band])
    assert mask[30, 40] == 1 and refined[30, 40] == 0


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        safety_net(COARSE, COARSE[:10], SafetyConfig())
