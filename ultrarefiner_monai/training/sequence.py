"""Several trainings in sequence, each from the result of the one before: phase 1, 2 and 3 of a whole system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ultrarefiner_monai.config import NESTED, TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import DataDirs
from ultrarefiner_monai.training.loop import ddp
from ultrarefiner_monai.training.loop.state import check_resumable
from ultrarefiner_monai.training.proposals import nested_proposals
from ultrarefiner_monai.training.run import train


def train_all(
    stages: Sequence[tuple[str, TrainConfig]],
    data_dir: DataDirs,
    fold: str | int,
    out: str | Path,
    resume: bool = False,
    device: str | None = None,
    leave_out: Sequence[str] = (),
) -> Path:
    """Train several configurations in a row, each from the result of the one before (its ``init``); returns the last
    result. stages: (name of its folder in ``out``, configuration). data_dir, leave_out: as for ``train``.

    resume: finished ones are left alone, a begun one goes on.
    """
    out, result = Path(out), None
    names = [name for name, _ in stages]
    if not names or len(set(names)) != len(names):
        raise InputError(f"expected configurations with different names, got {', '.join(names) or 'none'}")
    with ddp.group(device or ("cuda" if torch.cuda.is_available() else "cpu")) as own_device:
        for name, config in stages:
            folder = out / name
            config = config if result is None else replace(config, init=str(result))
            result = folder / "model.safetensors"
            config = _with_proposals(config, stages, data_dir, fold, out, own_device, leave_out)
            begun = (folder / "last.pt").exists()
            if resume and begun and result.exists():
                check_resumable(folder / "last.pt", config)
                continue
            train(config, data_dir, fold, folder, resume and begun, own_device, leave_out)
    assert result is not None
    return result


def _with_proposals(
    config: TrainConfig,
    stages: Sequence[tuple[str, TrainConfig]],
    data_dir: DataDirs,
    fold: str | int,
    out: Path,
    device: str,
    leave_out: Sequence[str],
) -> TrainConfig:
    """``refine.proposals: nested`` becomes the folder of proposals, made with the first phase 1 of the row."""
    if config.refine.proposals != NESTED or config.phase == "phase1_coarse":
        return config
    coarse = next((c for _, c in stages if c.phase == "phase1_coarse"), None)
    if coarse is None:
        raise InputError(
            f"refine.proposals: {NESTED} needs a phase1_coarse configuration in the same row of trainings; give it as the "
            "first --config, or name a folder made by `ultrarefiner proposals`"
        )
    folder = out / "proposals"
    nested_proposals(coarse, data_dir, fold, folder, config.refine.nested_parts, device, leave_out)
    return replace(config, refine=replace(config.refine, proposals=str(folder)))
