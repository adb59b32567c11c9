"""Other machines and settings: geometry, grey values, shadows; as one chain and one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import ConfigError, DataConfig, TrainConfig, from_dict, to_dict
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.training.data.acquisition import machine_steps
from ultrarefiner_monai.training.data.acquisition_looks import RandGreyMapd, RandResolutiond, blur
from ultrarefiner_monai.training.data.acquisition_ranges import Ranges, ranges
from ultrarefiner_monai.training.data.acquisition_warp import RandFieldOfViewd
from ultrarefiner_monai.training.data.random_image import picture_area
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL, augmentation, to_square

SIZE = 96
SHARES = [name for name in vars(Ranges()) if name.endswith("_share")]
ALWAYS = replace(Ranges(), **{name: 1.0 for name in SHARES if name != "clean_share"}, clean_share=0.0)
NEVER = replace(Ranges(), **dict.fromkeys(SHARES, 0.0))


def phantom(kind: str = "benign", size: int = SIZE, shape: tuple[int, int] = (90, 130)) -> dict[str, torch.Tensor]:
    made = make_phantom(np.random.default_rng(3), *shape, kind)  # type: ignore[arg-type]
    label = to_square(made.mask.astype(np.float32), size) >= 0.5
    return {IMAGE: to_square(made.image / np.float32(255), size), LABEL: label.float()}


def disc(size: int, row: float, column: float, radius: float) -> torch.Tensor:
    at = torch.arange(size, dtype=torch.float32)
    return (((at[:, None] - row) ** 2 + (at - column) ** 2) <= radius**2).float()[None]


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", ["benign", "malignant", "none"])
def test_shapes_ranges_and_a_seed_decides(kind: str, soft: bool) -> None:
    data = phantom(kind)
    if soft:
        data[LABEL] = torch.cat([data[LABEL], 0.7 * data[LABEL]])
    before = {k: v.clone() for k, v in data.items()}
    chain = augmentation("machines", SIZE, soft, echogenicity=0.5, machines=ALWAYS)
    seen = []
    for seed in (0, 1, 2, 3, 4, 5, 0):
        chain.set_random_state(seed=seed)
        out = chain(dict(data))
        image, label = out[IMAGE], out[LABEL]
        assert type(image) is torch.Tensor and image.dtype == label.dtype == torch.float32
        assert image.shape == data[IMAGE].shape and label.shape == data[LABEL].shape
        assert torch.isfinite(image).all() and 0 <= image.min() and image.max() <= 1
        assert 0 <= label.min() and label.max() <= 1
        if not soft:
            assert set(label.unique().tolist()) <= {0.0, 1.0}
        assert bool((label[0] >= 0.5).any()) == (kind != "none")
        seen.append((image, label))
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[-1]))
    assert not torch.equal(seen[0][0], seen[1][0])
    assert all(torch.equal(data[k], before[k]) for k in before)  # the kept sample is not drawn into


def test_switched_off_it_changes_nothing() -> None:
    data = phantom()
    chain = augmentation("machines", SIZE, machines=NEVER)
    for seed in range(5):
        chain.set_random_state(seed=seed)
        out = chain(dict(data))
        assert torch.equal(out[IMAGE], data[IMAGE]) and torch.equal(out[LABEL], data[LABEL])


@pytest.mark.parametrize("at", range(1, 9))
def test_each_part_alone_changes_the_image_and_never_the_label(at: int) -> None:
    parts = [*machine_steps(ALWAYS, IMAGE, LABEL)[1].transforms[1].transforms]  # type: ignore[attr-defined]
    part, data = parts[at - 1], phantom(shape=(130, 80))
    part.set_random_state(seed=at)
    out = part(dict(data))
    assert not torch.equal(out[IMAGE], data[IMAGE]) and out[IMAGE].shape == data[IMAGE].shape
    assert torch.equal(out[LABEL], data[LABEL])
    assert torch.isfinite(out[IMAGE]).all() and 0 <= out[IMAGE].min() and out[IMAGE].max() <= 1


def test_image_and_label_move_alike() -> None:
    move = RandFieldOfViewd(IMAGE, LABEL, ALWAYS)
    for seed in range(30):
        shape = disc(SIZE, 40, 55, 14)
        move.set_random_state(seed=seed)
        out = move({IMAGE: shape.clone(), LABEL: torch.cat([shape, shape])})
        moved, label = out[IMAGE][0] >= 0.5, out[LABEL] >= 0.5
        assert label[0].any() and dice(moved, label[0]) > 0.9 and torch.equal(label[0], label[1])


def test_a_lesion_is_never_lost() -> None:
    """Down to one pixel, and at the border, where shifts and crops would cut it away."""
    wild = replace(ALWAYS, shift=0.5, zoom=(0.4, 3.0))
    move = RandFieldOfViewd(IMAGE, LABEL, wild)
    for seed in range(40):
        move.set_random_state(seed=seed)
        for lesion in (disc(SIZE, 2, 50, 0.1), disc(SIZE, 90, 4, 6), disc(SIZE, 48, 48, 30)):
            image = torch.full((1, SIZE, SIZE), 0.4)
            assert (move({IMAGE: image, LABEL: lesion})[LABEL] >= 0.5).any()
        assert not move({IMAGE: image, LABEL: torch.zeros(1, SIZE, SIZE)})[LABEL].any()


def test_zoom_goes_both_ways_and_shapes_change() -> None:
    move, lesion = RandFieldOfViewd(IMAGE, LABEL, replace(ALWAYS, crop_share=0.0)), disc(SIZE, 48, 48, 10)
    areas = []
    for seed in range(60):
        move.set_random_state(seed=seed)
        areas.append(float(move({IMAGE: 0.5 * torch.ones(1, SIZE, SIZE), LABEL: lesion})[LABEL].sum() / lesion.sum()))
    assert min(areas) < 0.6 and max(areas) > 1.7


def test_a_crop_fills_the_frame_and_cuts_the_skin_line() -> None:
    still = replace(NEVER, warp_share=1.0, crop_share=1.0, rotate=0, shear=0, shift=0, zoom=(1, 1), aspect=(1, 1))
    move, lost = RandFieldOfViewd(IMAGE, LABEL, still), 0
    for seed in range(20):
        image = torch.zeros(1, SIZE, SIZE)
        image[:, :60] = 0.4
        image[:, :4] = 1.0  # the skin line
        move.set_random_state(seed=seed)
        out = move({IMAGE: image, LABEL: torch.zeros(1, SIZE, SIZE)})[IMAGE][0]
        assert (out[:, [1, -2]] > 0.3).any(0).all()  # from the left to the right side
        lost += not bool((out > 0.9).any())
    assert 5 <= lost < 20


def test_black_surroundings_stay_black_and_a_cyst_belongs_to_the_picture() -> None:
    image = torch.zeros(SIZE, SIZE)
    image[20:70, 10:90] = 0.5
    image[40:50, 30:50] = 0.0
    area = picture_area(image)
    assert area[42:48, 32:48].all() and not area[:18].any() and not area[75:].any()
    bright = RandGreyMapd(IMAGE, replace(ALWAYS, dynamic_range=(0.6, 0.6)))
    lifted = 0
    for seed in range(12):
        bright.set_random_state(seed=seed)
        out = bright({IMAGE: image[None]})[IMAGE][0]
        assert not out[:18].any()
        lifted += bool(out[45, 40] > 0.05)
    assert 0 < lifted < 12


def test_a_grey_map_does_not_turn_back() -> None:
    ramp = torch.linspace(0.001, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    grey = RandGreyMapd(IMAGE, ALWAYS)
    for seed in range(20):
        grey.set_random_state(seed=seed)
        assert (grey({IMAGE: ramp[None]})[IMAGE].flatten().diff() >= 0).all()


@pytest.mark.parametrize("size", [96, 352])
def test_blur_keeps_the_mean_and_has_its_direction(size: int) -> None:
    """Below and above the size at which the way to compute it changes."""
    image = torch.zeros(size, size)
    image[size // 2, size // 2] = 1.0
    for axis in (0, 1):
        out = blur(image, *((2.0, 0.0) if axis == 0 else (0.0, 2.0)))
        assert float(out.sum()) == pytest.approx(1, abs=1e-4)
        spread = out.sum(1 - axis)
        at = torch.arange(size) - size // 2
        assert float((spread * at**2).sum()) == pytest.approx(4, rel=0.1)
        assert int((out > 0).sum(axis).max()) > 5 and int((out > 0).sum(1 - axis).max()) == 1
    assert torch.allclose(blur(torch.full((size, size), 0.3), 3, 3), torch.full((size, size), 0.3), atol=1e-5)


def test_resolution_changes_detail_both_ways() -> None:
    change, data = RandResolutiond(IMAGE, ALWAYS), phantom()
    rough = []
    for seed in range(20):
        change.set_random_state(seed=seed)
        rough.append(float(change(dict(data))[IMAGE].diff().abs().mean() / data[IMAGE].diff().abs().mean()))
    assert min(rough) < 0.8 and max(rough) > 1.15


def test_some_images_keep_their_grey_values() -> None:
    chain = augmentation("machines", SIZE, machines=replace(ALWAYS, warp_share=0, flip_share=0, clean_share=0.15))
    data, same = phantom(), 0
    for seed in range(100):
        chain.set_random_state(seed=seed)
        same += torch.equal(chain(dict(data))[IMAGE], data[IMAGE])
    assert 5 <= same <= 28


def test_the_configuration_says_what_is_wrong() -> None:
    for bad, word in (
        ({"clean_share": 1.5}, "clean_share"),
        ({"marks_at_lesion": -0.1}, "marks_at_lesion"),
        ({"zoom": [0.5, 2]}, "machines.zoom"),
        ({"colour": 1}, "colour"),
    ):
        with pytest.raises(ConfigError, match=word):
            from_dict(DataConfig, {"augment": "machines", "machines": bad})
    config = from_dict(TrainConfig, {"data": {"augment": "machines", "machines": {"marks_share": 0.7}}})
    assert from_dict(TrainConfig, to_dict(config)) == config
    assert ranges(config.data.machines) == Ranges(marks_share=0.7)
    with pytest.raises(ValueError, match="machines"):
        augmentation("other")
