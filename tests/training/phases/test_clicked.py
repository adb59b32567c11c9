"""Where games of clicks start: lesions that were missed."""

from __future__ import annotations

import numpy as np
import torch

from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.training.phases.clicked import missed


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
