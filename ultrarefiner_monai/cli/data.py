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
        bool, typer.Option(help="Keep images with an empty mask although their class is not normal.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option(help="Skip images that cannot be used, and list them in skipped.csv.")
    ] = False,
) -> None:
    """Turn a public dataset into one clean folder: images, masks, and an index with patients, groups and folds."""
    from ultrarefiner_monai.datasets.layouts import prepare as run

    summary = run(dataset, raw, out, seed, keep_blank, skip_bad)
    typer.echo(f"{summary.written} images, {summary.duplicate_groups} groups of several images, folds {summary.folds}")
    if summary.blank_left_out:
        typer.echo(f"left out, without a lesion in the mask: {_some(summary.blank_left_out)}")
    for warning, names in summary.warnings.items():
        typer.echo(f"warning: {warning}: {_some(names)}")
    if summary.skipped:
        typer.echo(
            f"left out, not usable: {_some([file for file, _ in summary.skipped])}; reasons: {out / 'skipped.csv'}"
        )


def _some(names: list[str]) -> str:
    """The number of names, and the first five of them."""
    return f"{len(names)} ({', '.join(names[:5])}{' …' if len(names) > 5 else ''})"
