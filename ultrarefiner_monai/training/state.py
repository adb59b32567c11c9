"""The file from which an interrupted run goes on: tensors and plain values, written beside its place and renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.types import InputError


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that ``path`` holds either the old or the new state, also on a full disk."""
    with replacing(path) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote, without unpickling. Raises InputError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise InputError(f"{path} is not a readable training state: {error}") from error
    missing = {"network", "optimiser", "schedule", "epoch", "best", "config"} - set(state)
    if missing:
        raise InputError(f"{path} is not a training state: it lacks {', '.join(sorted(missing))}")
    return state
