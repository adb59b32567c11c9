"""One checkpoint from several: the means of networks that went on from common weights, a coarse network and a SAM of
different runs, and post-processing for what came of it.

The mean of fine-tuned weights is often better than each of them and costs nothing when it serves (Wortsman et al., Model
soups, ICML 2022). It needs runs from common weights: means of strangers are noise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import DataDirs, read_sets, split_sets
from ultrarefiner_monai.datasets.seen import BEFORE, DIGESTS, about_seen
from ultrarefiner_monai.models.checkpoints import Checkpoint, in_half_precision, read_checkpoint, write_checkpoint
from ultrarefiner_monai.training.calibration.calibrate import finish
from ultrarefiner_monai.training.check_data import check_held_out

Weights = dict[str, torch.Tensor]


def join(
    coarse: Sequence[str | Path],
    sam: Sequence[str | Path],
    data_dir: DataDirs,
    fold: str | int,
    out: str | Path,
    select_share: float = 0.1,
    select_seed: int = 0,
    device: str = "cpu",
    leave_out: Sequence[str] = (),
    calibrate: bool = True,
) -> SystemConfig:
    """Write ``out``: the mean coarse network of ``coarse``, the mean SAM of ``sam`` (none: no refiner), calibrated on the
    selection images of ``fold``, those of every set but the ones in ``leave_out``. calibrate: False keeps the
    post-processing of the first one.

    Options come from the first checkpoint of ``sam``, those of the coarse network from the first one of ``coarse``.
    Raises InputError for networks of different kinds, and for checkpoints that have seen what is held out.
    """
    stored = {Path(p): read_checkpoint(p) for p in (*coarse, *sam)}
    split = split_sets(read_sets(data_dir), fold, select_share, select_seed, leave_out)
    for path, checkpoint in stored.items():
        check_held_out(str(path), checkpoint.meta, split, fold, leave_out)
    networks, refiners = ([(Path(p), stored[Path(p)]) for p in paths] for paths in (coarse, sam))
    if not networks:
        raise InputError("join: at least one checkpoint for the coarse network is needed")
    first = (refiners or networks)[0][1]
    config = replace(first.config, coarse=networks[0][1].config.coarse)
    tensors = _mean("coarse", networks)
    if len(refiners) == 1:
        tensors |= {k: v for k, v in first.tensors.items() if k.startswith("ppn.")}
    else:
        config = replace(config, ppn=None)  # it reads one network's embedding, not a mean's
    if refiners:
        for path, checkpoint in refiners:
            if checkpoint.config.views != config.views:
                raise InputError(f"{path} and {refiners[0][0]} know other views: their refiners have no mean")
        tensors |= _mean("views", refiners) if config.views else {}
        tensors |= _mean("sam", refiners) | {k: v for k, v in first.tensors.items() if k.startswith("gate.")}
    else:
        config = replace(config, sam=None, views=())
    about: dict[str, Any] = {
        name: [c.version for _, c in part] for name, part in (("coarse", networks), ("sam", refiners))
    }
    with tempfile.TemporaryDirectory() as folder:
        meta = {**first.meta, **_seen([c.meta for c in (first, *stored.values())]), "joined": about}
        meta.pop("calibration", None)  # of other weights
        whole = write_checkpoint(Path(folder) / "joined.safetensors", tensors, config, meta)
        if not calibrate:
            in_half_precision(whole, out)
            return config
        return finish(whole, out, split.select, device)


def _seen(metas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What any of them has seen; nothing to say where all say the same by names alone."""
    about = about_seen(None, metas)
    return about if DIGESTS in about or len(about.get(BEFORE, [])) > 1 else {}


def _mean(part: str, found: Sequence[tuple[Path, Checkpoint]]) -> Weights:
    """The mean of the tensors of one network, with their full keys."""
    weights: list[Weights] = []
    for path, checkpoint in found:
        own = {f"{part}.{k}": v for k, v in checkpoint.part(part).items()}
        shapes = {k: v.shape for k, v in own.items()}
        if not own:
            raise InputError(f"{path} holds no {part} network")
        if weights and shapes != {k: v.shape for k, v in weights[0].items()}:
            raise InputError(f"{path} and {found[0][0]} hold {part} networks of different kinds: they have no mean")
        weights.append(own)
    return {k: _mean_of([w[k] for w in weights]) for k in weights[0]}


def _mean_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    # Counters (batch norm's) are those of the first.
    return torch.stack([t.float() for t in tensors]).mean(dim=0) if tensors[0].is_floating_point() else tensors[0]
