"""Data sets: prepare, boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(help="BUSI, BUSBRA, BUS, UDIAT, BUS_UC, BUS_UCLM or COCO.")],
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


@app.command()
def boxes(
    data: Annotated[Path, typer.Option(help="A folder made by `ultrarefiner prepare`.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write.")] = Path("boxes.csv"),
    slack: Annotated[
        float, typer.Option(min=0.01, max=2, help="How far the big box sticks out, by the extent.")
    ] = 0.15,
    inner: Annotated[float, typer.Option(min=0.05, max=1, help="The small box's share of the extent.")] = 0.6,
    jitter: Annotated[
        float, typer.Option(min=0, max=0.5, help="Each side is moved at random by up to this share.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the moves.")] = 0,
) -> None:
    """Derive two boxes around each lesion from the masks, for `ultrarefiner train weak_encoder`."""
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.datasets.boxes import boxes_of_folder, write_boxes

    if out.exists():
        raise InputError(f"{out} exists already: choose another name, or remove it")
    found = boxes_of_folder(data, slack, inner, jitter, seed)
    write_boxes(out, found)
    typer.echo(f"{out}: boxes of {len(found)} images with a lesion")


def _some(names: list[str]) -> str:
    """The number of names, and the first five of them."""
    return f"{len(names)} ({', '.join(names[:5])}{' …' if len(names) > 5 else ''})"
