"""What was proposed and what the clinician made of it, kept in SQLite in the work folder.

A *proposal* is one reply of the server: mask, model version, prompts, client. A *correction* is the final label that
was saved over it. Masks are (T, H, W) bits, packed and compressed; a T of 1 is a single image. *Prepared* are the names
of what was cached before anybody asked, so that it can be forgotten. A *save* is a label that is being saved just now
(``open_saves``); its correction counts when the label is in its place. *Shown* is when an image was handed out, a
*promotion* a model that became the served one. Several processes may use one journal at the same time (WAL). Its tables
stand in ``journal_schema``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.studies.journal_links import add_correction, add_shown
from ultrarefiner_monai.studies.journal_rows import (
    BESIDE,
    CORRECTION,
    Packed,
    StoredCorrection,
    StoredPromotion,
    StoredProposal,
    as_json,
    correction_of,
    new_id,
    now,
    promotion_of,
    proposal_of,
)
from ultrarefiner_monai.studies.journal_schema import bring_up_to_date

# Among what was prepared, this is no cache key: somebody opened the image, and it was not forgotten since.
OPENED = "-"
# Those whose label is in its place; the others are being saved just now.
_DONE = "id NOT IN (SELECT correction_id FROM saves WHERE correction_id IS NOT NULL)"


class Journal:
    """The journal at ``path``, made when missing, and the folder it lies in. All methods may be called from any thread."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(self.path, timeout=10, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA foreign_keys=ON")
        # What is deleted is overwritten: forgotten masks must not linger in free pages.
        self._connection.execute("PRAGMA secure_delete=ON")
        bring_up_to_date(self._connection, self.path.name)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self, at_once: bool = True) -> Iterator[sqlite3.Connection]:
        """All that the block does with the connection, or nothing of it. at_once: it survives a power cut when it ends."""
        with self._lock:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if at_once else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has undone it itself when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: tuple = ()) -> list[tuple]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def record_proposal(
        self,
        image_id: str,
        image_hash: str,
        mask: np.ndarray,
        *,
        model: str,
        version: str,
        client: str = "",
        prompts: dict[str, Any] | None = None,
        reply: dict[str, Any] | None = None,
        cache_keys: list[str] | None = None,
    ) -> int:
        """Keep one reply; mask: (T, H, W), non-zero inside. Returns its id."""
        values: tuple[Any, ...] = (
            now(),
            image_id,
            image_hash,
            model,
            version,
            client,
            as_json(prompts),
            as_json(reply),
        )
        packed = Packed.of(mask)
        values += (json.dumps(cache_keys or []), packed.shape, packed.bits)
        with self.transaction() as connection:
            return new_id(connection.execute(f"INSERT INTO proposals VALUES (NULL{', ?' * 11})", values))

    def record_correction(
        self,
        image_id: str,
        image_hash: str,
        mask: np.ndarray,
        *,
        author: str = "",
        client: str = "",
        info: dict[str, Any] | None = None,
    ) -> int:
        """Keep a final label with the newest proposal that was made for this image, the client's own first.

        One made for the same file in a session counts too: it joined the studies afterwards.
        """
        packed = Packed.of(mask)
        with self.transaction() as connection:
            return add_correction(connection, image_id, image_hash, packed, author=author, client=client, info=info)

    def proposals(self, image_id: str | None = None) -> list[StoredProposal]:
        """All proposals, or those for one image, oldest first."""
        where, values = _of_image(image_id)
        return [proposal_of(r) for r in self.rows(f"SELECT * FROM proposals {where} ORDER BY id", values)]

    def proposal(self, proposal_id: int) -> StoredProposal | None:
        """One proposal, None when it was forgotten."""
        rows = self.rows("SELECT * FROM proposals WHERE id = ?", (proposal_id,))
        return proposal_of(rows[0]) if rows else None

    def newest_proposal(self, image_id: str) -> tuple[str, str] | None:
        """(model, version) of the last proposal for this image, None where there was none."""
        query = "SELECT model, version FROM proposals WHERE image_id = ? ORDER BY id DESC LIMIT 1"
        rows = self.rows(query, (image_id,))
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def corrections(self, image_id: str | None = None) -> list[StoredCorrection]:
        """All corrections, or those of one image, oldest first; without those whose label is not in its place yet."""
        where, values = _of_image(image_id)
        query = f"SELECT {CORRECTION} FROM corrections {where + ' AND' if where else 'WHERE'} {_DONE} ORDER BY id"
        return [correction_of(row) for row in self.rows(query, values)]

    def correction_ids(self, image_id: str | None = None) -> list[tuple[int, str]]:
        """(id, image id) of ``corrections``: years of them, without their masks."""
        where, values = _of_image(image_id)
        query = f"SELECT id, image_id FROM corrections {where + ' AND' if where else 'WHERE'} {_DONE} ORDER BY id"
        return [(int(row[0]), str(row[1])) for row in self.rows(query, values)]

    def standing(self) -> set[int]:
        """Of each image the id of the correction that no later one superseded."""
        query = f"SELECT MAX(id) FROM corrections WHERE {_DONE} AND json_extract(info, '$.{BESIDE}') IS NULL GROUP BY image_id"
        return {int(row[0]) for row in self.rows(query)}

    def correction(self, correction_id: int) -> StoredCorrection | None:
        """One correction, None when it was forgotten."""
        rows = self.rows(f"SELECT {CORRECTION} FROM corrections WHERE id = ?", (correction_id,))
        return correction_of(rows[0]) if rows else None

    def note_shown(self, image_id: str, client: str, image_hash: str = "") -> None:
        """An image was handed out to a client (empty: nobody knows who); noted once between two saves of it by the client.

        image_hash: of a session, whose image may join the studies under another id.
        """
        with self.transaction(at_once=False) as connection:
            add_shown(connection, image_id, image_hash, client)

    def record_promotion(self, name: str, version: str, by: str, before: str, report: dict[str, Any] | None) -> int:
        """A model became the served one (``StoredPromotion``). report: without ids of images, which ``forget`` would not
        find. Returns its id."""
        with self.transaction() as connection:
            values = (now(), name, version, by, before, as_json(report))
            return new_id(connection.execute("INSERT INTO promotions VALUES (NULL, ?, ?, ?, ?, ?, ?)", values))

    def promotions(self) -> list[StoredPromotion]:
        """All promotions, oldest first."""
        return [promotion_of(row) for row in self.rows("SELECT * FROM promotions ORDER BY id")]

    def cache_keys(self, image_id: str) -> set[str]:
        """The embedding cache's names of all frames of this image that were ever computed."""
        rows = self.rows("SELECT cache_keys FROM proposals WHERE image_id = ?", (image_id,))
        return {key for row in rows for key in json.loads(row[0])} | self.prepared(image_id) - {OPENED}

    def note_prepared(self, image_id: str, image_hash: str, cache_keys: Iterable[str]) -> None:
        """Remember names in the embedding cache that no proposal knows; before they are used, so that none is missed."""
        with self.transaction() as connection:
            values = [(image_id, image_hash, key) for key in cache_keys]
            connection.executemany("INSERT OR REPLACE INTO prepared VALUES (?, ?, ?)", values)

    def note_opened(self, image_id: str) -> None:
        """Note OPENED: what is forgotten before the first name is noted shows, too."""
        self.note_prepared(image_id, image_id, [OPENED])  # no file's hash: no other image is forgotten along with it

    def prepared(self, image_id: str) -> set[str]:
        """The names that were noted for this image, none of them when it was forgotten since."""
        return {row[0] for row in self.rows("SELECT cache_key FROM prepared WHERE image_id = ?", (image_id,))}

    def drop_prepared(self, image_id: str, cache_keys: Iterable[str]) -> None:
        with self.transaction() as connection:
            values = [(image_id, key) for key in cache_keys]
            connection.executemany("DELETE FROM prepared WHERE image_id = ? AND cache_key = ?", values)

    def forget(self, image_id: str) -> tuple[int, int]:
        """Remove all rows of one image; returns how many proposals and corrections there were.

        The same file sent as an upload or a session, under a name of its own, is the same image: its rows go too.
        """
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT image_hash FROM proposals WHERE image_id = ?1 "
                "UNION SELECT image_hash FROM corrections WHERE image_id = ?1 "
                "UNION SELECT image_hash FROM prepared WHERE image_id = ?1",
                (image_id,),
            ).fetchall()
            elsewhere = "(image_id LIKE 'upload:%' OR image_id LIKE 'session:%') AND image_hash = ?"
            counts = []
            connection.execute("DELETE FROM saves WHERE image_id = ?", (image_id,))
            for table in ("corrections", "proposals", "prepared", "shown"):
                removed = connection.execute(f"DELETE FROM {table} WHERE image_id = ?", (image_id,)).rowcount
                for row in rows:
                    removed += connection.execute(f"DELETE FROM {table} WHERE {elsewhere}", row).rowcount
                counts.append(removed)
            corrections, proposals = counts[:2]
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return proposals, corrections


def _of_image(image_id: str | None) -> tuple[str, tuple]:
    return ("", ()) if image_id is None else ("WHERE image_id = ?", (image_id,))
