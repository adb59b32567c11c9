"""Where games of clicks start, and what a refiner is asked for then."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import RefineConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.pipeline.refine import refine
from ultrarefiner_monai.training.phases.clicked import loss_with_clicks, missed, users_prompts
from ultrarefiner_monai.training.phases.losses import RefinerLoss


def disc(x: float, y: float, radius: float, side: int = 32) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.float32)


def test_missed_lesions_are_faint_and_false_alarms_lie_elsewhere() -> None:
    label = torch.from_numpy(np.stack([disc(8, 8, 4), disc(20, 14, 5)]))[:, None]
    coarse = resize(label, 128, 128) * 0.95
    before = coarse.clone()
    inside = resize(label, 128, 128) >= 0.5
    alarms = 0
    for seed in range(8):
        out = missed(coarse, label, 1.0, np.random.default_rng(seed))
        assert out[inside].max() < 0.5
        alarms += int((out[~inside] > 0.5).any())
        assert torch.equal(missed(coarse, label, 0.0, np.random.default_rng(seed)), coarse)
    assert 0 < alarms and torch.equal(coarse, before)


def test_the_loss_is_of_both_passes_of_what_a_click_does_when_served() -> None:
    sam = SamConfig(
        arch="compact", image_size=64, embed_dim=32, depth=1, num_heads=2, window_size=3, global_attn_indexes=(0,)
    )
    torch.manual_seed(0)
    refiner, options = Refiner(build_sam(sam), SystemConfig(sam=sam)), RefineConfig(missed_share=0.0)
    label = torch.from_numpy(np.stack([disc(8, 7, 3, 16), disc(5, 9, 4, 16)]))[:, None]
    coarse = resize(label.flip(-1), 64, 64) * 0.9
    frame = (refiner.embed(torch.rand(2, 1, 64, 64)).detach(), coarse, [(64, 64), (50, 64)])
    loss_of = RefinerLoss(0.5)
    loss, output = loss_with_clicks(refiner, frame, label, loss_of, options, np.random.default_rng(5))
    prompts = users_prompts(refiner, frame, label >= 0.5, options, _after_missed(label, 5))
    served = refine(refiner, refiner.config, frame[0], coarse, prompts, valid_hw=frame[2])
    assert torch.equal(output.refined_prob, served.refined_prob) and served.first_logits is not None
    first, second = loss_of(served.first_logits, label), loss_of(served.refined_logits, label)
    w = options.first_pass_weight
    assert w > 0 and first.item() != second.item()
    assert loss.item() == pytest.approx(((second + w * first) / (1 + w)).item(), rel=1e-6)


def _after_missed(label: torch.Tensor, seed: int) -> np.random.Generator:
    """A generator as ``missed`` leaves it where it changes nothing."""
    rng = np.random.default_rng(seed)
    missed(resize(label, 64, 64), label, 0.0, rng)
    return rng
