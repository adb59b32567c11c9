"""A correction's place in what happened before it: what was offered, what first, and since when its image was looked at."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from ultrarefiner_monai.studies.journal_rows import Packed, as_json, new_id, now

# Ranges, not LIKE: an index is used, and a save takes no longer after years.
_A_SESSION = "(image_id >= 'session:' AND image_id < 'session;')"
_OF_IMAGE = f"(image_id = :image OR {_A_SESSION}) AND image_hash = :hash"
_NEWEST = f"SELECT id FROM proposals WHERE {_OF_IMAGE} ORDER BY client = :client DESC, id DESC LIMIT 1"
# The client's own first one; who asked for none may have been shown the newest of another's, as after a batch.
_FIRST = (
    f"SELECT id FROM proposals WHERE {_OF_IMAGE} AND id > :proposal AND prompts = '{{}}'"
    " ORDER BY client = :client DESC, CASE WHEN client = :client THEN id ELSE -id END LIMIT 1"
)
# Of who does not say who they are, those rows that have no name: never another's.
_SHOWN = (
    f"SELECT created FROM shown WHERE (image_id = :image OR ({_A_SESSION} AND image_hash = :hash))"
    " AND id > :shown AND client IN (:client, :author) ORDER BY id LIMIT 1"
)
_ASKED = (
    f"SELECT created FROM proposals WHERE {_OF_IMAGE} AND id > :proposal AND client IN (:client, :author)"
    " ORDER BY id LIMIT 1"
)
_NOTE = (
    "INSERT INTO shown (created, image_id, image_hash, client) SELECT :now, :image, :hash, :client WHERE NOT EXISTS ("
    "SELECT 1 FROM shown WHERE image_id = :image AND client = :client AND id > COALESCE("
    "(SELECT newest_shown FROM corrections WHERE image_id = :image AND :client IN (client, author) ORDER BY id DESC LIMIT 1),"
    " 0))"
)


@dataclass(frozen=True)
class _Before:
    """The client's last save of the image. proposal, shown: the newest ids at that time, 0 without a save."""

    proposal: int = 0
    shown: int = 0
    first_proposal_id: int | None = None


def add_correction(
    connection: sqlite3.Connection,
    image_id: str,
    image_hash: str,
    mask: Packed,
    *,
    author: str,
    client: str,
    info: dict[str, Any] | None,
) -> int:
    """``Journal.record_correction`` within a transaction."""
    names: dict[str, Any] = {"image": image_id, "hash": image_hash, "client": client, "author": author}
    before = _last_save(connection, names)
    names |= {"proposal": before.proposal, "shown": before.shown}
    first = _one(connection, _FIRST, names)
    values = {
        "created": now(),
        "image_id": image_id,
        "image_hash": image_hash,
        "proposal_id": _one(connection, _NEWEST, names),
        "author": author,
        "client": client,
        "info": as_json(info),
        "shape": mask.shape,
        "mask": mask.bits,
        "shown": _first_shown(connection, names),
        "first_proposal_id": before.first_proposal_id if first is None else first,
        "newest_proposal": _one(connection, "SELECT MAX(id) FROM proposals", {}) or 0,
        "newest_shown": _one(connection, "SELECT MAX(id) FROM shown", {}) or 0,
    }
    places = ", ".join(f":{name}" for name in values)
    return new_id(connection.execute(f"INSERT INTO corrections ({', '.join(values)}) VALUES ({places})", values))


def add_shown(connection: sqlite3.Connection, image_id: str, image_hash: str, client: str) -> None:
    """``Journal.note_shown`` within a transaction."""
    connection.execute(_NOTE, {"now": now(), "image": image_id, "hash": image_hash, "client": client})


def _last_save(connection: sqlite3.Connection, names: dict[str, Any]) -> _Before:
    """first_proposal_id: None where the image's file was another one then. Corrections of older versions know only the
    proposal that they came from."""
    row = connection.execute(
        "SELECT COALESCE(newest_proposal, proposal_id, 0), COALESCE(newest_shown, 0), first_proposal_id, image_hash = :hash"
        " FROM corrections WHERE image_id = :image AND client = :client AND author = :author ORDER BY id DESC LIMIT 1",
        names,
    ).fetchone()
    return _Before(row[0], row[1], row[2] if row[3] else None) if row else _Before()


def _first_shown(connection: sqlite3.Connection, names: dict[str, Any]) -> str | None:
    """When the image was handed out to the client, or the client asked for a proposal, whichever was earlier."""
    times = [_one(connection, query, names) for query in (_SHOWN, _ASKED)]
    return min((time for time in times if time is not None), default=None)


def _one(connection: sqlite3.Connection, query: str, names: dict[str, Any]) -> Any:
    row = connection.execute(query, names).fetchone()
    return row[0] if row else None
