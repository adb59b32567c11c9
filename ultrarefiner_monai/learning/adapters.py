"""Adapters that a department keeps, one for a scanner or a site: each becomes a model of the registry, merged into the weights that
it was trained over. Promotion, roll-back and all else are those of every other model."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.pointer import CONFIGURED
from ultrarefiner_monai.learning.registry import ADAPTER_FACT, Candidate, Registry
from ultrarefiner_monai.models.adapter_file import Adapter, read_adapter, state_digest, with_adapter
from ultrarefiner_monai.models.checkpoints import Checkpoint, load_system, read_checkpoint, write_checkpoint

log = logging.getLogger(__name__)


def add_adapter(registry: Registry, path: Path, name: str, weights: Path | None = None) -> Candidate:
    """Merge the adapter file ``path`` into the model that it was trained over, and take the result as candidate ``name``.

    weights: the checkpoint that the server is configured with. It is looked for there, then among the candidates. Raises
    InputError for a file that is no adapter, for one of another base or encoder, and for a name that is taken.
    """
    adapter = read_adapter(path)
    base, checkpoint, stored = _base_of(registry, adapter, path.name, weights)
    system = load_system(checkpoint)
    assert system.refiner is not None
    sam = with_adapter(system.refiner.sam, adapter, path.name)  # type: ignore[arg-type]
    # Only what the adapter changed is kept in single precision: the file grows by a few MB, and the merge stays exact.
    merged = {f"sam.{k}": v for k, v in sam.state_dict().items()}
    before = {f"sam.{k}": v for k, v in system.refiner.sam.state_dict().items()}  # type: ignore[union-attr]
    changed = {k: v.contiguous() for k, v in merged.items() if not v.equal(before[k])}
    # The point proposal network read the encoder as it was.
    kept = {k: v for k, v in stored.tensors.items() if not k.startswith("ppn.")}
    about = {"file": sha256_of(path)[:12], "rank": adapter.config.rank, "of": adapter.facts}
    whole = registry.folder / f".adapted-{uuid.uuid4().hex}.safetensors"
    try:
        config = replace(stored.config, ppn=None)
        write_checkpoint(whole, kept | changed, config, {**stored.meta, "adapter": about})
        return registry.add(name, whole, facts={"task": "adapter", "start": base, ADAPTER_FACT: about})
    finally:
        whole.unlink(missing_ok=True)


def _base_of(registry: Registry, adapter: Adapter, what: str, weights: Path | None) -> tuple[str, Path, Checkpoint]:
    seen = []
    for name, path in _models(registry, weights):
        try:
            stored = read_checkpoint(path)
        except InputError as error:  # one that is damaged keeps nobody from the others
            log.warning("%s is passed over: %s", name, error)
            continue
        if stored.part("sam") and state_digest(stored.part("sam")) == adapter.base:
            return name, path, stored
        seen.append(name)
    hint = (
        ""
        if weights
        else "; if it was trained over the weights that the server is configured with, name them with --weights"
    )
    raise InputError(
        f"{what} was trained over a SAM with digest {adapter.base}, and none of these has it: {', '.join(seen) or 'no model'}. An "
        f"adapter fits only the weights that its training began from, and only if nothing else learnt (refine.train: []){hint}"
    )


def _models(registry: Registry, weights: Path | None) -> Iterator[tuple[str, Path]]:
    if weights is not None:
        yield CONFIGURED, weights
    for candidate in reversed(registry.candidates()):
        yield candidate.name, candidate.path
