"""Where games of clicks start: missed lesions, and coarse masks mended by the clicks as in serving."""

from __future__ import annotations

import numpy as np
import torch

from ultrarefiner_monai.clicks import DOUBTED, SURE, UNLIKELY, mend
from ultrarefiner_monai.config import CoarseConfig, PostConfig, PromptConfig, SamConfig, SystemConfig
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam import build_sam
from ultrarefiner_monai.training.clicked import mended, missed
from ultrarefiner_monai.training.simulate import as_prompts
from ultrarefiner_monai.types import Clicks, Prompts

SIDE = 32  # M of a 128 px SAM
POST = PostConfig(min_area=0.0)


def disc(x: float, y: float, radius: float, side: int = SIDE) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.float32)


def refiner(mend_clicks: bool = True) -> Refiner:
    prompts = PromptConfig(mend=mend_clicks)
    config = SystemConfig(CoarseConfig("compact"), SamConfig("compact", image_size=128), prompts=prompts, post=POST)
    assert config.sam is not None
    return Refiner(build_sam(config.sam), config)


def test_a_denied_component_is_doubted_a_begun_one_sure_and_the_rest_unlikely() -> None:
    prob = 0.9 * disc(8, 8, 4) + 0.3 * disc(24, 24, 3)
    _, only_denied = mend(prob, Clicks(background_xy=((8, 8),)), POST)
    assert np.allclose(only_denied[disc(8, 8, 4) > 0], DOUBTED) and only_denied.max() < 0.5
    mask, both = mend(prob, Clicks(foreground_xy=((24, 24),), background_xy=((8, 8),)), POST)
    assert mask[24, 24] == 1 and mask[8, 8] == 0
    assert both[24, 24] >= SURE and np.isclose(both[8, 8], DOUBTED) and both[0, 0] <= UNLIKELY


def test_training_mends_as_serving_does() -> None:
    prob = 0.9 * disc(8, 8, 4) + 0.3 * disc(24, 24, 3)
    network = refiner()
    scale = network.image_size / SIDE
    given: list = [[(8, 8, 0), (24, 24, 1)], []]
    prompts = as_prompts(given, scale, None, torch.zeros(1))
    coarse = torch.from_numpy(np.stack([prob, prob]))[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    out = mended(network, coarse, prompts, SIDE)
    served = mend(prob, Clicks(foreground_xy=((24, 24),), background_xy=((8, 8),)), POST)[1]
    assert np.allclose(out[0, 0, 2::4, 2::4].numpy(), served, atol=0.2)  # between pixels' middles
    assert (out[0, 0, 32:36, 32:36] < 0.5).all() and (out[0, 0, 96:100, 96:100] > 0.5).all()
    assert torch.allclose(out[1], coarse[1], atol=0.5) and not torch.allclose(out[0], coarse[0], atol=0.4)
    assert mended(refiner(False), coarse, prompts, SIDE) is coarse


def test_careless_prompts_never_stop_a_training() -> None:
    """A negative click on a positive one's pixel, one at the border, a box beyond it and padding."""
    network = refiner()
    points = torch.tensor([[[20.0, 20.0], [20.2, 20.1], [127.9, -0.4], [0.0, 0.0]]])
    prompts = Prompts(points, torch.tensor([[1, 0, 1, -1]]), torch.tensor([[-400.0, -400.0, -300.0, -300.0]]))
    out = mended(network, torch.full((1, 1, 128, 128), 0.1), prompts, SIDE)
    assert out.shape == (1, 1, 128, 128) and torch.isfinite(out).all()


def test_missed_lesions_are_faint_and_false_alarms_lie_elsewhere() -> None:
    label = torch.from_numpy(np.stack([disc(8, 8, 4), disc(20, 14, 5)]))[:, None]
    coarse = label.repeat_interleave(4, 2).repeat_interleave(4, 3) * 0.95
    before = coarse.clone()
    inside = coarse > 0.5
    alarms = 0
    for seed in range(8):
        out = missed(coarse, label, 1.0, np.random.default_rng(seed))
        assert out[inside].max() < 0.5
        alarms += int((out[~inside] > 0.5).any())
        assert torch.equal(missed(coarse, label, 0.0, np.random.default_rng(seed)), coarse)
    assert 0 < alarms and torch.equal(coarse, before)
