"""An adapter as a file: the LoRA factors of one image encoder, and what they belong to.

safetensors with A and B by their names in the image encoder. In the metadata: ``base``, a digest of the SAM that they
were trained over (image encoder without them, prompt encoder, mask decoder), rank, alpha and targets, and plain facts. On
another base an adapter is refused: what it adds was learnt for these weights and this decoder.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ultrarefiner_monai.config import ConfigError, LoraConfig, from_dict, to_dict
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.lora import adapter_state, inject, load_adapter, merge, merged_copy

ADAPTER = "adapter.safetensors"  # beside a run's result
FORMAT = "ultrarefiner-adapter-1"


@dataclass(frozen=True)
class Adapter:
    """What ``read_adapter`` finds. base: see ``sam_digest``. facts: plain values."""

    state: dict[str, torch.Tensor]
    config: LoraConfig
    base: str
    facts: dict[str, Any]


def sam_digest(sam: nn.Module) -> str:
    """16 hexadecimal digits that stand for a SAM's weights in single precision, without its adapters."""
    return state_digest(sam.state_dict())


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """``sam_digest`` of a SAM with this state."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.rpartition(".")[2] in ("lora_a", "lora_b"):
            continue
        plain = value.detach().cpu()
        if value.is_floating_point():
            plain = plain.float().contiguous() + 0.0  # so that -0 is 0
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(np.ascontiguousarray(plain.numpy()).data)
    return digest.hexdigest()[:16]


def write_adapter(path: Path, sam: nn.Module, config: LoraConfig, facts: dict[str, Any] | None = None) -> Path:
    """Write the adapters in ``sam``'s image encoder, beside its place and renamed there."""
    about = {
        "format": FORMAT,
        "base": sam_digest(sam),
        "lora": json.dumps(to_dict(config)),
        "facts": json.dumps(facts or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        save_file(adapter_state(sam.image_encoder), file.name, about)  # type: ignore[arg-type]
    return path


def read_adapter(path: str | Path) -> Adapter:
    """Raises InputError for what is no adapter file, is damaged, or holds numbers that are not finite."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no adapter at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
        if about.get("format") != FORMAT:
            raise InputError(f"{path.name} is no adapter (format {about.get('format')!r}, expected {FORMAT!r})")
        config, facts = from_dict(LoraConfig, json.loads(about["lora"])), json.loads(about.get("facts", "{}"))
    except (SafetensorError, OSError, ValueError, KeyError, ConfigError) as error:
        raise InputError(f"{path.name} cannot be read as an adapter: {error}") from error
    ranks = {v.shape[0] for n, v in state.items() if n.endswith("lora_a") and v.ndim}
    if not state or ranks != {config.rank} or not isinstance(facts, dict):
        raise InputError(f"{path.name}: its tensors are not of rank {config.rank}, as it says")
    broken = [name for name, value in state.items() if not value.is_floating_point() or not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{path.name}: {broken[0]} holds numbers that are not finite")
    return Adapter(state, config, about.get("base", ""), facts)


def with_adapter(sam: nn.Module, adapter: Adapter, what: str = "the adapter") -> nn.Module:
    """``sam`` with the adapter merged into its image encoder; all else is shared, not copied.

    Raises InputError for an adapter of another base, rank or encoder.
    """
    if (base := sam_digest(sam)) != adapter.base:
        raise InputError(
            f"{what} was trained over a SAM with digest {adapter.base}, this one has {base}: it fits only the weights that its "
            "training began from, and only if nothing but the adapter learnt (refine.train: [])"
        )
    encoder = copy.deepcopy(sam.image_encoder)
    inject(encoder, adapter.config)  # type: ignore[arg-type]
    load_adapter(encoder, adapter.state, what)  # type: ignore[arg-type]
    merge(encoder)  # type: ignore[arg-type]
    return _with_encoder(sam, encoder)  # type: ignore[arg-type]


def merged_sam(sam: nn.Module) -> nn.Module:
    """``sam`` with its own adapters merged, for a checkpoint; all else is shared."""
    return _with_encoder(sam, merged_copy(sam.image_encoder))  # type: ignore[arg-type]


def _with_encoder(sam: nn.Module, encoder: nn.Module) -> nn.Module:
    shared = {id(part): part for part in (sam.prompt_encoder, sam.mask_decoder)}
    shared[id(sam.image_encoder)] = encoder  # type: ignore[assignment]
    return copy.deepcopy(sam, shared)  # type: ignore[arg-type]
