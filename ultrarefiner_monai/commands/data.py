"""Data sets: prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="BUSI, BUSBRA, BUS, UDIAT, BUS_UC or BUS_UCLM.")],
    raw: Annotated[Path, typer.Option(help="The dataset's folder as it was downloaded.")],
    out: Annotated[Path, typer.Option(help="The clean folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    keep_blank: Annotated[
        bool, typer.Option(help="Keep images with an empty mask that are not called normal.")
    ] = False,
) -> None:
    """Make one clean folder of a public dataset: images, masks, an index with patients, groups and folds."""
    from ultrarefiner_monai.data.datasets import prepare as run

    summary = run(dataset, raw, out, seed, keep_blank)
    typer.echo(f"{summary.written} images, {summary.duplicate_groups} groups of several images, folds {summary.folds}")
    if summary.blank_left_out:
        names = ", ".join(summary.blank_left_out[:5])
        typer.echo(f"left out, without a lesion in the mask: {len(summary.blank_left_out)} ({names} …)")
