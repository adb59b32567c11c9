"""From a configuration and a data folder to a trained checkpoint: the story told once, for every phase."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.utils import set_determinism
from rich.console import Console

from ultrarefiner_monai import __version__
from ultrarefiner_monai.config import NESTED, TrainConfig
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import (
    JOINT,
    DataDirs,
    Item,
    Split,
    data_name,
    names_of,
    read_sets,
    sets_of,
    split_sets,
)
from ultrarefiner_monai.datasets.seen import about_seen, digests_of, named_sets
from ultrarefiner_monai.models.checkpoints import in_half_precision, read_header
from ultrarefiner_monai.training.calibration.calibrate import finish
from ultrarefiner_monai.training.check_data import check_data, check_held_out, copies_in_report, stored_meta
from ultrarefiner_monai.training.loop import ddp
from ultrarefiner_monai.training.loop.console import header
from ultrarefiner_monai.training.loop.cpu import keep_memory, no_denormals
from ultrarefiner_monai.training.loop.engine import Best, Run
from ultrarefiner_monai.training.loop.state import check_resumable
from ultrarefiner_monai.training.phases.build import build_phase

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    data_dir: DataDirs,
    fold: str | int,
    out: str | Path,
    resume: bool = False,
    device: str | None = None,
    leave_out: Sequence[str] = (),
) -> Best:
    """Train one phase on one data folder or several (sets). leave_out: sets that are only reported.

    Writes into ``out``: model.safetensors (the result: best weights, calibrated, half precision), best.safetensors, last.pt
    (to go on from), split.json, history.csv and tensorboard/.
    """
    # Each fold needs proposals of its own: those of another fold's networks have seen what this run reports.
    if config.refine.proposals == NESTED and config.phase != "phase1_coarse":
        raise InputError(
            f"refine.proposals: {NESTED} is for `train all` and `cv`, which have a phase 1 to make them with"
        )
    proposals = config.refine.proposals.replace("{fold}", str(fold))
    config = replace(config, refine=replace(config.refine, proposals=proposals))
    items = read_sets(data_dir)
    split = split_sets(items, fold, config.data.select_share, config.select_seed, leave_out)
    if len(sets_of(items)) > 1 and not resume:
        copies_in_report(split)
    if Path(config.init).suffix == ".safetensors" and not resume:
        _check_start(config, split, fold, leave_out)
    sam = None if resume else stored_meta(config.refine.sam_init)  # others' weights have no meta
    if sam is not None:
        check_held_out(f"refine.sam_init: {config.refine.sam_init}", sam, split, fold, leave_out)
    for path in config.loss.teachers:
        check_held_out(f"loss.teachers: {path}", read_header(path)[1], split, fold, leave_out)
    return train_split(config, split, out, device, resume, **about_data(items, fold, leave_out))


def about_data(items: Sequence[Item], fold: str | int, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """What a checkpoint's meta says of its data: the sets' names, the fold held out, and the sets left out."""
    left = {"left_out": JOINT.join(sorted(set(leave_out)))} if leave_out else {}
    return {"data": data_name(items), "fold": str(fold), **left}


def train_split(
    config: TrainConfig,
    split: Split,
    out: str | Path,
    device: str | None = None,
    resume: bool = False,
    **meta: str,
) -> Best:
    """As ``train``, on a split of one's own. meta: what the checkpoint says of the data (``data``, ``fold``)."""
    out = Path(out)
    with no_denormals(), ddp.group(device or ("cuda" if torch.cuda.is_available() else "cpu")) as own_device:
        if (out / "last.pt").exists() and not resume:
            raise InputError(f"{out} holds a run already: give --resume to go on with it, or another --out")
        if resume and not (out / "last.pt").exists():
            raise InputError(f"nothing to resume in {out}: there is no last.pt")
        if resume:  # before the images are prepared, which takes minutes
            check_resumable(out / "last.pt", config)
        check_data(split)
        if torch.device(own_device).type == "cpu":
            keep_memory()
        ddp.wait()  # nobody writes before all have looked
        if ddp.is_main():
            out.mkdir(parents=True, exist_ok=True)
            Console().print(header(config, _facts(split, out, own_device, meta)))
        set_determinism(config.seed)  # before the networks are made: their first weights are drawn too
        run = _build(config, split, out, own_device, meta)
        if resume:
            run.resume()
        if ddp.is_main():
            _keep_split(split, out / "split.json", resume)
        best = run.fit()
        if ddp.is_main():
            result = out / "best.safetensors", out / "model.safetensors"
            if config.calibrate and run.phase.calibrates:
                finish(*result, split.select, own_device)
            else:
                in_half_precision(*result)
        ddp.wait()  # the result is there when any process returns
    return best


def _keep_split(split: Split, path: Path, resume: bool) -> None:
    """Write which images went where. A resumed run has to have the very same: else it trains on what it reports."""
    if resume:
        check_same_split(split, path)
    with replacing(path, "w") as file:
        json.dump(_split_ids(split), file, indent=1)


def check_same_split(split: Split, path: Path) -> None:
    """Raise InputError where ``path``, a run's split.json, says another split; a run from before has none."""
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != _split_ids(split):
        raise InputError(
            f"{path} was another split: the run was begun with another --fold, --data or --leave-out, or index.csv changed"
        )


def _split_ids(split: Split) -> dict[str, list[str]]:
    everything = [i for part in vars(split).values() for i in part]
    names = dict(zip((i.key for i in everything), names_of(everything)))
    return {k: [names[i.key] for i in v] for k, v in vars(split).items()}


def _check_start(config: TrainConfig, split: Split, fold: str | int, leave_out: Sequence[str]) -> None:
    """A run that starts from our own weights must hold out what they held out. Raises InputError otherwise."""
    system, meta = read_header(config.init)
    if config.phase != "phase1_coarse" and config.refine.sam_init == "none" and system.sam is None:
        log.warning(
            "the refiner starts from random weights: refine.sam_init is none, and init: %s holds no SAM; for the compact "
            "preset --set refine.sam_init=stem begins with the coarse network's CNN",
            config.init,
        )
    check_held_out(f"init: {config.init}", meta, split, fold, leave_out)
    if not any(named_sets(meta, name) for name in sets_of(split.train)):
        return
    if meta.get("select_seed", meta.get("seed")) not in (None, config.select_seed):
        log.warning(
            "init: %s was trained with another seed, so on images that select the checkpoint here; data.select_seed keeps "
            "them the same",
            config.init,
        )


def _seen(config: TrainConfig, split: Split) -> dict[str, Any]:
    """What the result will have seen: this run's images, and those of the weights that it starts from or learns from."""
    starts = [stored_meta(path) for path in (config.init, config.refine.sam_init, *config.loss.teachers)]
    return about_seen(digests_of((*split.train, *split.select)), [meta for meta in starts if meta is not None])


def _build(config: TrainConfig, split: Split, out: Path, device: str, meta: dict[str, str]) -> Run:
    phase = build_phase(config)
    training, selection = phase.loaders(split, out)
    about = {
        "package": __version__,
        **meta,
        "images": {k: len(v) for k, v in vars(split).items()},
        "phantoms": config.data.phantoms,
        "seed": config.seed,
        "select_seed": config.select_seed,
        **_seen(config, split),
    }
    phase.network.to(device)
    phase.begin(selection)
    return Run(phase, config, training, selection, out, device, about)


def _facts(split: Split, out: Path, device: str, meta: dict[str, str]) -> dict[str, str]:
    several = len(sets_of([i for part in vars(split).values() for i in part])) > 1
    counts = {name: _counted(part, several) for name, part in vars(split).items()}
    together = f" and {ddp.count() - 1} more, one for each of {ddp.count()} processes" if ddp.count() > 1 else ""
    return {**meta, **counts, "device": device + together, "results": str(out)}


def _counted(items: Sequence[Item], several: bool) -> str:
    text = f"{len(items)} images, {sum(i.has_lesion for i in items)} with a lesion"
    sets = Counter(i.set for i in items)
    return f"{text} ({', '.join(f'{name} {sets[name]}' for name in sorted(sets))})" if several and sets else text
