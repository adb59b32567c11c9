"""The ``ultrarefiner`` command. Every sub-command calls one function of the package and turns its errors into a line."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from ultrarefiner_monai import __version__
from ultrarefiner_monai.cli import (
    batch,
    corrupt,
    data,
    evaluation,
    journal,
    models,
    proposals,
    recipe,
    serving,
    training,
    weights,
)
from ultrarefiner_monai.core.types import NOTICE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Breast-ultrasound lesion outlines. {NOTICE}",
)
for commands in (data, corrupt, training, proposals, recipe, evaluation, serving, batch):
    app.add_typer(commands.app)
app.add_typer(weights.app, name="weights")
app.add_typer(models.app, name="models")
app.add_typer(journal.app, name="journal")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ultrarefiner {__version__}. {NOTICE}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Entry point: errors that the user can mend become one line and exit status 1."""
    from ultrarefiner_monai.config import ConfigError
    from ultrarefiner_monai.core.types import InputError

    try:
        app()
    except (InputError, ConfigError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
