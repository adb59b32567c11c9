"""Models that were learnt from the studies: list and show them, choose which one is served, take one along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Models that were learnt from the studies: list and show them, choose which one is served, take one along.",
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
    narrow = [Column(name, no_wrap=True) for name in ("", "name", "version", "images", "Dice", "before", "gate")]
    table = Table(*narrow)
    table.add_row(_mark(CONFIGURED, pointer), CONFIGURED, *[""] * 5)
    for found in registry.candidates():
        facts = found.facts
        images = "{train} + {select}".format(**facts["images"]) if "images" in facts else ""
        figures = [_dice(facts.get(key)) for key in ("figures", "start_figures")]
        gate = "" if "gate" not in facts else "passed" if facts["gate"]["passed"] else "refused"
        table.add_row(_mark(found.name, pointer), found.name, found.version, images, *figures, gate)
    Console().print(table)
    typer.echo("configured: the server's option weights. images: trained on + validated on. Dice: mean over the")
    typer.echo("validation images with a lesion, without clicks; before: that of the model it was compared with. More:")
    typer.echo("ultrarefiner models show NAME --studies DIR")
    if pointer.quick:
        typer.echo(f"{pointer.quick}, tuned after a save, serves on top of {pointer.name}.")
    if pointer.problem:
        typer.echo(pointer.problem, err=True)


@app.command("show")
def models_show(
    studies: Studies,
    name: Annotated[str, typer.Argument(help="A candidate; left out: what is served.")] = "",
    work_dir: WorkDir = None,
) -> None:
    """Show figures, the gate's report, what a model was trained on and where it comes from."""
    from ultrarefiner_monai.learning.registry import CONFIGURED
    from ultrarefiner_monai.learning.report import lines_of

    registry = _registry(studies, work_dir)
    pointer = registry.pointer()
    chosen = name or pointer.name
    if chosen == pointer.name:
        before = f"; before it: {', '.join(pointer.before[:3])}" if pointer.before else ""
        typer.echo(f"{pointer.name} is served{_since(pointer)}{before}")
        if pointer.quick:
            typer.echo(f"with {pointer.quick} on top of it, tuned after a save")
        if pointer.problem:
            typer.echo(pointer.problem, err=True)
    if chosen == CONFIGURED:
        typer.echo("configured: the weights that the server's option weights names")
        return
    for line in lines_of(registry.get(chosen)):
        typer.echo(line)


@app.command("promote")
def models_promote(name: str, studies: Studies, work_dir: WorkDir = None) -> None:
    """Serve a model, from the next request on. One that the gate refused is served too: a warning says why it was."""
    from ultrarefiner_monai.learning.registry import CONFIGURED
    from ultrarefiner_monai.learning.report import promotion_warnings

    registry = _registry(studies, work_dir)
    before = registry.pointer()
    pointer = registry.promote(name)
    if name != CONFIGURED:
        for warning in promotion_warnings(registry.get(name)):
            typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{pointer.name} is served now; `ultrarefiner models rollback` brings {before.name} back")


@app.command("rollback")
def models_rollback(studies: Studies, work_dir: WorkDir = None) -> None:
    """Undo the last step: a quick model goes first, then the model before is served again."""
    registry = _registry(studies, work_dir)
    before = registry.pointer()
    pointer = registry.rollback()
    gone = before.quick or before.name
    typer.echo(f"{pointer.name} is served again, without {gone}")


@app.command("adapt")
def models_adapt(
    adapter: Annotated[Path, typer.Argument(help="An adapter.safetensors that a training with refine.lora left.")],
    studies: Studies,
    name: Annotated[str, typer.Option(help="What the model is called, such as the site's or the scanner's name.")],
    weights: Annotated[
        str, typer.Option(help="The server's option weights, if the adapter was trained over these.")
    ] = "",
    work_dir: WorkDir = None,
) -> None:
    """Merge an adapter into the model that it was trained over, as one more model. `promote` then serves it; so a server keeps
    several, for its sites or scanners."""
    from ultrarefiner_monai.core.places import app_folder
    from ultrarefiner_monai.learning.adapters import add_adapter
    from ultrarefiner_monai.models.weights.pretrained import shipped_or_resolved

    base = shipped_or_resolved(app_folder() / "model", weights) if weights else None
    found = add_adapter(_registry(studies, work_dir), adapter, name, base)
    typer.echo(
        f"{found.name}, version {found.version}, over {found.facts['start']}: `ultrarefiner models promote {found.name}` serves it"
    )


@app.command("export")
def models_export(
    out: Annotated[Path, typer.Argument(help="The checkpoint file to write.")],
    studies: Studies,
    weights: Annotated[str, typer.Option(help="The server's option weights, where no candidate is served.")] = "",
    work_dir: WorkDir = None,
) -> None:
    """Write what is served, with a quick model merged in, as one checkpoint file: for another server, or as a backup."""
    from ultrarefiner_monai.learning.export import export

    version = export(_registry(studies, work_dir), out, weights)
    typer.echo(f"{out}, version {version}: `monailabel start_server ... --conf weights {out}` serves it")


def _since(pointer: Any) -> str:
    who = {"person": "a person", "quick": "a quick run", "slow": "a training"}.get(pointer.by, "")
    at = pointer.at[:19].replace("T", " ")
    return (f" since {at} UTC" if at else "") + (f", by {who}" if who else "")


def _mark(name: str, pointer: Any) -> str:
    return "served" if name == pointer.name else "before" if name in pointer.before[:1] else ""


def _dice(figures: Any) -> str:
    return f"{figures['dice']:.3f}" if isinstance(figures, dict) and figures.get("dice") is not None else ""
