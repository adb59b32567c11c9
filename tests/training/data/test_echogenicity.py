"""Lesions made as bright as another kind would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import ConfigError, DataConfig
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.training.data.echogenicity import RandEchogenicityd, with_echogenicity
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL, augmentation


def speckle(shape: tuple[int, int], lesion: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0.8, 1.2, shape)
    return (np.where(lesion, 0.2, 0.4) * noise).astype(np.float32)


def ellipse(shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - 60) / 25) ** 2 + ((columns - 90) / 35) ** 2 <= 1


@pytest.mark.parametrize("level", [0.4, 0.5, 1.0, 1.4])
def test_the_lesion_gets_the_brightness_that_was_asked_for_and_keeps_its_speckle(level: float) -> None:
    lesion = ellipse()
    image = speckle(lesion.shape, lesion)
    changed = with_echogenicity(image, lesion, level, edge=0.004)
    core = ellipse() & (np.roll(lesion, 4, 0) & np.roll(lesion, -4, 0) & np.roll(lesion, 4, 1) & np.roll(lesion, -4, 1))
    assert changed[core].mean() == pytest.approx(level * 0.4, rel=0.08)
    contrast = [part[core].std() / part[core].mean() for part in (image, changed)]
    assert contrast[0] == pytest.approx(contrast[1], rel=0.02)
    far = np.ones_like(lesion)
    far[25:95, 45:135] = False
    np.testing.assert_array_equal(changed[far], image[far])


def test_nothing_to_change_or_to_compare_with() -> None:
    image = speckle((40, 60), np.zeros((40, 60), bool))
    one = np.zeros((40, 60), bool)
    one[0, 59] = True
    for lesion in (np.zeros_like(one), np.ones_like(one)):
        assert with_echogenicity(image, lesion, 0.5) is image
    black = np.where(one, image, 0)
    np.testing.assert_array_equal(with_echogenicity(black, one, 0.5), black)
    lonely = with_echogenicity(image, one, 1.5)
    assert np.isfinite(lonely).all() and 0 <= lonely.min() and lonely.max() <= 1


def test_a_seed_decides_and_the_label_stays() -> None:
    phantom = make_phantom(np.random.default_rng(2), 96, 96, "benign")
    data = {
        IMAGE: torch.from_numpy(phantom.image / np.float32(255))[None],
        LABEL: torch.from_numpy(phantom.mask.astype(np.float32))[None].repeat(2, 1, 1),
    }
    changed = []
    for seed in (1, 1, 2):
        transform = RandEchogenicityd(IMAGE, LABEL, prob=1.0)
        transform.set_random_state(seed)
        out = transform(data)
        assert out[LABEL] is data[LABEL] and out[IMAGE].shape == (1, 96, 96) and out[IMAGE].dtype == torch.float32
        changed.append(out[IMAGE])
    assert torch.equal(changed[0], changed[1]) and not torch.equal(changed[0], changed[2])
    assert RandEchogenicityd(IMAGE, LABEL, prob=0.0)(data)[IMAGE] is data[IMAGE]


def test_it_is_part_of_the_augmentation_where_it_is_asked_for() -> None:
    kinds = [[type(t).__name__ for t in augmentation("strong", 64, echogenicity=p).transforms] for p in (0.0, 0.4)]
    assert kinds[1] == ["RandEchogenicityd", *kinds[0]]
    with pytest.raises(ConfigError, match=r"data.echogenicity must be in \[0, 1\]"):
        DataConfig(echogenicity=-0.1)
