"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.commands import Data, Device, Fold, overrides

app = typer.Typer()


@app.command()
def train(
    phase: Annotated[str, typer.Argument(help="phase1_coarse")],
    config: Annotated[Path, typer.Option(help="A file of configs/.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Where the run's files go; else runs/CONFIG_foldK.")] = None,
    fold: Fold = "0",
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    device: Device = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Override an option: optimiser.lr=1e-3.")] = None,
) -> None:
    """Train a phase on all folds but one; the best checkpoint is chosen on an inner part of those."""
    from ultrarefiner_monai.config import ConfigError, TrainConfig, load_yaml
    from ultrarefiner_monai.training.engine import TrainingError
    from ultrarefiner_monai.training.run import train as run
    from ultrarefiner_monai.types import InputError

    if not config.is_file():
        raise ConfigError(f"no configuration at {config}")
    settings = load_yaml(TrainConfig, config, overrides(option or []))
    if settings.phase != phase:
        raise ConfigError(f"{config} is for {settings.phase}, asked for was {phase}")
    out = out or Path("runs") / f"{config.stem}_fold{fold}"
    try:
        best = run(settings, data, fold, out, resume, device)
    except TrainingError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; go on with: --resume --out {out}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{out / 'model.safetensors'} (epoch {best.epoch}, selection figure {best.score:.4f})")
