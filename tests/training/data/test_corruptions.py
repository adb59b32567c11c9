from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ultrarefiner_monai.config import ConfigError, CorruptionConfig, from_dict
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.training.data import corruption_fields as fields
from ultrarefiner_monai.training.data import corruption_kinds as kinds
from ultrarefiner_monai.training.data.corruption_set import write_set
from ultrarefiner_monai.training.data.corruptions import KINDS, Corruptor

SDF = [name for name in KINDS if name.startswith("sdf_") and name != "sdf_vanish"]


def lesions(count: int, height: int = 96, width: int = 96, seed: int = 0) -> torch.Tensor:
    """(count, 1, height, width) phantom labels, benign and malignant in turn."""
    rng = np.random.default_rng(seed)
    made = [make_phantom(rng, height, width, ("benign", "malignant")[k % 2]).mask for k in range(count)]
    return torch.from_numpy(np.stack(made)).float()[:, None]


def disc(size: int, radius: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - size // 2) ** 2 + (x - size // 2) ** 2 <= radius**2)[None]


def dice_of(prob: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return fields.dice(prob[:, 0] > 0.5, masks[:, 0] > 0.5)


# --- parts ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_signed_distance_is_scipys_and_a_gpus(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    got = fields.signed_distance(torch.from_numpy(mask)[None])[0].numpy()
    assert (got > 0).tolist() == mask.tolist()
    if mask.any() and not mask.all():
        inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
        np.testing.assert_allclose(got, np.where(mask, inside - 0.5, 0.5 - outside), atol=1e-5)
        on_gpu = fields._distance_to(torch.from_numpy(mask)[None], float(height + width))[0].numpy()
        np.testing.assert_allclose(on_gpu, outside, atol=1e-4)


def test_the_quick_distance_is_near_the_exact_one() -> None:
    masks = lesions(12)[:, 0] > 0.5
    exact = fields.signed_distance(masks)
    quick = fields.signed_distance(masks, torch.full((12,), 10))
    assert ((exact > 0) == (quick > 0)).all()
    assert (exact - quick)[exact > -10].abs().max() < 0.6
    assert (quick <= exact + 0.6).all()  # further out it only overestimates how far


def test_random_field_is_as_smooth_as_it_says() -> None:
    length, n, size = 20.0, 64, 160
    cells = fields.field_cells(size, length)
    normals = torch.randn(n, cells, cells, generator=torch.Generator().manual_seed(0))
    field = fields.gaussian_field(normals, (size, size), torch.full((n,), length))
    variance = field.square().mean()
    for lag in (1, 20, 40):
        found = (field[:, :, lag:] * field[:, :, :-lag]).mean() / variance
        assert found == pytest.approx(math.exp(-((lag / length) ** 2)), abs=0.06)
    assert (field[:, :, 1:] * field[:, :, :-1]).mean() / variance > 0.9
    assert variance == pytest.approx(1, abs=0.1)


def test_area_is_what_was_asked_for() -> None:
    mask = disc(96, 14).repeat(4, 1, 1)
    field = torch.rand(4, 96, 96, generator=torch.Generator().manual_seed(0)) + 0.5
    factor = torch.tensor([0.5, 1.5, 6.0, 1000.0])
    out = kinds.change_area(mask, fields.signed_distance(mask), factor, field)
    ratio = fields.count_set(out) / fields.count_set(mask)
    torch.testing.assert_close(ratio[:3], factor[:3], rtol=0.01, atol=0)
    assert out[3].all()  # more than the frame holds: all of it


def test_the_twelve_do_what_their_names_say() -> None:
    mask = disc(96, 16)
    one, zero = torch.ones(1), torch.zeros(1)
    area = int(mask.sum())
    bite = kinds.missing_chunk(mask, 0.2 * one, torch.tensor([[48.0, 48.0]]), zero, one.bool())
    assert not (bite & ~mask).any() and int(bite.sum()) == pytest.approx(0.8 * area, rel=0.03)
    holes = kinds.internal_holes(mask, torch.tensor([[[48.0, 50.0]]]), torch.full((1, 1), 0.1), one[:, None])
    assert ndimage.binary_fill_holes(holes[0]).sum() == area > int(holes.sum())
    assert int(holes.sum()) == pytest.approx(0.9 * area, rel=0.03)
    cuts = kinds.fragments(
        mask, torch.tensor([[[48.0, 48.0]]]), zero[:, None], one[:, None] * 2, torch.zeros(1, 96, 96)
    )
    assert ndimage.label(cuts[0])[1] == 2
    more = kinds.islands(mask, torch.tensor([[[8.0, 8.0], [80.0, 88.0]]]), torch.full((1, 2), 3.0), torch.ones(1, 2))
    assert ndimage.label(more[0])[1] == 3 and (more & mask).sum() == area
    joined = kinds.bridge(mask, torch.tensor([[48.0, 64.0]]), torch.tensor([[48.0, 85.0]]), 2 * one, 5 * one)
    assert ndimage.label(joined[0])[1] == 1 and joined[0, 48, 88]
    moved = kinds.shift(mask, torch.tensor([[48.0, 48.0]]), torch.tensor([[7.0, -5.0]]), 0.3 * one)
    assert ndimage.center_of_mass(moved[0].numpy()) == pytest.approx((55, 43), abs=0.3)
    noisy = kinds.scatter_noise(mask, torch.rand(1, 96, 96), 0.1 * one, torch.tensor([[48.0, 48.0]]), 16 * one)
    assert 0 < int((noisy ^ mask).sum()) < 0.3 * area
    jitter = kinds.roughen(mask, torch.full((1, 96, 96), 2.0), torch.zeros(1, 96, 96))
    band = fields.signed_distance(mask).abs() <= 3
    assert (jitter ^ mask).any() and not ((jitter ^ mask) & ~band).any()


# --- the random transform ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (64, 120)])
def test_same_seed_same_result_and_nothing_is_changed_in_place(size: tuple[int, int]) -> None:
    masks = lesions(24, *size)
    before = masks.clone()
    corruptor = Corruptor(CorruptionConfig(share_twelve=0.5), seed=1)
    torch.manual_seed(0)
    first, second = corruptor(masks), corruptor(masks)
    corruptor.set_seed(1)
    torch.manual_seed(99)  # no other generator matters
    again = corruptor(masks)
    assert torch.equal(masks, before)
    assert torch.equal(first.corrupted_prob, again.corrupted_prob) and first.kind == again.kind
    assert not torch.equal(first.corrupted_prob, second.corrupted_prob)
    assert first.corrupted_prob.shape == masks.shape
    assert 0 <= float(first.corrupted_prob.min()) and float(first.corrupted_prob.max()) <= 1
    torch.testing.assert_close(first.dice, dice_of(first.corrupted_prob, masks), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", SDF)
def test_dice_requests_are_met(kind: str) -> None:
    masks = lesions(64, seed=2)
    batch = Corruptor(CorruptionConfig(), 3).as_kinds(masks, [kind] * len(masks))
    dice = dice_of(batch.corrupted_prob, masks)
    inside = (dice >= batch.asked[:, 0] - 1e-4) & (dice <= batch.asked[:, 1] + 1e-4)
    assert inside.float().mean() >= 0.98
    assert dice.max() < 0.995


def test_bands_follow_the_mix_and_the_curriculum() -> None:
    masks = lesions(16, 64, 64, seed=4).repeat(20, 1, 1, 1)
    corruptor = Corruptor(CorruptionConfig(share_twelve=0, vanish_share=0), 5)
    for difficulty, mix in ((1.0, (0.25, 0.40, 0.35)), (0.0, (1, 0, 0))):
        lowest = corruptor(masks, difficulty).asked[:, 0]
        found = [float((lowest - low).abs().lt(1e-4).float().mean()) for low in (0.9, 0.8, 0.6)]
        assert found == pytest.approx(mix, abs=0.1)


def test_easy_is_easier() -> None:
    masks = lesions(64, seed=6)
    corruptor = Corruptor(CorruptionConfig(share_twelve=1), 7)
    easy, hard = corruptor(masks, 0.0), corruptor(masks, 1.0)
    assert easy.dice.mean() > hard.dice.mean() + 0.05
    assert not set(easy.kind) & {"giant", "empty", "islands"}


def test_masks_without_a_lesion() -> None:
    masks = torch.zeros(60, 1, 64, 64)
    batch = Corruptor(CorruptionConfig(empty_islands=0.5), 8)(masks)
    marked = batch.corrupted_prob.flatten(1).amax(1) > 0.5
    assert set(batch.kind) == {"empty", "islands"}
    assert [bool(m) for m in marked] == [k == "islands" for k in batch.kind]
    assert torch.equal(batch.dice, (~marked).float())
    assert batch.asked.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel_a_full_frame_and_the_border(kind: str) -> None:
    masks = torch.zeros(4, 1, 40, 56)
    masks[0, 0, 20, 30] = 1
    masks[1] = 1
    masks[2, 0, :9, :12] = 1
    masks[3, 0, 39, 55] = 1
    batch = Corruptor(CorruptionConfig(), 9).as_kinds(masks, [kind] * 4)
    assert batch.corrupted_prob.isfinite().all()
    torch.testing.assert_close(batch.dice, dice_of(batch.corrupted_prob, masks), atol=1e-3, rtol=0)
    if kind.startswith("sdf_") and kind != "sdf_vanish":  # one pixel can be doubled: Dice 2/3
        assert ((batch.dice >= batch.asked[:, 0]) & (batch.dice <= batch.asked[:, 1])).all()


@given(st.floats(1, 6), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_tiny_lesions_survive_softening(radius: float, seed: int) -> None:
    masks = disc(64, radius)[None].float()
    for name in ("identity", "sdf_offset"):
        config = CorruptionConfig(soften_twelve=1, roughness_share=0, vanish_share=0)
        prob = Corruptor(config, seed).as_kinds(masks, [name]).corrupted_prob
        assert prob.max() > 0.75
        assert ((prob > 0.02) & (prob < 0.98)).any()  # soft all the same


def test_severity_rises_for_tiny_and_for_irregular_lesions() -> None:
    star = disc(96, 20).clone()
    star[:, ::4] &= disc(96, 10)[:, ::4]
    large, tiny, irregular = (fields.shapes_of(m).severity.item() for m in (disc(96, 20), disc(96, 3), star))
    assert large < 0.05 and tiny > large + 0.3 and irregular > large + 0.2


def test_the_curriculum_and_the_masks_are_checked() -> None:
    corruptor = Corruptor(CorruptionConfig(), 0)
    with pytest.raises(ValueError, match="difficulty"):
        corruptor(torch.zeros(1, 1, 8, 8), 1.5)
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        corruptor(torch.zeros(1, 8, 8))
    for wrong in ({"kinds": {"blur": 1.0}}, {"bands": [[0.9, 0.8]]}, {"share_twelve": 2.0}, {"band_weights": [1.0]}):
        with pytest.raises(ConfigError, match=f"corruption.{next(iter(wrong))}"):
            from_dict(CorruptionConfig, wrong)


# --- the fixed set ----------------------------------------------------------------------------------------------------


def test_a_set_is_the_same_after_a_stop(tmp_path: Path, write_clean_folder: Callable[..., Path]) -> None:
    data = write_clean_folder(tmp_path / "data", 8)
    figures = write_set(data, tmp_path / "whole", 24, size=48, shard=10)
    assert figures["samples"] == 24 and figures["in_band"] > 0.9
    assert sum(k["count"] for k in figures["kinds"].values()) == 24

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_set(data, tmp_path / "parts", 24, size=48, shard=10, progress=stop)
    assert not (tmp_path / "parts" / "statistics.json").exists()
    write_set(data, tmp_path / "parts", 24, size=48, shard=10)
    for path in sorted((tmp_path / "whole").glob("*.npz")):
        with np.load(path) as one, np.load(tmp_path / "parts" / path.name) as other:
            assert all(np.array_equal(one[name], other[name], equal_nan=name == "asked") for name in one)
    with np.load(tmp_path / "whole" / "shard_00000.npz") as shard, np.load(tmp_path / "whole" / "labels.npz") as labels:
        mask, label = shard["corrupted"] > 127, labels["labels"][shard["label"]] > 0
        dice = fields.dice(torch.from_numpy(mask), torch.from_numpy(label)).numpy()
        np.testing.assert_allclose(shard["dice"], dice, atol=1e-3)
    assert json.loads((tmp_path / "whole" / "statistics.json").read_text())["samples"] == 24
    assert (tmp_path / "whole" / "contact_sheet.png").stat().st_size > 1000
    with pytest.raises(InputError, match="seed"):
        write_set(data, tmp_path / "whole", 24, size=48, shard=10, seed=1)


def test_mixed_precision_around_it_changes_nothing() -> None:
    """A training may be in it: sums over pixels would be wrong there, and the spread of a small lesion negative."""
    masks = lesions(24)
    plain = Corruptor(CorruptionConfig(), 5)(masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = Corruptor(CorruptionConfig(), 5)(masks)
        kinds_too = Corruptor(CorruptionConfig(), 5).as_kinds(masks[:2], ["over", "holes"])
    assert torch.equal(plain.corrupted_prob, mixed.corrupted_prob) and plain.kind == mixed.kind
    assert torch.equal(
        kinds_too.corrupted_prob, Corruptor(CorruptionConfig(), 5).as_kinds(masks[:2], ["over", "holes"]).corrupted_prob
    )
