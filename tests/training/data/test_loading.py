"""Samples are the same in any order and process; image and mask stay together through every augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.training.data.loading import (
    BalancedSampler,
    SeededDataset,
    as_samples,
    balanced_weights,
    phantom_samples,
    plain_loader,
    training_loader,
)
from ultrarefiner_monai.training.data.transforms import (
    ID,
    IMAGE,
    LABEL,
    STRENGTHS,
    augmentation,
    preparation,
    to_square,
)


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


def test_phantoms_are_reproducible_and_some_have_no_lesion() -> None:
    a, b = phantom_samples(12, 3), phantom_samples(12, 3)
    assert all(np.array_equal(x[IMAGE], y[IMAGE]) for x, y in zip(a, b, strict=True))
    lesions = [bool(x[LABEL].any()) for x in a]
    assert any(lesions) and not all(lesions)


def test_training_and_serving_share_one_letterbox() -> None:
    image = np.random.default_rng(0).random((37, 90)).astype(np.float32)
    from ultrarefiner_monai.core.geometry import Letterbox

    served = Letterbox(37, 90, 64).apply(torch.from_numpy(image)[None, None])[0]
    assert torch.equal(to_square(image, 64), served)


# --- balanced sampling ------------------------------------------------------------------------------------------------

GROUPS = ["large/"] * 40 + ["middle/x"] * 10 + ["small/"] * 4 + [None] * 6


class Numbers(torch.utils.data.Dataset):
    """Its samples are their numbers."""

    def __init__(self, count: int, repeats: bool = False) -> None:
        self.count, self.repeats = count, repeats

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def order(weights: list[float], epoch: int, rank: int = 0, count: int = 1, repeats: bool = False) -> list[int]:
    options = {"num_replicas": count, "rank": rank, "seed": 3, "drop_last": True}
    sampler = BalancedSampler(Numbers(len(weights), repeats), weights, **options)
    sampler.set_epoch(epoch)
    shown = list(sampler)
    assert len(shown) == len(sampler) == len(weights) // count
    return shown


@pytest.mark.parametrize("balance", [0.3, 0.7, 1.0])
def test_small_groups_are_shown_more_often_and_an_epoch_stays_as_long(balance: float) -> None:
    weights = balanced_weights(GROUPS, balance)
    assert weights is not None and sum(weights) == pytest.approx(len(GROUPS))
    assert weights[-6:] == [1.0] * 6  # phantoms keep their share
    assert weights[50] / weights[0] == pytest.approx((40 / 4) ** balance)
    if balance == 1:
        assert sum(weights[:40]) == pytest.approx(sum(weights[50:54]))
    for epoch in range(4):
        shown = order(weights, epoch)
        for k, weight in enumerate(weights):
            assert shown.count(k) in (int(weight), int(weight) + 1)
    means = np.mean([np.bincount(order(weights, e), minlength=len(weights)) for e in range(400)], axis=0)
    assert np.allclose(means, weights, atol=0.12)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_set_with_many_scanners_does_not_count_for_many(balance: float) -> None:
    groups = ["one/"] * 100 + [f"two/{k}" for k in range(5) for _ in range(20)]
    weights = balanced_weights(groups, balance)
    assert weights is not None and sum(weights[:100]) == pytest.approx(sum(weights[100:]))


def test_images_that_are_read_at_once_are_the_same(folder: Path) -> None:
    one, other = dataset(folder), dataset(folder)
    other.prepare_all()
    for k in range(len(one)):
        assert torch.equal(one[k][IMAGE], other[k][IMAGE]) and torch.equal(one[k][LABEL], other[k][LABEL])


def test_nothing_is_weighed_where_nothing_is_to_be_balanced() -> None:
    assert balanced_weights(GROUPS, 0.0) is None
    assert balanced_weights(["one/"] * 5 + [None], 1.0) is None
    assert sorted(order([1.0] * 9, 2)) == list(range(9))  # equal weights: each once


def test_the_order_depends_on_seed_and_epoch_and_processes_share_it() -> None:
    weights = balanced_weights(GROUPS, 1.0)
    assert weights is not None
    assert order(weights, 2) == order(weights, 2) != order(weights, 3)
    halves = [order(weights, 2, rank, 2) for rank in range(2)]
    assert [k for pair in zip(*halves) for k in pair] == order(weights, 2)


def test_a_repeated_image_is_augmented_anew_each_time(folder: Path) -> None:
    weights = [3.0] * 2 + [0.6] * 10
    shown = order(weights, 1, repeats=True)
    assert len(set(shown)) == len(shown) and sorted(k % 12 for k in shown) == sorted(order(weights, 1))
    assert {k for k in shown if k % 12 == 0} == {0, 12, 24}
    data = dataset(folder)
    assert data[0][ID] == data[12][ID] and not torch.equal(data[0][IMAGE], data[12][IMAGE])
    assert torch.equal(data[12][IMAGE], data[12][IMAGE])


def test_batches_of_the_selection_are_of_one_set() -> None:
    sets = [("a", "b", "c")[k * k % 3] for k in range(17)]
    batches = [batch.tolist() for batch in plain_loader(Numbers(17), 4, sets)]
    assert sorted(k for batch in batches for k in batch) == list(range(17))
    assert all(len({sets[k] for k in batch}) == 1 for batch in batches)
    assert [b.tolist() for b in plain_loader(Numbers(5), 4, ["a"] * 5)] == [[0, 1, 2, 3], [4]]
