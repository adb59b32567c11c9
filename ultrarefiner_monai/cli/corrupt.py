"""Corrupted masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.cli.options import Data

app = typer.Typer()


@app.command()
def corrupt(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the set; a stopped run resumes there.")],
    samples: Annotated[int, typer.Option(help="Number of corrupted masks.")] = 100_000,
    size: Annotated[int, typer.Option(help="Side of the square frame.")] = 224,
    seed: Annotated[int, typer.Option(help="Seed of the set.")] = 0,
    shard: Annotated[int, typer.Option(help="Masks per file.")] = 1000,
    workers: Annotated[int, typer.Option(help="Number of worker processes.")] = 1,
) -> None:
    """Write a fixed set of corrupted masks, made from a folder's labels. Phase 2 does not need it: it corrupts on the fly."""
    from rich.console import Console
    from rich.progress import Progress

    from ultrarefiner_monai.training.data.corruption_set import write_set

    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            row = bar.add_task("masks", total=samples)
            figures = write_set(
                data, out, samples, size, seed, shard, workers, None, lambda k, n: bar.update(row, completed=k, total=n)
            )
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; the same command goes on in {out}", err=True)
        raise typer.Exit(130) from None
    in_band = "" if figures["in_band"] is None else f", {100 * figures['in_band']:.1f} % of the Dice requests met"
    typer.echo(f"{figures['samples']} masks{in_band}: {out / 'statistics.json'}, {out / 'contact_sheet.png'}")
