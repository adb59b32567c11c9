"""Labels that are being saved: written down in the journal before the first file changes, crossed out after the last one.

What is still there when somebody looks with the store's lock held belongs to a process that died, or that could not cross
it out: the label in its place says whether the save came through.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_links import add_correction
from ultrarefiner_monai.studies.journal_rows import Packed, new_id


@dataclass(frozen=True)
class Plan:
    """What a save is about to do. File names only: the store knows the folders.

    sha256: of the label's file. inode: its number, where the label before holds the same bytes, else 0. before, after:
    what the index holds of the label (``DataModel``), None without one.
    versions: the names of the labels before, where they are kept. aside: [name of the part, name that it had].
    parts: what is needed until the end only; of the label's folder.
    """

    tag: str
    extension: str
    sha256: str
    inode: int
    before: dict[str, Any] | None
    after: dict[str, Any]
    versions: list[str] = field(default_factory=list)
    aside: list[list[str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """What the journal keeps of a final label. image_hash: sha256 of the image it was drawn on. mask: (T, H, W)."""

    image_hash: str
    mask: np.ndarray


@dataclass(frozen=True)
class OpenSave:
    """A plan in the journal. correction_id: the correction that counts when the save is done, None without one."""

    id: int
    image_id: str
    plan: Plan
    correction_id: int | None


def begin(journal: Journal, image_id: str, plan: Plan, drawn: Drawn | None) -> OpenSave:
    """Write down what is about to happen, the correction included; it is on the disk when this returns."""
    info, packed = plan.after["info"], Packed.of(drawn.mask) if drawn is not None else None
    author, client = author_of(info)
    with journal.transaction() as connection:
        correction = None
        if drawn is not None and packed is not None:
            correction = add_correction(
                connection, image_id, drawn.image_hash, packed, author=author, client=client, info=info
            )
        values = (image_id, json.dumps(asdict(plan), default=str), correction)
        saved = new_id(connection.execute("INSERT INTO saves VALUES (NULL, ?, ?, ?)", values))
    return OpenSave(saved, image_id, plan, correction)


def record(journal: Journal, image_id: str, drawn: Drawn, info: dict[str, Any]) -> int:
    """The correction alone, of a label that is in its place or is kept beside; info: of the label. Returns its id."""
    author, client = author_of(info)
    return journal.record_correction(image_id, drawn.image_hash, drawn.mask, author=author, client=client, info=info)


def finish(journal: Journal, save: OpenSave) -> None:
    """The label is in its place, its correction counts. Need not reach the disk at once: it is found to be done again."""
    with journal.transaction(at_once=False) as connection:
        connection.execute("DELETE FROM saves WHERE id = ?", (save.id,))


def drop(journal: Journal, save: OpenSave) -> None:
    """The label did not get into its place: the correction was never made."""
    with journal.transaction() as connection:
        connection.execute("DELETE FROM saves WHERE id = ?", (save.id,))
        connection.execute("DELETE FROM corrections WHERE id = ?", (save.correction_id,))


def found(journal: Journal) -> list[OpenSave]:
    """All that are not crossed out, oldest first."""
    rows = journal.rows("SELECT id, image_id, plan, correction_id FROM saves ORDER BY id")
    return [OpenSave(row[0], row[1], Plan(**json.loads(row[2])), row[3]) for row in rows]


def author_of(info: dict[str, Any]) -> tuple[str, str]:
    """(author, client) by a label's info: who is logged in, else the client's own name for itself."""
    author, client = str(info.get("user") or ""), str(info.get("client_id") or "")
    return author or client, client
