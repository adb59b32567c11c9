"""What an iteration of training does: the loss in the chosen precision, gradients of some batches added up, one step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ultrarefiner_monai.config import OptimiserConfig, TrainConfig
from ultrarefiner_monai.training.data.transforms import ID
from ultrarefiner_monai.training.loop import ddp
from ultrarefiner_monai.training.phases.phase import Batch, Phase

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why (the batch's images, the file that could not be written)."""


class Steps:
    """A phase's network with all that changes it: optimiser, schedule, scaler. Called by the trainer for each batch."""

    def __init__(self, phase: Phase, config: TrainConfig, batches: int, device: torch.device) -> None:
        """batches: of an epoch, for this process."""
        self.phase, self.config, self.device = phase, config, device
        self.network = phase.network.to(device)
        if device.type == "cpu":
            self.network.to(memory_format=torch.channels_last)  # mkldnn's convolutions are faster so
        self._losses: nn.Module = ddp.distributed(phase, self.network, device)
        self._trainable: tuple[bool, ...] = tuple(p.requires_grad for p in self.network.parameters())
        self._frozen = frozen_parts(self.network)
        self.optimiser = build_optimiser(config.optimiser, phase.parameter_groups())
        self.accumulation = Accumulation(batches, config.optimiser.accumulate)
        self._schedule = build_schedule(config.optimiser, self.optimiser, config.epochs, self.accumulation.steps)
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")

    def autocast(self) -> torch.autocast:
        """A context in which networks compute in ``amp``'s precision."""
        amp = self.config.amp
        dtype = DTYPES.get(("bf16" if self.device.type == "cuda" else "off") if amp == "auto" else amp)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def to_device(self, batch: Batch) -> Batch:
        """The batch with its tensors on the device."""
        return {k: v.to(self.device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}

    def start_epoch(self, epoch: int) -> None:
        """Tell the phase, which may freeze or thaw parts."""
        self.phase.start_epoch(epoch)
        trainable = tuple(p.requires_grad for p in self.network.parameters())
        if trainable != self._trainable:
            self._trainable, self._frozen = trainable, frozen_parts(self.network)
            self._losses = ddp.distributed(self.phase, self.network, self.device)

    def __call__(self, engine: Engine, batch: Batch) -> dict[str, float]:
        """The batch's scalars by name. Raises TrainingError for a loss that is not finite."""
        # Dropout depends on (seed, iteration, process) alone, so that a resumed run goes on as if it had never stopped.
        torch.manual_seed((self.config.seed * 1_000_003 + engine.state.iteration) + ddp.rank() * 1_000_000_007)
        self.network.train()
        for part in self._frozen:
            part.eval()
        steps, share = self.accumulation.at(engine.state.iteration)
        with nullcontext() if steps else ddp.without_sync(self._losses):
            with self.autocast():
                losses = self._losses(self.to_device(batch))
            if not torch.isfinite(losses["loss"]):
                raise TrainingError(
                    f"the loss became {losses['loss'].item()} in epoch {engine.state.epoch} on {', '.join(batch[ID])}; "
                    "the last good state is kept; look at these images or lower optimiser.lr"
                )
            self._scaler.scale(losses["loss"] / share).backward()
        if steps:
            self._update()
        return {name: value.item() for name, value in losses.items()}

    def _update(self) -> None:
        self._scaler.unscale_(self.optimiser)
        if self.config.optimiser.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimiser.clip_norm)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self._schedule.step()

    def rates(self) -> dict[str, float]:
        """The learning rate of each group, by its name or number."""
        return {str(g.get("name", k)): g["lr"] for k, g in enumerate(self.optimiser.param_groups)}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on; tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch},
            "scaler": self._scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        for group, rate in zip(self.optimiser.param_groups, self._schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * rate(self._schedule.last_epoch)
        self._scaler.load_state_dict(state["scaler"])


def frozen_parts(network: nn.Module) -> list[nn.Module]:
    """The largest parts of which no parameter is trained: they stay in eval mode, or norm statistics would move and
    dropout would blur what a frozen part computes."""
    parameters = list(network.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return [network]
    return [part for child in network.children() for part in frozen_parts(child)]


# --- optimiser and schedule -------------------------------------------------------------------------------------------


def build_optimiser(config: OptimiserConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; every group brings its own learning rate."""
    # Fused: a quarter of the time on a CPU, a twelfth of a refiner's step.
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def build_schedule(
    config: OptimiserConfig, optimiser: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """Factor on each group's learning rate, per step: linear warm-up, then poly, cosine or constant."""
    warmup, total = config.warmup_epochs * steps_per_epoch, max(1, epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
        if config.schedule == "poly":
            return (1 - progress) ** config.poly_power
        if config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    return LambdaLR(optimiser, factor)


@dataclass(frozen=True)
class Accumulation:
    """Which iterations step the optimiser when gradients of ``every`` batches are added up.

    An epoch of ``batches`` ends with a step, however many batches are left for it: nothing is carried into the next
    epoch, so a run that is resumed there has lost nothing.
    """

    batches: int
    every: int

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        return math.ceil(self.batches / self.every)

    def at(self, iteration: int) -> tuple[bool, int]:
        """(whether iteration 1, 2, … of the run ends with a step, how many batches share that step)."""
        place = (iteration - 1) % self.batches + 1
        last = self.batches % self.every
        share = last if place > self.batches - last else self.every
        return place % self.every == 0 or place == self.batches, share
