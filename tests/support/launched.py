"""``ultrarefiner`` with a small coarse network that two processes and one train alike: no batch norm, no dropout.

Started by test_ddp.py through torchrun.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from ultrarefiner_monai.models import checkpoints
from ultrarefiner_monai.training.phases import coarse, networks


def small(_config: object) -> nn.Module:
    """(B, 1, S, S) -> (B, 2, S, S)."""
    return nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 5, padding=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    coarse.build_coarse = checkpoints.build_coarse = networks.build_coarse = small  # type: ignore[assignment]
    if os.environ.get("BREAK_RANK") == os.environ["RANK"]:
        losses = coarse.CoarsePhase.losses
        coarse.CoarsePhase.losses = lambda s, n, b: {"loss": losses(s, n, b)["loss"] * float("nan")}  # type: ignore
    from ultrarefiner_monai.cli import main

    main()
