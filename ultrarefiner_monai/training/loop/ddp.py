"""Several processes, one training: what differs between ``torchrun`` and a plain run, in one place.

Every process reads the same configuration, trains on its share of each batch and validates its share of the images;
process 0 alone writes. In a plain run all of this does nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ultrarefiner_monai.training.phases.phase import Batch, Phase


@contextmanager
def group(device: str) -> Iterator[str]:
    """Within it this process belongs to torchrun's group, if it runs under torchrun; yields the device to use.

    device: cpu or cuda; each process of a machine gets a GPU of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process_share() -> tuple[int, int]:
    """(this process, number of processes) of a training by torchrun; (0, 1) for any other."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return process_share()[0]


def count() -> int:
    """How many processes train together."""
    return process_share()[1]


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def wait() -> None:
    """Until every process has come here."""
    if count() > 1:
        dist.barrier()


def gathered(value: Any, device: torch.device) -> list[Any]:
    """``value`` of every process, in their order: plain values that JSON holds (NaN too)."""
    if count() == 1:
        return [value]
    own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count())]
    dist.all_gather(lengths, torch.tensor([len(own)], device=device))
    longest = max(int(n) for n in lengths)
    parts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(count())]
    dist.all_gather(parts, nn.functional.pad(own, (0, longest - len(own))))
    return [json.loads(bytes(part[: int(n)].tolist())) for part, n in zip(parts, lengths)]


def same_buffers(network: nn.Module) -> None:
    """Give every process the running statistics of process 0, so that all validate one and the same network."""
    if count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


class Losses(nn.Module):
    """A phase's losses as one ``forward``: DistributedDataParallel acts in forward only, whatever a phase calls."""

    def __init__(self, phase: Phase, network: nn.Module) -> None:
        super().__init__()
        self.phase, self.network = phase, network

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The phase's scalars by name. Only ``loss`` carries a gradient."""
        losses = self.phase.losses(self.network, batch)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


def distributed(phase: Phase, network: nn.Module, device: torch.device) -> nn.Module:
    """``Losses`` whose gradients are averaged over the processes. To be made again when ``requires_grad`` changes."""
    losses = Losses(phase, network)
    if count() == 1:
        return losses
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(losses, device_ids=devices, find_unused_parameters=True)


def without_sync(losses: nn.Module) -> Any:
    """A context in which gradients stay with their process: for the steps of an accumulation but its last."""
    return losses.no_sync() if isinstance(losses, DistributedDataParallel) else nullcontext()
