"""Means over an epoch, over images and processes, and for each set of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from ignite.engine import Engine, Events

from ultrarefiner_monai.training.loop import ddp

SELECT = "select"  # the figure that the best epoch has most of


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


def with_set(figures: Mapping[str, torch.Tensor], ids: Sequence[str]) -> dict[str, torch.Tensor]:
    """Figures of a batch whose images are called SET/ID, once more under names like ``coarse_dice[busi]``.

    The batch is of one set (``loading.plain_loader``); only Dice and the selection figure are told by set.
    """
    name = str(ids[0]).partition("/")[0]
    return {**figures, **{f"{k}[{name}]": v for k, v in figures.items() if k == SELECT or k.endswith("_dice")}}


def over_sets(figures: Mapping[str, float]) -> dict[str, float]:
    """The selection figure becomes the mean over the sets where there are several, so that no large set outvotes a small
    one."""
    own = [v for k, v in figures.items() if k.startswith(f"{SELECT}[") and not math.isnan(v)]
    return {**figures, SELECT: sum(own) / len(own)} if own else dict(figures)
