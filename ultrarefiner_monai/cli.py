"""The ``ultrarefiner`` command. Every sub-command calls one function of the package and turns its errors into a line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ultrarefiner_monai import __version__
from ultrarefiner_monai.types import NOTICE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Breast-ultrasound lesion outlines. {NOTICE}",
)
weights_app = typer.Typer(no_args_is_help=True, help="Weights of others: SAM, MedSAM, UltraSam, R50+ViT-B_16.")
app.add_typer(weights_app, name="weights")

Data = Annotated[Path, typer.Option("--data", help="A folder made by `ultrarefiner prepare`.")]
Fold = Annotated[str, typer.Option(help="The fold held out and reported: 0 to 4, or test.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; by default a GPU where there is one.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ultrarefiner {__version__}. {NOTICE}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


# --- data, training, evaluation ---------------------------------------------------------------------------------------


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


@app.command()
def train(
    phase: Annotated[str, typer.Argument(help="phase1_coarse")],
    config: Annotated[Path, typer.Option(help="A file of configs/.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Where the run's files go; else runs/CONFIG_foldK.")] = None,
    fold: Fold = "0",
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    device: Device = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Override an option: optimiser.lr=1e-3.")] = None,
) -> None:
    """Train a phase on all folds but one; the best checkpoint is chosen on an inner part of those."""
    from ultrarefiner_monai.config import ConfigError, TrainConfig, load_yaml
    from ultrarefiner_monai.training.engine import TrainingError
    from ultrarefiner_monai.training.run import train as run
    from ultrarefiner_monai.types import InputError

    if not config.is_file():
        raise ConfigError(f"no configuration at {config}")
    settings = load_yaml(TrainConfig, config, _overrides(option or []))
    if settings.phase != phase:
        raise ConfigError(f"{config} is for {settings.phase}, asked for was {phase}")
    out = out or Path("runs") / f"{config.stem}_fold{fold}"
    try:
        best = run(settings, data, fold, out, resume, device)
    except TrainingError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; go on with: --resume --out {out}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{out / 'model.safetensors'} (epoch {best.epoch}, selection figure {best.score:.4f})")


def _overrides(options: list[str]) -> dict[str, Any]:
    from ultrarefiner_monai.config import ConfigError

    values = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set expects NAME=VALUE, got {text!r}")
        values[name] = _number_or(value)
    return values


def _number_or(value: str) -> Any:
    parsed = yaml.safe_load(value)
    try:  # YAML 1.1 reads 1e-3 as text
        return float(parsed) if isinstance(parsed, str) else parsed
    except ValueError:
        return parsed


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
    predictor = _predictor(model, refiner, device)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("images", total=None)
        summary = run(
            predictor, data, fold, out, task == "transunet", lambda k, n: bar.update(row, completed=k, total=n)
        )
    Console().print(_summary_table(summary))
    typer.echo(f"{out / 'summary.json'}, {out / 'metrics.csv'}, {out / 'overlays'}")


def _predictor(model: str, refiner: str | None, device: str | None) -> Any:
    import torch

    from ultrarefiner_monai.checkpoints import load_system
    from ultrarefiner_monai.inference import Predictor
    from ultrarefiner_monai.weights import resolve

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = shipped() if model == "compact" else Path(model)
    return Predictor(load_system(path, None if refiner is None else resolve(refiner), device), device=device)


def shipped() -> Path:
    """The compact weights in the app's folder; InputError where the package was installed without the repository."""
    from ultrarefiner_monai.types import InputError

    path = Path(__file__).resolve().parents[1] / "apps" / "ultrarefiner" / "model" / "compact.safetensors"
    if not path.is_file():
        raise InputError(f"the shipped weights are not at {path}: give --model the path of a checkpoint")
    return path


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


# --- weights ----------------------------------------------------------------------------------------------------------


@weights_app.command("list")
def weights_list() -> None:
    """What can be fetched, what is here, under which licence."""
    from urllib.parse import urlsplit

    from rich.console import Console
    from rich.table import Column, Table

    from ultrarefiner_monai.weights import list_weights, weights_folder

    hosts = sorted({urlsplit(row.url).netloc for row in list_weights() if row.url})
    table = Table(Column("name", no_wrap=True), "here", "MB", "sha256", "licence", "about")
    for row in list_weights():
        size = "?" if row.size is None else f"{row.size / 1e6:.0f}"
        digest = "not published" if row.sha256 is None else row.sha256[:12] + ("" if row.published else " (pinned)")
        table.add_row(row.name, "yes" if row.path else "no", size, digest, row.licence, row.about)
    Console().print(table)
    typer.echo(f"folder: {weights_folder()}; the names' addresses: {', '.join(hosts)}")


@weights_app.command("fetch")
def weights_fetch(name: str) -> None:
    """Download weights by name: goes on where an earlier try stopped, and checks the file before it counts."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from ultrarefiner_monai.weights import KNOWN, fetch

    if name not in KNOWN:
        fetch(name)  # says which names there are
    with Progress(
        *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
    ) as bar:
        row = bar.add_task(name, total=None)
        path = fetch(name, progress=lambda done, total: bar.update(row, completed=done, total=total))
    typer.echo(str(path))


@weights_app.command("add")
def weights_add(
    file: Path, name: Annotated[str | None, typer.Option(help="A known name, or one of your own.")] = None
) -> None:
    """Take a weights file brought by hand, after checking it."""
    from ultrarefiner_monai.weights import add

    typer.echo(str(add(file, name)))


# --- serving ----------------------------------------------------------------------------------------------------------


@app.command()
def forget(
    image_id: Annotated[str, typer.Argument(metavar="ID", help="The image, as /datastore/ lists it.")],
    studies: Annotated[str, typer.Option(help="The folder or store that is served.")],
    work_dir: Annotated[Path | None, typer.Option(help="The work folder, where it is not the default.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Remove the image's labels too.")] = False,
) -> None:
    """Remove all that derives from one image: proposals, corrections, embeddings."""
    from ultrarefiner_monai.workfolder import forget as run

    typer.echo(str(run(studies, image_id, work_dir, labels)))


def main() -> None:
    """Entry point: errors that the user can mend become one line and exit status 1."""
    from ultrarefiner_monai.config import ConfigError
    from ultrarefiner_monai.types import InputError

    try:
        app()
    except (InputError, ConfigError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
