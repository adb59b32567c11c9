"""From a configuration and a data folder to a trained checkpoint: the story told once, for every phase."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from monai.utils import set_determinism
from rich.console import Console

from ultrarefiner_monai import __version__
from ultrarefiner_monai.checkpoints import read_checkpoint
from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.data.datalist import Split, read_index, split_fold
from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.training.calibrate import finish
from ultrarefiner_monai.training.console import header
from ultrarefiner_monai.training.engine import Best, Run
from ultrarefiner_monai.training.loaders import build_loaders
from ultrarefiner_monai.training.phases import build_phase
from ultrarefiner_monai.types import InputError

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    data_dir: str | Path,
    fold: str | int,
    out: str | Path,
    resume: bool = False,
    device: str | None = None,
) -> Best:
    """Train one phase. Writes into ``out``: model.safetensors (the result: best weights, calibrated, half precision),
    best.safetensors, last.pt (to go on from), split.json, history.csv and tensorboard/."""
    out = Path(out)
    if (out / "last.pt").exists() and not resume:
        raise InputError(f"{out} holds a run already: give --resume to go on with it, or another --out")
    if resume and not (out / "last.pt").exists():
        raise InputError(f"nothing to resume in {out}: there is no last.pt")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    split = split_fold(read_index(data_dir), fold, config.data.select_share, config.seed)
    if Path(config.init).suffix == ".safetensors" and not resume:
        _check_start(config, data_dir, fold)
    out.mkdir(parents=True, exist_ok=True)
    Console().print(header(config, _facts(split, data_dir, fold, out, device)))
    set_determinism(config.seed)  # before the networks are made: their first weights are drawn too
    run = _build(config, split, out, device, fold, data_dir)
    if resume:
        run.resume()
    _keep_split(split, out / "split.json", resume)
    best = run.fit()
    finish(out / "best.safetensors", out / "model.safetensors", split.select, device)
    return best


def _keep_split(split: Split, path: Path, resume: bool) -> None:
    """Write which images went where. A resumed run has to have the very same: else it trains on what it reports."""
    ids = {k: [i.id for i in v] for k, v in vars(split).items()}
    if resume and path.is_file() and json.loads(path.read_text(encoding="utf-8")) != ids:
        raise InputError(
            f"{path} was another split: the run was begun with another --fold or --data, or index.csv changed"
        )
    with replacing(path, "w") as file:
        json.dump(ids, file, indent=1)


def _check_start(config: TrainConfig, data_dir: str | Path, fold: str | int) -> None:
    """A run that starts from our own weights must hold out what they held out. Raises InputError for another fold."""
    meta = read_checkpoint(config.init).meta
    if meta.get("data") != Path(data_dir).name:
        return
    if meta.get("fold") not in (None, str(fold)):
        raise InputError(
            f"init: {config.init} was trained with fold {meta['fold']} held out, so it has seen fold {fold}, which this "
            f"run reports; use --fold {meta['fold']}"
        )
    if meta.get("seed") not in (None, config.seed):
        log.warning("init: %s was trained with another seed, so on images that select the checkpoint here", config.init)


def _build(config: TrainConfig, split: Split, out: Path, device: str, fold: str | int, data_dir: str | Path) -> Run:
    training, selection = build_loaders(config, split)
    meta = {
        "package": __version__,
        "data": Path(data_dir).name,
        "fold": str(fold),
        "images": {k: len(v) for k, v in vars(split).items()},
        "phantoms": config.data.phantoms,
        "seed": config.seed,
    }
    return Run(build_phase(config), config, training, selection, out, device, meta)


def _facts(split: Split, data_dir: str | Path, fold: str | int, out: Path, device: str) -> dict[str, str]:
    counts = {
        name: f"{len(part)} images, {sum(i.has_lesion for i in part)} with a lesion"
        for name, part in vars(split).items()
    }
    return {"data": str(data_dir), "fold held out": str(fold), **counts, "device": device, "results": str(out)}
