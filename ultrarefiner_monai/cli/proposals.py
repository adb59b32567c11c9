"""Real coarse predictions for phase 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.cli.options import DataSets, Device, Fold, LeaveOut, read_configs

app = typer.Typer()


@app.command()
def proposals(
    config: Annotated[Path, typer.Option(help="A phase1_coarse configuration; a short one will do.")],
    data: DataSets,
    out: Annotated[Path, typer.Option(help="Where the predictions go: refine.proposals of phase 2.")],
    fold: Fold = "0",
    parts: Annotated[int, typer.Option(help="Networks to train, each without its part of the training images.")] = 3,
    by_set: Annotated[
        bool,
        typer.Option(
            "--by-set", help="Each part is a whole set: it is predicted by a network that never saw that hospital."
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="One part alone: its number from 0, or with --by-set its set.")] = "",
    leave_out: LeaveOut = None,
    device: Device = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Override an option: epochs=10.")] = None,
) -> None:
    """Coarse predictions of a fold's training images by networks that have not seen them, nor the fold that is reported."""
    from ultrarefiner_monai.training.proposals import nested_proposals

    [(_, settings)] = read_configs([config], option)
    count = nested_proposals(settings, data, fold, out, parts, device, leave_out or (), by_set, only)
    typer.echo(f"{count} predictions in {out}")
