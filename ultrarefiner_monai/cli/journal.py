"""The journal of saved labels: a table for research, what was saved for one image, and what the model gets wrong."""

from __future__ import annotations

import os
import sqlite3
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ultrarefiner_monai.cli.models import Studies, WorkDir

app = typer.Typer(
    no_args_is_help=True,
    help="The journal of saved labels: what was offered, what was made of it, by whom, in what time.",
)


@contextmanager
def _journal(studies: str, work_dir: Path | None) -> Iterator[Any]:
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.studies.journal import Journal
    from ultrarefiner_monai.studies.work_folder import WorkFolder

    path = WorkFolder.existing(studies, work_dir).journal
    if not path.is_file():
        raise InputError(f"there is no journal at {path} yet: nothing was proposed or saved on these studies")
    try:
        journal = Journal(path)
        try:
            yield journal
        finally:
            journal.close()
    except (sqlite3.Error, zlib.error, RuntimeError) as error:  # RuntimeError: a newer version wrote it
        raise InputError(f"the journal {path} cannot be read: {error}") from error


@app.command("export")
def journal_export(
    studies: Studies,
    work_dir: WorkDir = None,
    out: Annotated[Path | None, typer.Option(help="The CSV file; without it the table is printed.")] = None,
) -> None:
    """Write a table (CSV) with a row for each label that was saved, those that a later save superseded included."""
    from ultrarefiner_monai.core.files import replacing
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.studies.journal_table import write_table

    with _journal(studies, work_dir) as journal:
        if out is None:
            try:
                write_table(journal, sys.stdout)
                sys.stdout.flush()
            except BrokenPipeError:  # `| head` has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if not out.absolute().parent.is_dir():
            raise InputError(f"--out: there is no folder {out.absolute().parent} to write {out.name} into")
        with replacing(out, "w") as file:
            count = write_table(journal, file)
    typer.echo(f"{count} saved labels: {out}")


@app.command("mistakes")
def journal_mistakes(
    studies: Studies,
    work_dir: WorkDir = None,
    out: Annotated[Path | None, typer.Option(help="The picture (.png, .pdf or .svg); needs the extra train.")] = None,
    devices: Annotated[
        Path | None, typer.Option(help="A CSV file with the columns id and device, for images that are no DICOM.")
    ] = None,
) -> None:
    """What the model gets wrong: the kinds of error of its first proposals, by size, echogenicity and device."""
    from rich.console import Console

    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.learning.mistakes import mistakes_of
    from ultrarefiner_monai.learning.mistakes_picture import drawing, looks_of, picture_of, read_devices, write_picture
    from ultrarefiner_monai.studies.corrections import read_corrections
    from ultrarefiner_monai.studies.work_folder import WorkFolder, is_address

    if out is not None:
        drawing()  # what is missing is said before the work
    named = read_devices(devices) if devices is not None else {}
    work = WorkFolder.existing(studies, work_dir)
    corrections = read_corrections(work.root, None if is_address(studies) else studies)
    mistakes = mistakes_of(corrections)
    if not mistakes:
        raise InputError("no final label has an automatic proposal before it: save some over what ultrarefiner offers")
    picture = picture_of(mistakes, looks_of(corrections, named))
    Console().print(_mistakes_table(picture))
    typer.echo("Shares in % of the outlines first offered, without clicks; n: images, the frames of a cine as one.")
    if out is not None:
        typer.echo(str(write_picture(picture, out)))


def _mistakes_table(picture: Any) -> Any:
    from rich.table import Column, Table

    from ultrarefiner_monai.learning.mistakes_picture import NAMES

    kinds = [kind for kind in NAMES if kind in picture.everything.shares]
    table = Table(Column("", no_wrap=True), "n", "Dice", *(Column(NAMES[kind], justify="right") for kind in kinds))
    for title, groups in {"": [picture.everything], **picture.by}.items():
        table.add_section()
        for group in groups:
            name = f"{title}: {group.name}" if title else group.name
            dice = "" if group.dice is None else f"{group.dice:.3f}"
            shares = [100 * group.shares.get(kind, 0) for kind in kinds]
            table.add_row(name, f"{group.images:.0f}", dice, *(f"{share:.0f}" if share else "" for share in shares))
    return table


@app.command("show")
def journal_show(
    image: Annotated[str, typer.Option(help="The image's id, as the server lists it.")],
    studies: Studies,
    work_dir: WorkDir = None,
) -> None:
    """What was saved for one image, oldest first."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.studies.journal_table import table_rows

    narrow = [Column(name, no_wrap=True) for name in ("", "saved", "author", "s")]
    plain = [Column(name, no_wrap=True) for name in ("clicks", "boxes", "first", "last")]
    version = Column("version", overflow="fold", min_width=12)
    table = Table(*narrow, *plain, version, box=SIMPLE, padding=(0, 1, 0, 0))
    with _journal(studies, work_dir) as journal:
        for row in table_rows(journal, image):
            mark = "*" if row["superseded"] == "1" else ""
            saved = row["saved"][:16].replace("T", " ")
            clicks = f"{row['foreground_clicks']} + {row['background_clicks']}" if row["model"] else ""
            figures = [row[name][:5] for name in ("dice_first", "dice_last")]
            table.add_row(mark, saved, row["author"], row["seconds"], clicks, row["boxes"], *figures, row["version"])
    if not table.row_count:
        raise InputError(f"no label was saved for {image!r}: expected an image's id, as /datastore/ lists them")
    Console().print(table)
    typer.echo("*: a later save took its place. s: seconds from shown to saved. clicks: foreground + background.")
    typer.echo("first, last: Dice of the first proposal and of the last one, after the clicks, against the label.")
