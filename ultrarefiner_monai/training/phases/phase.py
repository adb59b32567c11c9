"""What a phase is: its networks, its data, its loss and figures for a batch, and what it writes as its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.datasets.datalist import Split

# What a loader gives: tensors by name (``training.data.transforms``, ``training.data.refining``) and the images' ids.
Batch = dict[str, Any]
Loaders = tuple[DataLoader, DataLoader]  # training, selection


class Phase(ABC):
    """One training phase. ``network`` holds everything that is trained or averaged.

    The loop (``training.loop.engine``) calls, in this order: ``loaders``, ``begin``, then for each epoch ``start_epoch``,
    ``losses`` for each batch, ``figures`` for each batch of selection images, ``judge``, ``save``, ``pictures``.
    """

    config: TrainConfig
    network: nn.Module
    # Whether automatic results change with what is learnt, so that their post-processing is chosen anew at the run's end.
    calibrates: bool = True

    @abstractmethod
    def loaders(self, split: Split, out: Path) -> Loaders:
        """What the phase trains on, and what its epochs are judged by. out: the run's folder, to keep features in."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: ``params``, ``lr`` and, where rates are shown by it, a ``name``.

        Also parts that stand still in the first epochs are in them from the start.
        """

    @abstractmethod
    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Scalars by name; ``loss`` is the one to minimise. network: ``self.network``."""

    @abstractmethod
    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """(n,) tensors by name, per image; ``select`` is what the best epoch has most of. network: may be an average."""

    @abstractmethod
    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        """Write the result, a checkpoint with ``meta``. network: may be an average."""

    # --- what a phase may do besides ----------------------------------------------------------------------------------

    def begin(self, selection: DataLoader) -> None:
        """Called once, before the first step, with the start weights in place and the network on its device."""
        return

    def start_epoch(self, epoch: int) -> None:
        """Called before epoch 1, 2, …; may set requires_grad. Parts that train nothing stay in eval mode."""
        return

    def judge(self, epoch: int, figures: dict[str, float]) -> None:
        """Called after each validation with the means of ``figures``, to warn of what goes wrong."""
        return

    def pictures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor] | None:
        """What is drawn of a batch: image, label and masks, all (B, 1, S, S) of one S; None: nothing is drawn."""
        return None
