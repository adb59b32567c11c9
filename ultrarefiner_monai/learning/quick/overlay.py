"""A quick model: tuned tensors on top of the champion, in a file of their own, and the system that both make together.

models/quick-N.safetensors holds the tensors by their names in a checkpoint, and in its metadata the version of the champion
that they were tuned on (``base``); on any other they are refused. Nothing of training is imported: serving loads it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ultrarefiner_monai.core.files import replacing, sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.models.refiner import Refiner

Tensors = dict[str, torch.Tensor]
FORMAT = "ultrarefiner-quick-1"


def refiner_of(champion: System) -> Refiner:
    """Its refiner; InputError where it has none that reads kept embeddings of whole images."""
    refiner = champion.refiner
    if not isinstance(refiner, Refiner) or refiner.config.refiner.roi:
        raise InputError("this model has no refiner that can be tuned on kept embeddings")
    return refiner


def overlaid(refiner: Refiner, tensors: Tensors) -> Refiner:
    """A refiner with some tensors (by their names in a checkpoint) of its own; its image encoder is that of ``refiner``,
    not a copy. Raises InputError for tensors that do not fit."""
    shared = {id(refiner.sam.image_encoder): refiner.sam.image_encoder, id(refiner.config): refiner.config}
    own = copy.deepcopy(refiner, shared)
    state = own.state_dict()
    for name, value in tensors.items():
        if name not in state or state[name].shape != value.shape:
            raise InputError(f"{name} does not fit this refiner")
        state[name].copy_(value)
    return own


def towards(refiner: Refiner, tensors: Tensors, share: float) -> Tensors:
    """The refiner's own values of ``tensors``, moved by ``share`` of the way towards these: 0 is the refiner itself."""
    state = refiner.state_dict()
    return {name: state[name].detach().cpu().float().lerp(value, share) for name, value in tensors.items()}


def with_tensors(champion: System, tensors: Tensors, version: str) -> System:
    """The champion with tuned tensors; all that they leave alone is shared, not copied. version: as replies report it."""
    assert isinstance(champion.refiner, Refiner)
    refiner = overlaid(champion.refiner, tensors).eval().requires_grad_(False)
    return replace(champion, refiner=refiner, version=version)


def write_quick(path: Path, tensors: Tensors, base: str, facts: dict[str, Any]) -> Path:
    """Write a quick model beside its place and rename it there. base: the champion's version. facts: plain values."""
    metadata = {"format": FORMAT, "base": base, "facts": json.dumps(facts)}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path) as file:
        save_file({name: value.contiguous() for name, value in tensors.items()}, file.name, metadata)
    return path


def read_quick(path: Path) -> tuple[Tensors, str, dict[str, Any]]:
    """(tensors, base, facts) of what ``write_quick`` wrote. Raises InputError for anything else, and for numbers that are not
    finite."""
    if not path.is_file():
        raise InputError(f"there is no quick model {path.stem}")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        facts = json.loads(about.get("facts", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path.name} is damaged: {error}") from error
    if about.get("format") != FORMAT:
        raise InputError(f"{path.name} is no quick model (format {about.get('format')!r}, expected {FORMAT!r})")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path.name}: {name} holds numbers that are not finite")
    return tensors, about.get("base", ""), facts


def load_quick(champion: System, path: Path) -> System:
    """The champion with the quick model ``path`` on top; its version is CHAMPION+QUICK. Raises InputError for a file that is
    damaged, and for one that was tuned on another champion."""
    tensors, base, _ = read_quick(path)
    if base != champion.version:
        raise InputError(f"{path.name} was tuned on version {base or 'unknown'}, {champion.version} is served")
    refiner_of(champion)
    return with_tensors(champion, tensors, f"{champion.version}+{sha256_of(path)[:12]}")
