"""What the sub-commands of ``ultrarefiner`` share: options, overrides, and where weights are found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

Data = Annotated[Path, typer.Option("--data", help="A folder made by `ultrarefiner prepare`.")]
DataSets = Annotated[
    list[Path],
    typer.Option("--data", help="A folder made by `ultrarefiner prepare` (a set); may be given several times."),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option("--leave-out", help="A set of --data, by its folder's name: not trained on, and reported as a whole."),
]
Fold = Annotated[str, typer.Option(help="The fold that is held out and reported: 0 to 4, or test.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.")]


def pair(text: str) -> tuple[str, str]:
    """(name, value) of an option of the server, NAME=VALUE."""
    from ultrarefiner_monai.config import ConfigError

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--conf expects NAME=VALUE, got {text!r}")
    return name, value


def overrides(options: list[str]) -> dict[str, Any]:
    from ultrarefiner_monai.config import ConfigError

    values = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set expects NAME=VALUE, got {text!r}")
        values[name] = _number_or(value)
    return values


def _number_or(value: str) -> Any:
    parsed = yaml.safe_load(value)
    try:  # YAML 1.1 reads 1e-3 as text
        return float(parsed) if isinstance(parsed, str) else parsed
    except ValueError:
        return parsed


def build_predictor(model: str, refiner: str | None, device: str | None) -> Any:
    import torch

    from ultrarefiner_monai.models.checkpoints import load_system
    from ultrarefiner_monai.models.weights.pretrained import resolve
    from ultrarefiner_monai.pipeline.predictor import Predictor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = shipped() if model == "compact" else Path(model)
    return Predictor(load_system(path, None if refiner is None else resolve(refiner), device), device=device)


def shipped() -> Path:
    """The compact weights in the app's folder; InputError where they are not there."""
    from ultrarefiner_monai.core.places import app_folder
    from ultrarefiner_monai.core.types import InputError

    path = app_folder() / "model" / "compact.safetensors"
    if not path.is_file():
        raise InputError(f"the shipped weights are not at {path}: give --model the path of a checkpoint")
    return path


def read_configs(paths: list[Path], options: list[str] | None) -> list[tuple[str, Any]]:
    """(file's name without .yaml, its TrainConfig) of each."""
    from ultrarefiner_monai.config import ConfigError, TrainConfig, load_yaml

    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise ConfigError(f"no configuration at {', '.join(missing)}")
    return [(p.stem, load_yaml(TrainConfig, p, overrides(options or []))) for p in paths]
