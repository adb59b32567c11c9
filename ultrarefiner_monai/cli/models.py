"""Models from trainings: list them, and choose which one is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True, help="Models that were trained on the studies: list them, and choose which one is served."
)

Studies = Annotated[str, typer.Option(help="The folder or store that is served.")]
WorkDir = Annotated[Path | None, typer.Option(help="The work folder, if it is not the default one.")]


def _registry(studies: str, work_dir: Path | None) -> Any:
    from ultrarefiner_monai.learning.registry import Registry
    from ultrarefiner_monai.studies.work_folder import WorkFolder

    return Registry(WorkFolder.existing(studies, work_dir))


@app.command("list")
def models_list(studies: Studies, work_dir: WorkDir = None) -> None:
    """List the candidates, what they were trained on and their Dice; the served one is marked."""
    from rich.console import Console
    from rich.table import Column, Table

    from ultrarefiner_monai.learning.registry import CONFIGURED

    registry = _registry(studies, work_dir)
    pointer = registry.pointer()
    table = Table(
        "", Column("name", no_wrap=True), "version", "made", "started from", "images", "Dice", "Dice of start"
    )
    table.add_row(_mark(CONFIGURED, pointer), CONFIGURED, "", "", "the server's option weights", "", "", "")
    for found in registry.candidates():
        facts = found.facts
        images = "{train} + {select}".format(**facts["images"]) if "images" in facts else ""
        figures = [_dice(facts.get(key)) for key in ("figures", "start_figures")]
        made = found.created[:16].replace("T", " ")
        table.add_row(
            _mark(found.name, pointer), found.name, found.version, made, str(facts.get("start", "")), images, *figures
        )
    Console().print(table)
    typer.echo(
        "images: trained on + validated on. Dice: mean over the validation images with a lesion; they also chose the"
    )
    typer.echo(
        "epoch, so expect a little less on new images. Serve one: ultrarefiner models promote NAME --studies DIR"
    )


@app.command("promote")
def models_promote(name: str, studies: Studies, work_dir: WorkDir = None) -> None:
    """Serve a candidate. A running server uses it from the next request on."""
    pointer = _registry(studies, work_dir).promote(name)
    typer.echo(f"{pointer.name} is served now; `models rollback` brings {pointer.before[0]} back")


@app.command("rollback")
def models_rollback(studies: Studies, work_dir: WorkDir = None) -> None:
    """Undo the last step: the model before is served again."""
    typer.echo(f"{_registry(studies, work_dir).rollback().name} is served again")


def _mark(name: str, pointer: Any) -> str:
    return "served" if name == pointer.name else "before" if name in pointer.before[:1] else ""


def _dice(figures: Any) -> str:
    return f"{figures['dice']:.3f}" if isinstance(figures, dict) and figures.get("dice") is not None else ""
