"""Evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ultrarefiner_monai.commands import Data, Device, Fold, build_predictor

app = typer.Typer()


@app.command()
def evaluate(
    data: Data,
    out: Annotated[Path, typer.Option(help="Where metrics.csv, summary.json and the overlays go.")],
    model: Annotated[str, typer.Option(help="A checkpoint; `compact` is the shipped one.")] = "compact",
    fold: Fold = "0",
    task: Annotated[
        str, typer.Option(help="ultrarefiner (the automatic result) or transunet (coarse only).")
    ] = "ultrarefiner",
    refiner: Annotated[str | None, typer.Option(help="A SAM file or weights' name, used as the refiner.")] = None,
    device: Device = None,
) -> None:
    """Figures of a checkpoint on one fold, per image and in sum, with pictures of the best, median and worst."""
    from rich.console import Console
    from rich.progress import Progress

    from ultrarefiner_monai.config import ConfigError
    from ultrarefiner_monai.evaluation import evaluate as run

    if task not in ("ultrarefiner", "transunet"):
        raise ConfigError(f"--task: expected ultrarefiner or transunet, got {task!r}")
    predictor = build_predictor(model, refiner, device)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("images", total=None)
        summary = run(
            predictor, data, fold, out, task == "transunet", lambda k, n: bar.update(row, completed=k, total=n)
        )
    Console().print(_summary_table(summary))
    typer.echo(f"{out / 'summary.json'}, {out / 'metrics.csv'}, {out / 'overlays'}")


def _summary_table(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    lesions, normals = summary["lesion_images"], summary["normal_images"]
    title = f"fold {summary['fold']} of {summary['data']}, {summary['task']}, {lesions['count']} images with a lesion"
    table = Table("figure", "mean", "median", "95 % interval of the mean", title=title)
    for name, value in lesions.items():
        if isinstance(value, dict):
            table.add_row(
                name, f"{value['mean']:.3f}", f"{value['median']:.3f}", "{:.3f} – {:.3f}".format(*value["ci95"])
            )
    if normals["count"]:
        rate = f"{normals['false_alarms']} of {normals['count']}"
        table.add_row("lesion-free images with > 0.2 % marked", rate, "", "")
    return table
