"""The coarse network from its configuration: the one place that knows which class its ``arch`` means. SAM has ``build_sam``
in ``models/sam/network.py``."""

from __future__ import annotations

from torch import nn

from ultrarefiner_monai.config import CoarseConfig


def build_coarse(config: CoarseConfig) -> nn.Module:
    """A coarse network with random weights: (B, 1, S, S) in [0, 1] -> coarse_logits (B, 2, S, S)."""
    if config.arch == "compact":
        from ultrarefiner_monai.models.coarse.compact import CompactCoarse

        return CompactCoarse(config)
    from ultrarefiner_monai.models.coarse.transunet import build_transunet

    return build_transunet(config.arch, config.image_size, config.num_classes, config)
