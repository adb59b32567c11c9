"""A champion with tiny networks, and labelled phantoms as it sees them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ultrarefiner_monai.config import CoarseConfig, SamConfig, SystemConfig
from ultrarefiner_monai.learning.quick.samples import Sample, sample_of
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.pipeline.predictor import Predictor

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
SAM = SamConfig(
    arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, window_size=2, global_attn_indexes=(0,)
)


def champion(seed: int = 0, sam: bool = True) -> System:
    torch.manual_seed(seed)
    config = SystemConfig(coarse=COARSE, sam=SAM if sam else None)
    coarse = build_coarse(COARSE).eval().requires_grad_(False)
    refiner = Refiner(build_sam(SAM), config).eval().requires_grad_(False) if sam else None
    return System(config, coarse, refiner, f"{seed:012x}")


@lru_cache
def pictures(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, label) of dark discs on speckle, (40, 56)."""
    rng, out = np.random.default_rng(0), []
    rows, columns = np.ogrid[:40, :56]
    for _ in range(count):
        y, x, r = rng.uniform(12, 28), rng.uniform(14, 42), rng.uniform(5, 9)
        label = (rows - y) ** 2 + (columns - x) ** 2 < r**2
        image = np.where(label, 0.2, 0.6) + rng.normal(scale=0.1, size=label.shape)
        out.append((image.clip(0, 1).astype(np.float32), label.astype(np.uint8)))
    return out


def samples(system: System, count: int) -> list[Sample]:
    predictor = Predictor(system)
    return [sample_of(predictor, f"i{k}", f"g{k}", *pair) for k, pair in enumerate(pictures(count))]
