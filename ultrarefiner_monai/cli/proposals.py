"""Coarse predictions that phase 2 trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.cli.options import DataSets, Device, Fold, LeaveOut, read_configs

app = typer.Typer()


@app.command()
def proposals(
    config: Annotated[Path, typer.Option(help="A phase1_coarse configuration; a short training is enough.")],
    data: DataSets,
    out: Annotated[Path, typer.Option(help="Folder for the predictions: refine.proposals of phase 2.")],
    fold: Fold = "0",
    parts: Annotated[int, typer.Option(help="Number of networks; each trains without its part of the images.")] = 3,
    by_set: Annotated[
        bool,
        typer.Option(
            "--by-set", help="Make each set a part: its predictions come from a network that never saw that hospital."
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="Make only this part: its number from 0, or with --by-set the set.")] = "",
    leave_out: LeaveOut = None,
    device: Device = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Override an option: epochs=10.")] = None,
) -> None:
    """Predict a fold's training images with networks that saw neither these images nor the reported fold."""
    from ultrarefiner_monai.training.proposals import nested_proposals

    [(_, settings)] = read_configs([config], option)
    count = nested_proposals(settings, data, fold, out, parts, device, leave_out or (), by_set, only)
    typer.echo(f"{count} predictions in {out}")
