"""What is served, as one checkpoint file."""

from __future__ import annotations

from pathlib import Path

from ultrarefiner_monai.core.places import app_folder
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.pointer import CONFIGURED
from ultrarefiner_monai.learning.quick.overlay import read_quick
from ultrarefiner_monai.learning.registry import Registry, check
from ultrarefiner_monai.models.checkpoints import read_checkpoint, write_checkpoint
from ultrarefiner_monai.models.weights.pretrained import shipped_or_resolved


def export(registry: Registry, out: Path, weights: str = "") -> str:
    """Write the champion to ``out``, with the quick model's tensors where one is set; returns the file's version.

    weights: a name or path, as the server's option; needed where no candidate is served. The masks are those that the
    server gives, to the bit. Raises InputError where ``out`` exists already, and for a model that is damaged.
    """
    if out.exists():
        raise InputError(f"{out} exists already: choose another name, or remove it")
    if out.suffix != ".safetensors":
        raise InputError(f"a checkpoint's name ends in .safetensors, got {out.name}")
    pointer = registry.pointer()
    if pointer.name == CONFIGURED:
        if not weights:
            raise InputError("the model that the server is configured with is served: name its option with --weights")
        path = _configured(weights)
    else:
        registry.require_sound(pointer.name)
        path = registry.get(pointer.name).path
    stored = read_checkpoint(path)
    tensors, meta = dict(stored.tensors), {**stored.meta, "exported": pointer.quick or pointer.name}
    if pointer.quick:
        new, base, _ = read_quick(registry.quick_path(pointer.quick))
        if base != stored.version:
            raise InputError(
                f"{pointer.quick} was tuned on version {base}, not on {stored.version}: nothing is written"
            )
        strange = sorted(set(new) - set(tensors))
        if strange:
            raise InputError(f"{pointer.quick} holds {strange[0]}, which {pointer.name} has not: nothing is written")
        tensors |= new
    write_checkpoint(out, tensors, stored.config, meta)
    return check(out)


def _configured(weights: str) -> Path:
    return shipped_or_resolved(app_folder() / "model", weights)
