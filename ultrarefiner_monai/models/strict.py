"""Why a state dict does not fit a network, in one wording for every kind of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def misfits(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Missing, unexpected and misshapen keys of ``state`` against a network's ``own``, in words; empty when it fits."""
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    named = (
        ("missing", sorted(own.keys() - state.keys())),
        ("unexpected", sorted(state.keys() - own.keys())),
        ("of another shape", shapes),
    )
    return [f"{len(keys)} {what}: {some(keys)}" for what, keys in named if keys]


def some(keys: list[str]) -> str:
    """The first keys of a list, for a message."""
    return ", ".join(keys[:5]) + (" ..." if len(keys) > 5 else "")
