"""Names for the parts of a system that make what is cached: equal parts find each other's results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import nn

from ultrarefiner_monai.config import SystemConfig, to_dict


def part_key(network: nn.Module | None, config: SystemConfig, names: Sequence[str]) -> str:
    """16 hexadecimal digits that stand for a network's tensors and the named options of ``config``."""
    options = to_dict(config)
    digest = hashlib.sha256(repr([(name, options[name]) for name in names]).encode())
    for name, value in sorted(network.state_dict().items()) if network is not None else ():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    return digest.hexdigest()[:16]
