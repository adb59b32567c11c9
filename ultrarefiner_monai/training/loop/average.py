"""The running mean of a network's weights."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler


class Average(EMAHandler):
    """ignite's, in which what stands still stays as it is, to the bit: a mean of two equal numbers may differ from both in its last
    bit, and adapters and kept parts are known by the exact weights beside them."""

    @torch.no_grad()
    def _update_ema_model(self, engine: Engine, name: str) -> None:
        momentum = getattr(engine.state, name)
        means = (*self.ema_model.parameters(), *self.ema_model.buffers())
        values = (*self.model.parameters(), *self.model.buffers())
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.copy_(torch.where(mean == value, value, mean.mul(1.0 - momentum).add(value, alpha=momentum)))
            else:
                mean.copy_(value)
