"""Samples are the same in any order and process; image and mask stay together through every augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ultrarefiner_monai.data.datalist import read_index
from ultrarefiner_monai.data.loading import (
    SeededDataset,
    as_samples,
    phantom_samples,
    training_loader,
    with_normal_share,
)
from ultrarefiner_monai.data.transforms import ID, IMAGE, LABEL, STRENGTHS, augmentation, preparation, to_square
from ultrarefiner_monai.types import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


def dataset(folder: Path, seed: int = 0) -> SeededDataset:
    return SeededDataset(as_samples(read_index(folder)), preparation(64), augmentation(), seed)


def test_a_sample_depends_on_seed_epoch_and_item_alone(folder: Path) -> None:
    a, b = dataset(folder), dataset(folder)
    for d in (a, b):
        d.set_epoch(3)
    forward = [a[i][IMAGE] for i in range(6)]
    backward = [b[i][IMAGE] for i in reversed(range(6))][::-1]
    assert all(torch.equal(x, y) for x, y in zip(forward, backward, strict=True))
    b.set_epoch(4)
    assert not torch.equal(a[0][IMAGE], b[0][IMAGE])
    other = dataset(folder, seed=1)
    other.set_epoch(3)
    assert not torch.equal(a[0][IMAGE], other[0][IMAGE])


def test_workers_give_the_same_batches(folder: Path) -> None:
    batches = []
    for workers in (0, 1):
        data = dataset(folder)
        loader = training_loader(data, 4, 0, workers)
        data.set_epoch(2)
        loader.sampler.set_epoch(2)
        batches.append([(b[ID], b[IMAGE]) for b in loader])
    for (ids_a, images_a), (ids_b, images_b) in zip(*batches, strict=True):
        assert ids_a == ids_b and torch.equal(images_a, images_b)


@pytest.mark.parametrize("strength", sorted(STRENGTHS))
def test_augmented_pairs_stay_aligned_and_in_range(strength: str) -> None:
    """The label drawn into the image itself: after any augmentation bright pixels are where the label is."""
    square = np.zeros((80, 100), np.float32)
    square[20:60, 30:75] = 1
    data = SeededDataset([{ID: "a", IMAGE: square, LABEL: square}], preparation(64), augmentation(strength, 64), 0)
    for epoch in range(25):
        data.set_epoch(epoch)
        sample = data[0]
        image, label = sample[IMAGE], sample[LABEL]
        assert image.shape == label.shape == (1, 64, 64)
        assert image.min() >= 0 and image.max() <= 1
        assert set(label.unique().tolist()) <= {0.0, 1.0}
        inside, outside = image[label == 1], image[label == 0]
        assert inside.mean() > 3 * outside.mean()


def test_a_mask_of_another_size_is_refused_with_both_sizes(folder: Path, tmp_path: Path) -> None:
    Image.new("1", (30, 20)).save(tmp_path / "m.png")
    item = as_samples(read_index(folder))[0] | {LABEL: tmp_path / "m.png"}
    with pytest.raises(Exception) as caught:
        SeededDataset([item], preparation(64), None, 0)[0]
    cause = caught.value.__cause__ or caught.value
    assert isinstance(cause, InputError) and "(30, 20)" in str(cause) and "(64, 48)" in str(cause)


def test_normal_share_is_met_by_repeating_or_leaving_out(folder: Path) -> None:
    items = read_index(folder)
    assert with_normal_share(items, None, 0) == items
    for share in (0.0, 0.2, 0.5):
        chosen = with_normal_share(items, share, 0)
        assert np.mean([not i.has_lesion for i in chosen]) == pytest.approx(share, abs=0.06)


def test_phantoms_are_reproducible_and_some_have_no_lesion() -> None:
    a, b = phantom_samples(12, 3), phantom_samples(12, 3)
    assert all(np.array_equal(x[IMAGE], y[IMAGE]) for x, y in zip(a, b, strict=True))
    lesions = [bool(x[LABEL].any()) for x in a]
    assert any(lesions) and not all(lesions)


def test_training_and_serving_share_one_letterbox() -> None:
    image = np.random.default_rng(0).random((37, 90)).astype(np.float32)
    from ultrarefiner_monai.geometry import Letterbox

    served = Letterbox(37, 90, 64).apply(torch.from_numpy(image)[None, None])[0]
    assert torch.equal(to_square(image, 64), served)
