"""A SAM over a tiny SAM 3 vision tower of random weights."""

from __future__ import annotations

from torch import nn

from ultrarefiner_monai.config import SamConfig, TowerConfig

TINY = TowerConfig(
    width=16, depth=2, heads=2, mlp_width=24, window=4, global_blocks=(1,), channels=256, position_side=4
)
SMALL = SamConfig(arch="sam3", image_size=112, tower=TINY)


def tower(sam: nn.Module) -> nn.Module:
    """transformers' part of it."""
    return sam.image_encoder.backbone.tower  # type: ignore[union-attr,return-value]
