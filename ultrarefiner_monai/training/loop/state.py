"""The file from which an interrupted run goes on: tensors and plain values, written beside its place and renamed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ultrarefiner_monai.config import ConfigError, MachinesConfig, TrainConfig, from_dict, to_dict
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.training.data.acquisition_ranges import Ranges

# Options that change nothing in what is computed for an epoch, so that a run may go on with others.
FREE = ("epochs", "tracking", "mlflow_uri", "overlays", "validate_every", "calibrate")

# Options that are none any more, and what is done in their place: a run that was begun with that goes on.
GONE: dict[str, Any] = {
    "data.normal_share": None,
    "loss.teacher_weight": 1.0,
    **{f"data.machines.{k}": v for k, v in vars(Ranges()).items() if k not in vars(MachinesConfig())},
}
GONE_AND_FREE = ("refine.cache_gb", "joint.warn_drop", "overlay_every")  # whatever they were


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


def check_resumable(path: Path, config: TrainConfig) -> None:
    """Raise InputError unless the state at ``path`` can go on with ``config``."""
    check_same_options(path, load_state(path)["config"], config)


def check_same_options(path: Path, stored: dict[str, Any], config: TrainConfig) -> None:
    """Raise InputError unless ``stored``, a state's plain options, are those of ``config``, ``FREE`` ones apart.

    An option that did not exist when the state was written counts as its default. One that is none any more (``GONE``) has
    to have had the value that is fixed now, where it had a say.
    """
    try:
        before = to_dict(from_dict(TrainConfig, without_gone(path, stored)))
    except ConfigError as error:
        raise InputError(f"{path} is from another version of this package: {error}") from error
    own = to_dict(config)
    for options in (before, own):
        options["data"].pop("workers")  # what a machine has; images come out the same
    other = [k for k in own if k not in FREE and own[k] != before[k]]
    if other:
        raise InputError(f"{path} was trained with other options: {', '.join(other)} differ")


def without_gone(path: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """A state's plain options without those of ``GONE``. Raises InputError where one had another value than is fixed now and
    the run went by it."""
    out = copy.deepcopy(stored)
    for name in (*GONE, *GONE_AND_FREE):
        *groups, last = name.split(".")
        options: Any = out
        for group in groups:
            options = options.get(group) if isinstance(options, dict) else None
        if not isinstance(options, dict) or last not in options:
            continue
        value, fixed = options.pop(last), GONE.get(name)
        same = list(value) == list(fixed) if isinstance(fixed, tuple) else value == fixed
        if name in GONE and not same and _had_a_say(name, stored):
            raise InputError(f"{path} was trained with {name}: {value}, which is fixed at {fixed} now: begin a new run")
    return out


def _had_a_say(name: str, stored: dict[str, Any]) -> bool:
    """Whether a run with these plain options computed anything else because of the option ``name`` of ``GONE``."""
    if name.startswith("data.machines."):
        return stored["data"].get("augment") == "machines"
    if name == "loss.teacher_weight":
        return bool(stored["loss"].get("teachers"))
    return True
