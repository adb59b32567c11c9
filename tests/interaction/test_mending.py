"""Coarse masks mended by clicks before the refiner sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ultrarefiner_monai.config import PostConfig, PromptConfig, SystemConfig
from ultrarefiner_monai.core.types import Clicks, Prompts
from ultrarefiner_monai.interaction.clicks import DOUBTED, SURE, UNLIKELY, mend
from ultrarefiner_monai.interaction.mending import mended

SIDE, SIZE = 32, 128
POST = PostConfig(min_area=0.0)
CONFIG = SystemConfig(post=POST)


def disc(x: float, y: float, radius: float, side: int = SIDE) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.float32)


def test_a_denied_component_is_doubted_a_begun_one_sure_and_the_rest_unlikely() -> None:
    prob = 0.9 * disc(8, 8, 4) + 0.3 * disc(24, 24, 3)
    only_denied = mend(prob, Clicks(background_xy=((8, 8),)), POST)
    assert np.allclose(only_denied[disc(8, 8, 4) > 0], DOUBTED) and only_denied.max() < 0.5
    both = mend(prob, Clicks(foreground_xy=((24, 24),), background_xy=((8, 8),)), POST)
    assert both[24, 24] >= SURE and np.isclose(both[8, 8], DOUBTED) and both[0, 0] <= UNLIKELY


def test_mending_happens_at_a_quarter_of_the_frame_for_items_that_have_clicks() -> None:
    prob = 0.9 * disc(8, 8, 4) + 0.3 * disc(24, 24, 3)
    places = torch.tensor([[8.0, 8.0], [24.0, 24.0]]) * 4 + 1.5
    prompts = Prompts(places.expand(2, 2, 2), torch.tensor([[0, 1], [-1, -1]]))
    coarse = torch.from_numpy(np.stack([prob, prob]))[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    out = mended(coarse, prompts, CONFIG)
    served = mend(prob, Clicks(foreground_xy=((24, 24),), background_xy=((8, 8),)), POST)
    # But for the blur of two resizings at outlines:
    assert np.abs(out[0, 0, 2::4, 2::4].numpy() - served).mean() < 0.02
    assert (out[0, 0, 32:36, 32:36] < 0.5).all() and (out[0, 0, 96:100, 96:100] > 0.5).all()
    assert torch.equal(out[1], coarse[1]) and coarse[0, 0, 33, 33] > 0.8
    without = replace(CONFIG, prompts=PromptConfig(mend=False))
    assert mended(coarse, prompts, without) is coarse


def test_careless_prompts_never_stop_a_training() -> None:
    """A negative click on a positive one's pixel, one at the border, a box beyond it and padding."""
    points = torch.tensor([[[20.0, 20.0], [20.2, 20.1], [127.9, -0.4], [0.0, 0.0]]])
    prompts = Prompts(points, torch.tensor([[1, 0, 1, -1]]), torch.tensor([[-400.0, -400.0, -300.0, -300.0]]))
    out = mended(torch.full((1, 1, SIZE, SIZE), 0.1), prompts, CONFIG)
    assert out.shape == (1, 1, SIZE, SIZE) and torch.isfinite(out).all()
