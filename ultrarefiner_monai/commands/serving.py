"""Beside the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def forget(
    image_id: Annotated[str, typer.Argument(metavar="ID", help="The image, as /datastore/ lists it.")],
    studies: Annotated[str, typer.Option(help="The folder or store that is served.")],
    work_dir: Annotated[Path | None, typer.Option(help="The work folder, where it is not the default.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Remove the image's labels too.")] = False,
) -> None:
    """Remove all that derives from one image: proposals, corrections, embeddings, copies made for trainings."""
    from ultrarefiner_monai.workfolder import forget as run

    typer.echo(str(run(studies, image_id, work_dir, labels)))
