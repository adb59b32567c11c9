"""Proposals for a whole archive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ultrarefiner_monai.cli.options import Device, pair, shipped

app = typer.Typer()
_SHOWN_FAILURES = 20


@app.command()
def batch(
    studies: Annotated[str, typer.Option(help="A folder, searched with all below it, or a DICOMweb address.")],
    out: Annotated[Path, typer.Option(help="Folder for masks/ and results.csv; given again, the batch resumes.")],
    model: Annotated[str, typer.Option(help="A checkpoint; `compact` is the shipped one.")] = "compact",
    processes: Annotated[int, typer.Option(min=1, help="Number of worker processes; they share the cores.")] = 1,
    mask_format: Annotated[str, typer.Option("--format", help="nii.gz, nrrd, png, or seg (DICOM only).")] = "nii.gz",
    store: Annotated[bool, typer.Option("--store", help="Also store each result in the PACS as a DICOM SEG.")] = False,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="Only these series of a PACS: StudyDate=20240101-20241231.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--conf", metavar="NAME=VALUE", help="An option of the server: pacs.user=NAME, pacs.ca_file=FILE."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Outline every image of a folder or PACS: masks, and one table with measurements and failures.

    What is finished is skipped when the command is given again. Exit status 1 when images failed, 130 when interrupted.
    """
    from ultrarefiner_monai.batch.archive import plan_batch, run_batch
    from ultrarefiner_monai.config import serve_config

    path = shipped() if model == "compact" else Path(model)
    conf = dict(pair(text) for text in option or [])
    config = serve_config(shipped().parents[1] / "config.yaml", conf)  # one way to the PACS, for server and batch
    jobs, setup = plan_batch(studies, out, path, mask_format, processes, store, filters or (), config, device)
    try:
        with _progress() as progress:
            summary = run_batch(jobs, setup, processes, progress)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; {out / 'results.csv'} holds what is finished, the same command goes on", err=True)
        raise typer.Exit(130) from None
    _report(summary)
    if summary.failed or summary.left:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, int], None]]:
    """A bar with the time left and the failures; in a log file a line for every tenth of the images."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        start = time.monotonic()

        def say(k: int, failed: int, n: int) -> None:
            if k == n or k * 10 // n > (k - 1) * 10 // n:
                seconds = time.monotonic() - start
                left = seconds / k * (n - k)
                typer.echo(f"{k} of {n} images, {failed} failed, {seconds:.0f} s, {left:.0f} s left", err=True)

        yield say
        return
    failures = TextColumn("[red]{task.fields[failed]}[/red] failed,")
    columns: Any = (BarColumn(), MofNCompleteColumn(), "images,", failures, TimeElapsedColumn(), "gone,")
    with Progress(*columns, TimeRemainingColumn(), "left", console=console, transient=True) as bar:
        row = bar.add_task("images", total=None, failed=0)
        yield lambda k, failed, n: bar.update(row, completed=k, total=n, failed=failed)


def _report(summary: Any) -> None:
    """The summary on the terminal, with the names of the first failures."""
    for source, error in summary.failures[:_SHOWN_FAILURES]:
        typer.echo(f"failed: {source}: {error}", err=True)
    if len(summary.failures) > _SHOWN_FAILURES:
        typer.echo(f"and {len(summary.failures) - _SHOWN_FAILURES} more: column error of {summary.results}", err=True)
    if summary.left:
        typer.echo(
            f"stopped, {summary.left} series not tried: {summary.stopped}; the same command goes on later", err=True
        )
    parts = [f"{summary.done} outlined", f"{summary.skipped} already finished", f"{summary.failed} failed"]
    parts += [f"{summary.stored} stored"] if summary.stored else []
    rate = f", {summary.done / summary.seconds:.2f} images/s" if summary.done else ""
    typer.echo(f"{', '.join(parts)}; a lesion in {summary.lesions} of {summary.done + summary.skipped}")
    typer.echo(f"{summary.results} ({summary.seconds:.0f} s{rate})")
