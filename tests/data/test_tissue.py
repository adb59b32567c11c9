"""Crops of lesion-free tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ultrarefiner_monai.data.datalist import read_index
from ultrarefiner_monai.data.tissue import LEAST_HEIGHT, LEAST_WIDTH, tissue_crop, tissue_pairs


def test_crops_of_tissue_keep_off_the_lesion_and_out_of_the_dark(tmp_path: Path, write_clean_folder) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((80, 100), dtype=np.float32) * 0.5 + 0.3
    label = np.zeros((80, 100), bool)
    label[10:30, 10:30] = True
    marked = np.where(label, 9.0, image)
    for _ in range(20):
        crop = tissue_crop(marked, label, rng)
        assert crop is not None and crop.max() < 1
        assert crop.shape[0] >= round(LEAST_HEIGHT * 80) and crop.shape[1] >= round(LEAST_WIDTH * 100)
    assert tissue_crop(image, np.ones_like(label), rng) is None
    assert tissue_crop(np.zeros_like(image), label, rng) is None
    items = read_index(write_clean_folder(tmp_path / "d", 8))
    first, again = (list(tissue_pairs(items[::step], 0)) for step in (1, -1))
    assert {k for k, _, _ in first} <= {f"{i.key}#0" for i in items if i.has_lesion} and len(first) > 2
    pictures = {k: crop for k, crop, _ in again}
    assert all(np.array_equal(crop, pictures[k]) for k, crop, _ in first)
