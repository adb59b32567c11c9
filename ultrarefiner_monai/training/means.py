"""Means over an epoch, over images and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events

from ultrarefiner_monai.training import ddp


class Means:
    """Means over an epoch of what each iteration gives by name: a scalar, or (n,) values of which n may be 0.

    NaN counts as not there. The means are over the batches (or images) of all processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._sums.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.add(e.state.output))

    def add(self, output: Mapping[str, float | torch.Tensor]) -> None:
        for name, value in output.items():
            values = torch.as_tensor(value, dtype=torch.float64).flatten()
            values = values[~values.isnan()]
            sums = self._sums.setdefault(name, [0.0, 0])
            sums[0] += float(values.sum())
            sums[1] += len(values)

    def compute(self) -> dict[str, float]:
        totals: dict[str, list[float]] = {}
        for sums in ddp.gathered(self._sums, self.device):
            for name, (total, number) in sums.items():
                old = totals.get(name, [0.0, 0])
                totals[name] = [old[0] + total, old[1] + number]
        return {name: total / number if number else math.nan for name, (total, number) in totals.items()}
