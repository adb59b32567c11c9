"""Evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ultrarefiner_monai.cli.options import DataSets, Device, Fold, build_predictor, overrides

app = typer.Typer()


@app.command()
def evaluate(
    data: DataSets,
    out: Annotated[Path, typer.Option(help="Folder for metrics.csv, summary.json and overlays/.")],
    model: Annotated[str, typer.Option(help="A checkpoint; `compact` is the shipped one.")] = "compact",
    fold: Fold = "0",
    task: Annotated[
        str, typer.Option(help="ultrarefiner (the automatic result) or transunet (coarse only).")
    ] = "ultrarefiner",
    refiner: Annotated[
        str | None, typer.Option(help="A SAM file, or the name of known weights, as the refiner.")
    ] = None,
    robot: Annotated[
        bool, typer.Option(help="Let a robot user correct each lesion image with clicks: Dice after clicks, NoC.")
    ] = False,
    clicks: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of the robot user's clicks.")] = 20,
    tissue: Annotated[
        bool, typer.Option(help="Also evaluate a lesion-free crop of each lesion image, for false alarms.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="A second checkpoint on the same images, for a paired comparison.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of --model: safety.enabled=false.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="A set of --data that training left out: all of its images are reported."),
    ] = None,
    device: Device = None,
) -> None:
    """Evaluate a checkpoint on one fold of each set: metrics per image and in sum, pictures of the best, median and worst."""
    from rich.console import Console

    from ultrarefiner_monai.config import ConfigError
    from ultrarefiner_monai.evaluation.figures import WRITTEN
    from ultrarefiner_monai.evaluation.figures import evaluate as run
    from ultrarefiner_monai.models.checkpoints import with_options

    if task not in ("ultrarefiner", "transunet"):
        raise ConfigError(f"--task: expected ultrarefiner or transunet, got {task!r}")
    predictor = build_predictor(model, refiner, device)
    if option:
        predictor = type(predictor)(with_options(predictor.system, overrides(option)), device=predictor.device)
    other = None if against is None else build_predictor(against, refiner, device)
    with _progress() as progress:
        summary = run(
            predictor,
            data,
            fold,
            out,
            coarse_only=task == "transunet",
            progress=progress,
            robot_clicks=clicks if robot else 0,
            tissue=tissue,
            against=other,
            leave_out=leave_out or (),
        )
    console = Console()
    for table in _tables(summary):
        console.print(table)
    typer.echo(", ".join(str(out / name) for name in ("summary.json", *WRITTEN) if (out / name).exists()))


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="[NAME=]DIR...", help="Folders that `ultrarefiner evaluate` wrote.")
    ],
    out: Annotated[Path, typer.Option(help="The table as CSV, with more columns.")] = Path("runs/comparison.csv"),
) -> None:
    """Put several evaluations into one table, with paired differences in Dice against the first one."""
    from rich.console import Console

    from ultrarefiner_monai.evaluation.comparison import compare_runs, write_rows

    rows = compare_runs(runs)
    write_rows(out, rows)
    Console().print(_runs_table(rows))
    typer.echo(str(out))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left; in a log file a line for every tenth of the images."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        start = time.monotonic()

        def say(k: int, n: int) -> None:
            if k == n or k * 10 // n > (k - 1) * 10 // n:
                seconds = time.monotonic() - start
                typer.echo(f"{k} of {n} images, {seconds:.0f} s, {seconds / k * (n - k):.0f} s left", err=True)

        yield say
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        "images,",
        TimeElapsedColumn(),
        "gone,",
        TimeRemainingColumn(),
        "left",
    )
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("images", total=None)
        yield lambda k, n: bar.update(row, completed=k, total=n)


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(summary: dict[str, Any]) -> Iterator[Any]:
    yield _summary_table(summary)
    if "by_set" in summary or "by_device" in summary:
        yield _origin_table(summary)
    if "refined_against_coarse" in summary:
        yield _paired_table(summary["refined_against_coarse"], "refined against coarse", "coarse", "refined")
    if "robot" in summary:
        yield _robot_table(summary["robot"])
    if "this_against_that" in summary:
        versions = summary["against"]["version"], summary["version"]
        yield _paired_table(summary["this_against_that"], f"{versions[1]} against {versions[0]}", "that", "this")


def _summary_table(summary: dict[str, Any]) -> Any:
    from rich.table import Table

    lesions, normals = summary["lesion_images"], summary["normal_images"]
    whole = f" (all of {summary['left_out']})" if "left_out" in summary else ""
    title = f"fold {summary['fold']} of {summary['data']}{whole}, {summary['task']}, {lesions['count']} images with a lesion"
    table = Table("figure", "mean", "median", "95 % interval of the mean", title=title)
    for name, value in lesions.items():
        if isinstance(value, dict):
            table.add_row(
                name, f"{value['mean']:.3f}", f"{value['median']:.3f}", "{:.3f} – {:.3f}".format(*value["ci95"])
            )
    if "missed" in lesions:
        table.add_row("lesions missed (Dice 0)", f"{lesions['missed']} of {lesions['count']}", "", "")
    if normals["count"]:
        rate = f"{normals['false_alarms']} of {normals['count']}"
        table.add_row("lesion-free images with > 0.2 % marked", rate, "", "")
    if crops := summary.get("tissue_images"):
        rate = f"{crops['false_alarms']} of {crops['count']}"
        table.add_row("lesion-free crops of lesion images with > 0.2 % marked", rate, "", "")
    return table


def _origin_table(summary: dict[str, Any]) -> Any:
    """A line for each set and for each scanner: Dice and boundary F before and after the refiner, missed, false alarms."""
    from rich.table import Table

    columns = ("lesions", "coarse Dice", "Dice", "coarse bF", "bF", "missed", "marked")
    table = Table("set, device", title="by set and device (bF: boundary F; marked: lesion-free images with > 0.2 %)")
    for column in columns:
        table.add_column(column, justify="right")
    for name, figures in summary.get("by_set", {}).items():
        lesions, normals = figures["lesion_images"], figures["normal_images"]
        before = figures.get("refined_against_coarse", {}).get("lesion_images", {}).get("boundary_f", {})
        boundary = lesions.get("boundary_f", {}).get("mean")
        line = {
            "lesion_images": lesions["count"],
            "normal_images": normals["count"],
            "coarse_dice": lesions.get("coarse_dice_mean"),
            "dice": lesions.get("dice", {}).get("mean"),
            "coarse_boundary_f": before.get("before", boundary),
            "boundary_f": boundary,
            **{k: v for k, v in (*lesions.items(), *normals.items()) if k in ("missed", "false_alarms")},
        }
        table.add_row(name, *_origin_cells(line), style="bold")
    for name, line in summary.get("by_device", {}).items():
        table.add_row(name, *_origin_cells(line))
    return table


def _origin_cells(line: dict[str, Any]) -> list[str]:
    means = (line.get(name) for name in ("coarse_dice", "dice", "coarse_boundary_f", "boundary_f"))
    return [
        str(line["lesion_images"]),
        *("–" if mean is None else f"{mean:.3f}" for mean in means),
        str(line["missed"]) if "missed" in line else "–",
        f"{line['false_alarms']} of {line['normal_images']}" if "false_alarms" in line else "–",
    ]


def _paired_table(figures: dict[str, Any], title: str, before: str, after: str) -> Any:
    from rich.table import Table

    table = Table("figure", "images", before, after, "difference", "95 % interval", "p", title=title)
    robot = figures.get("robot", {})
    paired = {
        **figures["lesion_images"],
        **{f"Dice after {k} clicks": value for k, value in robot.get("dice_after", {}).items()},
        **{f"NoC@{level}": value for level, value in robot.get("noc", {}).items()},
        **{f"normal images: {name}": value for name, value in figures["normal_images"].items()},
    }
    for name, value in paired.items():
        if not isinstance(value, dict):
            continue
        if "p" not in value:
            table.add_row(name, "", str(value["before"]), str(value["after"]))
            continue
        change = f"{value['difference']:+.3f} ({100 * value['relative']:+.0f} %)"
        interval = "{:+.3f} – {:+.3f}".format(*value["ci95"])
        means = (f"{value[key]:.3f}" for key in ("before", "after"))
        table.add_row(name, str(value["images"]), *means, change, interval, f"{value['p']:.3f}")
    return table


def _robot_table(robot: dict[str, Any]) -> Any:
    from rich.table import Table

    title = f"robot user, {robot['images']} lesion images, {robot['most_clicks']} clicks at most"
    table = Table("figure", "mean", "median", "95 % interval of the mean", "failed", title=title)
    for k, value in robot["dice_after"].items():
        interval = "{:.3f} – {:.3f}".format(*value["ci95"])
        table.add_row(f"Dice after {k} clicks", f"{value['mean']:.3f}", f"{value['median']:.3f}", interval, "")
    for name, words in (("noc", "Dice"), ("noc_iou", "IoU")):
        for level, value in robot[name].items():
            label = f"NoC@{level} ({words})"
            table.add_row(label, f"{value['mean']:.2f}", "", "", f"{100 * value['failed']:.0f} %")
    table.add_row("clicks that made it worse", f"{100 * robot['spoiled']:.1f} %", "", "", "")
    return table


def _runs_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    columns: dict[str, tuple[str, str]] = {
        "run": ("run", "{}"),
        "coarse_dice": ("coarse", "{:.3f}"),
        "dice": ("Dice", "{:.3f}"),
        "difference": ("against first", "{:+.3f}"),
        "p": ("p", "{:.3f}"),
        "dice_median": ("median", "{:.3f}"),
        "hd95_px": ("HD95 px", "{:.1f}"),
        "missed": ("missed", "{}"),
        "false_alarms": ("false alarms", "{}"),
        **{f"dice_after_{k}": (f"{k} clicks", "{:.3f}") for k in (1, 3, 5, 10)},
        **{f"noc_{level}": (f"NoC@{level}", "{:.2f}") for level in (80, 85, 90)},
    }
    shown = {key: value for key, value in columns.items() if any(row[key] is not None for row in rows)}
    first = rows[0]
    title = f"fold {first['fold']} of {first['data']}, {first['lesion_images']} lesion and {first['normal_images']} other images"
    kept = ("data", "fold", "left_out")
    same = all([row[k] for k in kept] == [first[k] for k in kept] for row in rows)
    table = Table(*(heading for heading, _ in shown.values()), title=title if same else "NOT the same images")
    for row in rows:
        table.add_row(*("" if row[key] is None else style.format(row[key]) for key, (_, style) in shown.items()))
    return table
