"""Commands for a server and its studies: serve them, forget an image, send a label to the PACS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def serve(
    studies: Annotated[str, typer.Argument(help="A folder, or a PACS's DICOMweb address; else sample-data.")] = "",
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0: the whole network, with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    option: Annotated[
        list[str] | None,
        typer.Option("--conf", metavar="NAME=VALUE", help="An option of the server: weights=FILE, pacs.user=NAME."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate (PEM): the server speaks https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
) -> None:
    """Serve studies to 3D Slicer and browsers, and say what to open. Stops with Ctrl-C."""
    from ultrarefiner_monai.cli.launch import run
    from ultrarefiner_monai.cli.options import pair
    from ultrarefiner_monai.cli.server_log import LaunchError
    from ultrarefiner_monai.core.types import InputError

    if (tls_cert is None) != (tls_key is None):
        raise InputError("TLS needs both --tls-cert and --tls-key")
    more = [part for text in option or [] for part in ("--conf", *pair(text))]
    for name, path in (("--ssl_certfile", tls_cert), ("--ssl_keyfile", tls_key)):
        if path is not None and not path.is_file():
            raise InputError(f"there is no file {path}")
        more += [] if path is None else [name, str(path.absolute())]
    try:
        code = run(studies, host, port, more)
    except LaunchError as error:
        raise InputError(f"cannot start: {error}") from error
    raise typer.Exit(code)


@app.command()
def forget(
    image_id: Annotated[str, typer.Argument(metavar="ID", help="The image, as /datastore/ lists it.")],
    studies: Annotated[str, typer.Option(help="The folder or store that is served.")],
    work_dir: Annotated[Path | None, typer.Option(help="The work folder, if it is not the default one.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Remove the image's labels too.")] = False,
) -> None:
    """Remove everything that derives from one image: proposals, corrections, embeddings, copies for training."""
    from difflib import get_close_matches

    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.studies.work_folder import forget as run
    from ultrarefiner_monai.studies.work_folder import listed_images

    report = run(studies, image_id, work_dir, labels)
    known = listed_images(studies, work_dir)
    if report.is_empty and image_id not in known:
        near = [name for name in known if image_id.startswith(f"{name}.")] or get_close_matches(image_id, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "/datastore/?output=all of the server lists the ids"
        raise InputError(f"there is nothing of {image_id!r} here: {hint}")
    typer.echo(str(report))


@app.command()
def send(
    image_id: Annotated[str, typer.Argument(metavar="ID", help="The image, as /datastore/ lists it.")],
    server: Annotated[str, typer.Option(help="The running server.")] = "http://127.0.0.1:8000",
    tag: Annotated[str, typer.Option(help="Which label: final, or original for a stored proposal.")] = "final",
    sr: Annotated[
        bool | None, typer.Option("--sr/--no-sr", help="Also send the measurements as SR; default: as configured.")
    ] = None,
) -> None:
    """Ask a running server to store an image's label in its PACS, as a DICOM SEG (and SR)."""
    from ultrarefiner_monai.exchange.ask import send_label

    answer = send_label(server, image_id, tag, sr)
    typer.echo(f"{image_id}: SEG {answer['seg']}{' and SR ' + answer['sr'] if 'sr' in answer else ''} on the way")
