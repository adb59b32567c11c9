"""Marks drawn into images say nothing about lesions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ultrarefiner_monai.training.data import marks
from ultrarefiner_monai.training.data.marks import RandMarksd, lesion_box, with_calipers, with_marks

GREY = 0.4


def blank(height: int = 128, width: int = 96) -> np.ndarray:
    return np.full((height, width), GREY, np.float32)


@pytest.mark.parametrize("shape", [(224, 224), (512, 512), (60, 200), (8, 8)])
def test_any_size_keeps_shape_and_range(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    kept = image.copy()
    for seed in range(20):
        out = with_marks(image, np.random.default_rng(seed), (1.0, 2.0, 1.0, 2.0), 4)
        assert out.shape == shape and out.dtype == np.float32 and np.isfinite(out).all()
        assert 0 <= out.min() and out.max() <= 1
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("kind", sorted({f.__name__ for f in marks._OTHERS}))
def test_each_kind_draws_something_and_only_a_little(kind: str) -> None:
    drawn = []
    for seed in range(12):
        pen = marks._Pen.new((224, 224), np.random.RandomState(seed))
        pen.shade()
        getattr(marks, kind)(pen)
        changed = pen.onto(blank(224, 224)) != np.float32(GREY)
        drawn.append(changed.mean())
    assert max(drawn) > 0 and sum(d > 0 for d in drawn) >= 9 and max(drawn) < 0.25


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (64, 64), (30, 400), (400, 30)])
def test_small_and_narrow_pictures_take_every_kind(shape: tuple[int, int]) -> None:
    for seed in range(250):
        for kind in {*marks._OTHERS, lambda pen: marks._calipers(pen, pen.somewhere())}:
            pen = marks._Pen.new(shape, np.random.RandomState(seed))
            pen.shade()
            kind(pen)
            assert np.isfinite(pen.onto(blank(*shape))).all()


def test_both_kinds_of_random_numbers_do_and_a_seed_decides() -> None:
    for make in (np.random.RandomState, np.random.default_rng):
        a, b, other = (with_marks(blank(), make(s), None, 3) for s in (5, 5, 6))
        np.testing.assert_array_equal(a, b)
        assert (a != other).any()


def test_calipers_stand_at_the_ends_of_the_box() -> None:
    for seed in range(10):
        image = blank(200, 200)
        out = with_calipers(image, np.random.default_rng(seed), (60, 80, 140, 120))
        rows, columns = np.nonzero(out != image)
        assert len(rows) and 60 <= rows.min() and rows.max() <= 140 and 40 <= columns.min() and columns.max() <= 160
        assert (columns < 75).any() and (columns > 125).any() or (rows < 90).any() and (rows > 110).any()


def test_the_label_stays_and_marks_are_as_frequent_without_a_lesion() -> None:
    label = torch.zeros(2, 96, 96)
    label[0, 40:60, 30:60] = 1
    image = torch.full((1, 96, 96), GREY)
    shares = []
    for lesion in (label, torch.zeros_like(label)):
        transform = RandMarksd("image", "label", prob=0.5)
        transform.set_random_state(1)
        changed = 0
        for _ in range(200):
            out = transform({"image": image, "label": lesion})
            assert out["label"] is lesion
            changed += not torch.equal(out["image"], image)
        shares.append(changed / 200)
    assert image.eq(GREY).all()
    assert all(0.35 < s < 0.62 for s in shares) and abs(shares[0] - shares[1]) < 0.1


def test_prob_0_is_the_identity_and_a_one_pixel_lesion_has_a_box() -> None:
    never = RandMarksd("image", "label", prob=0.0)
    image, label = torch.rand(1, 32, 32), torch.zeros(1, 32, 32)
    assert all(never({"image": image, "label": label})["image"] is image for _ in range(10))
    assert lesion_box(np.zeros((5, 9), bool)) is None
    one = np.zeros((5, 9), bool)
    one[3, 7] = True
    assert lesion_box(one) == (7.0, 3.0, 7.0, 3.0)
