"""The letterbox: there and back for images, points and boxes, on any shape, with gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrarefiner_monai.core.geometry import Letterbox, resize

SIDES = st.integers(1, 90)


@given(SIDES, SIDES, st.sampled_from([16, 32, 64]))
@settings(max_examples=60, deadline=None)
def test_points_and_boxes_come_back(height: int, width: int, size: int) -> None:
    box = Letterbox(height, width, size)
    points = torch.rand(5, 2, dtype=torch.float64) * torch.tensor([width, height]) - 0.5
    assert torch.allclose(box.points_back(box.points(points)), points, atol=1e-9)
    boxes = torch.rand(3, 4, dtype=torch.float64) * 20
    assert torch.allclose(box.boxes_back(box.boxes(boxes)), boxes, atol=1e-9)


@given(SIDES, SIDES)
@settings(max_examples=40, deadline=None)
def test_square_holds_the_image_and_zero_padding(height: int, width: int) -> None:
    box = Letterbox(height, width, 32)
    square = box.apply(torch.ones(1, 1, height, width))
    rows, columns = box.inner_hw
    assert square.shape == (1, 1, 32, 32)
    assert torch.allclose(square[..., :rows, :columns], torch.ones(1, 1, rows, columns), atol=1e-5)
    assert square.sum().item() == pytest.approx(rows * columns, rel=1e-4)
    assert box.invert(square).shape == (1, 1, height, width)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (500, 333)])
def test_a_point_lands_on_its_pixel(shape: tuple[int, int]) -> None:
    """A bright disc's centre of mass is where the mapped centre says, to a fraction of a pixel."""
    height, width = shape
    x0, y0 = 0.6 * width, 0.4 * height
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (((x - x0) ** 2 + (y - y0) ** 2) < (min(shape) / 6) ** 2).float()[None, None]
    box = Letterbox(height, width, 128)
    square = box.apply(disc)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    centre = torch.stack([(square * columns).sum(), (square * rows).sum()]) / square.sum()
    pixels = disc[0, 0]
    own = torch.stack([(pixels * x).sum(), (pixels * y).sum()]) / pixels.sum()
    assert torch.allclose(box.points(own), centre, atol=0.06)


def test_round_trip_of_a_smooth_image_changes_little() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 3, 70), torch.linspace(0, 3, 120), indexing="ij")
    image = (0.5 + 0.5 * torch.sin(x) * torch.cos(y))[None, None]
    box = Letterbox(70, 120, 96)
    assert (box.invert(box.apply(image)) - image).abs().max() < 0.03


def test_gradient_passes_both_ways() -> None:
    image = torch.rand(1, 1, 20, 37, dtype=torch.float64, requires_grad=True)
    box = Letterbox(20, 37, 16)
    assert torch.autograd.gradcheck(lambda x: box.invert(box.apply(x)), (image,), atol=1e-5)


def test_shrinking_is_antialiased() -> None:
    stripes = (torch.arange(64) % 2).float().expand(64, 64)[None, None]
    assert (resize(stripes, 16, 16) - 0.5).abs().max() < 0.1  # without antialiasing whole stripes would survive


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 10, 20\), got \(1, 1, 20, 10\)"):
        Letterbox(10, 20, 16).apply(torch.zeros(1, 1, 20, 10))
    with pytest.raises(ValueError, match="positive"):
        Letterbox(0, 3, 16)
