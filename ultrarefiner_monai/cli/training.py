"""Training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.cli.options import DataSets, Device, Fold, LeaveOut, overrides, read_configs

app = typer.Typer()
Configs = Annotated[
    list[Path], typer.Option("--config", help="A configuration file; for `all` several, in their order.")
]
Options = Annotated[list[str] | None, typer.Option("--set", help="Override an option: optimiser.lr=1e-3.")]


@app.command()
def train(
    phase: Annotated[
        str,
        typer.Argument(
            help="phase1_coarse, phase2_refiner, phase3_joint, ppn, weak_encoder; or all: several --config, one after the other."
        ),
    ],
    config: Configs,
    data: DataSets,
    out: Annotated[Path | None, typer.Option(help="Folder for the run's files; default: runs/CONFIG_foldK.")] = None,
    fold: Fold = "0",
    resume: Annotated[bool, typer.Option(help="Resume the run in --out.")] = False,
    leave_out: LeaveOut = None,
    device: Device = None,
    option: Options = None,
) -> None:
    """Train a phase on all folds but one. The best checkpoint is chosen on an inner part of the training folds."""
    from ultrarefiner_monai.config import ConfigError
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.training.loop.steps import TrainingError
    from ultrarefiner_monai.training.run import train as run
    from ultrarefiner_monai.training.sequence import train_all

    stages = read_configs(config, option)
    if phase != "all" and len(stages) > 1:
        raise ConfigError(f"{phase} takes one --config, got {len(stages)}; `train all` takes several")
    for name, settings in stages:
        if phase not in ("all", settings.phase):
            raise ConfigError(f"{name}.yaml is for {settings.phase}, asked for was {phase}")
    out = out or Path("runs") / f"{'all' if phase == 'all' else stages[0][0]}_fold{fold}"
    try:
        if phase == "all":
            typer.echo(train_all(stages, data, fold, out, resume, device, leave_out or ()))
        else:
            best = run(stages[0][1], data, fold, out, resume, device, leave_out or ())
            if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
                which = f"epoch {best.epoch}, selection figure {best.score:.4f}"
                if stages[0][1].keep == "last":
                    which = f"the last epoch, as keep: last says; best was {which}"
                typer.echo(f"{out / 'model.safetensors'} ({which})")
    except TrainingError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        kept = next(iter(sorted(out.rglob("last.pt"), key=lambda p: -p.stat().st_mtime)), None)
        text = f"{kept} holds the last finished epoch; go on with: --resume --out {out}" if kept else "nothing to keep"
        typer.echo(f"\nstopped: {text}", err=True)
        raise typer.Exit(130) from None


@app.command()
def cv(
    data: Annotated[
        list[Path],
        typer.Option(
            help="A folder made by `ultrarefiner prepare`, or one that holds several (--datasets). Given several times, all "
            "are one list, of which each holds out its own fold."
        ),
    ],
    config: Configs,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs of all folds, their predictions (oof/) and the table.")
    ],
    datasets: Annotated[
        str | None, typer.Option(help="Folders of --data to cross-validate, each by itself: a,b,c.")
    ] = None,
    folds: Annotated[str, typer.Option(help="The folds to hold out, one after the other.")] = "0,1,2,3,4",
    executor: Annotated[str, typer.Option(help="local or slurm.")] = "local",
    parallel: Annotated[int, typer.Option(min=1, help="Jobs that run at the same time.")] = 1,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="Options of sbatch: partition=gpu, gpus_per_node=1, mem_gb=32, timeout_min=600."),
    ] = None,
    wait: Annotated[
        bool, typer.Option(help="Wait for the cluster's jobs; without it, the same command later shows the table.")
    ] = True,
    leave_out: LeaveOut = None,
    device: Device = None,
    option: Options = None,
) -> None:
    """Cross-validate: run the configurations one after the other for every fold of every dataset; one table with mean ± sd.

    Given again, finished folds are left alone and begun ones go on.
    """
    from rich.console import Console

    from ultrarefiner_monai.config import ConfigError
    from ultrarefiner_monai.evaluation.cross_validation import cross_validate, results_table

    if executor not in ("local", "slurm"):
        raise ConfigError(f"--executor: expected local or slurm, got {executor!r}")
    if datasets and len(data) > 1:
        raise ConfigError("--datasets names folders of one --data; several --data are one list already")
    together: list[Path | Sequence[Path]] = [data[0] if len(data) == 1 else data]
    each: list[Path | Sequence[Path]] = [data[0] / name for name in _names(datasets or "")]
    rows = cross_validate(
        read_configs(config, option),
        each or together,
        _names(folds),
        out,
        executor,  # type: ignore[arg-type]
        overrides(slurm or []),
        parallel,
        wait,
        device,
        typer.echo,
        leave_out or (),
    )
    if rows:
        Console().print(results_table(rows))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
