"""Lesion-free crops: never a lesion in them, and something to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.training.data.loading import GROUP
from ultrarefiner_monai.training.data.tissue import tissue_crop, tissue_pairs, tissue_samples
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL, preparation


def numbered(height: int, width: int) -> np.ndarray:
    """An image in which each pixel says where it is, all of it bright enough for tissue."""
    return 0.2 + 0.7 * np.arange(height * width, dtype=np.float64).reshape(height, width) / (height * width)


def place(crop: np.ndarray, image: np.ndarray) -> tuple[slice, slice]:
    top, left = np.argwhere(image == crop[0, 0])[0]
    where = slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1])
    np.testing.assert_array_equal(image[where], crop)
    return where


@settings(max_examples=80, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 2**31), st.integers(0, 4), st.floats(0.01, 0.25))
def test_a_crop_never_touches_a_lesion(height: int, width: int, seed: int, count: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    image, label = numbered(height, width), np.zeros((height, width), np.uint8)
    for _ in range(count):
        row, column = rng.integers(height), rng.integers(width)
        reach = max(1, round(size * min(height, width)))
        label[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = 1
    crop = tissue_crop(image, label, rng)
    if crop is None:
        assert count
        return
    rows, columns = place(crop, image)
    near = label[max(0, rows.start - 2) : rows.stop + 2, max(0, columns.start - 2) : columns.stop + 2]
    assert not near.any()
    assert crop.shape[0] >= 0.35 * height and crop.shape[1] >= 0.4 * width


def test_the_margin_is_a_share_of_the_lesion_and_crops_differ() -> None:
    image, label = numbered(200, 300), np.zeros((200, 300), np.float32)
    label[60:100, 200:260] = 1
    seen = set()
    for seed in range(25):
        crop = tissue_crop(image, label, np.random.default_rng(seed), margin=0.25)
        assert crop is not None
        rows, columns = place(crop, image)
        assert not label[max(0, rows.start - 15) : rows.stop + 15, max(0, columns.start - 15) : columns.stop + 15].any()
        seen.add((rows.start, rows.stop, columns.start, columns.stop))
    assert len(seen) > 20


def test_no_room_and_nothing_to_see() -> None:
    rng = np.random.default_rng(0)
    full, middle = np.ones((60, 80)), np.zeros((60, 80))
    middle[20:40, 25:55] = 1
    assert tissue_crop(numbered(60, 80), full, rng) is None
    assert tissue_crop(numbered(60, 80), middle, rng) is None
    assert tissue_crop(np.zeros((60, 80)), np.zeros((60, 80)), rng) is None
    half = numbered(60, 200)
    half[:, 100:] = 0
    for _ in range(10):
        crop = tissue_crop(half, np.zeros_like(half), rng)
        assert crop is not None and (crop > 0.04).mean() >= 0.6


def write(folder: Path, name: str, label: np.ndarray, data_set: str = "a") -> Item:
    image = np.random.default_rng(len(name)).integers(60, 160, label.shape).astype(np.uint8)
    paths = folder / f"{name}.png", folder / f"{name}_mask.png"
    Image.fromarray(image).save(paths[0])
    Image.fromarray((label * 255).astype(np.uint8)).save(paths[1])
    return Item(name, *paths, name, "0", "benign", bool(label.any()), data_set, "scanner")


def items(folder: Path) -> list[Item]:
    corner, full = np.zeros((80, 120), np.uint8), np.ones((80, 120), np.uint8)
    full[:2] = 0
    corner[10:30, 10:40] = 1
    return [write(folder, f"c{k}", corner) for k in range(4)] + [
        write(folder, "full", full),
        write(folder, "normal", np.zeros((80, 120), np.uint8)),
    ]


def test_samples_are_as_many_as_asked_for_and_fit_the_preparation(tmp_path: Path) -> None:
    given_items = items(tmp_path)
    assert tissue_samples(given_items, 0.0, 0) == []
    samples = tissue_samples(given_items, 1.6, 0)  # of five lesion images, one of which has no room
    assert len(samples) == 8 and len({s[ID] for s in samples}) == 8
    for sample in samples:
        assert sample[ID].startswith("tissue:a/c") and sample[GROUP] == "a/scanner"
        ready = preparation(64)(sample)
        assert ready[IMAGE].shape == ready[LABEL].shape == (1, 64, 64)
        assert 0.1 < ready[IMAGE].mean() and ready[IMAGE].max() <= 1 and not ready[LABEL].any()
    again, other = tissue_samples(given_items, 1.6, 0), tissue_samples(given_items, 1.6, 1)
    assert all(np.array_equal(a[IMAGE], b[IMAGE]) for a, b in zip(samples, again))
    assert any(not np.array_equal(a[IMAGE], b[IMAGE]) for a, b in zip(samples, other))


def test_pairs_do_not_depend_on_what_else_is_asked_for(tmp_path: Path) -> None:
    given_items = items(tmp_path)
    pairs = list(tissue_pairs(given_items, 3, per_image=2))
    assert [key for key, _, _ in pairs] == [f"tissue:a/c{k}:{n}" for k in range(4) for n in range(2)]
    alone = next(iter(tissue_pairs(given_items[2:3], 3)))
    np.testing.assert_array_equal(alone[1], pairs[4][1])
    assert alone[1].dtype == np.float32 and 0 < alone[1].min() and alone[1].max() <= 1


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    item = write(tmp_path, "x", np.ones((40, 40), np.uint8))
    Image.fromarray(np.zeros((41, 40), np.uint8)).save(item.mask)
    with pytest.raises(InputError, match="x_mask.png"):
        tissue_samples([item], 1.0, 0)
