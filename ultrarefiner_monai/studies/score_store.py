"""What is known of each image before anybody labels it, kept in SQLite in the work folder: the next sample is chosen by it.

An image's *vector* (what an image encoder makes of it) with its thumbnail and group stays while the file and the encoder
stay; its *scores* stay while the model stays, too. All of it can be computed anew: a damaged file is removed. Thumbnails
derive from patients' pixels: ``ultrarefiner forget`` removes an image's rows, and notes that a server that runs does not
compute them again unasked.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    image_id TEXT PRIMARY KEY, state TEXT NOT NULL, encoder TEXT NOT NULL, vector BLOB NOT NULL,
    thumbnail BLOB NOT NULL, patient TEXT NOT NULL, family INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS scores (
    image_id TEXT PRIMARY KEY, state TEXT NOT NULL, model TEXT NOT NULL, disagreement REAL NOT NULL,
    boundary_entropy REAL NOT NULL, found INTEGER NOT NULL, presence REAL);
CREATE TABLE IF NOT EXISTS forgotten (image_id TEXT PRIMARY KEY);
"""


@dataclass(frozen=True)
class StoredVector:
    """state: of the image's file. encoder: what made ``vector`` (D,) float16. thumbnail: (N,) float16. patient: a hash, ""
    where it is not known. group: one number for images that are alike or one patient's."""

    image_id: str
    state: str
    encoder: str
    vector: np.ndarray
    thumbnail: np.ndarray
    patient: str
    group: int


@dataclass(frozen=True)
class StoredScores:
    """state: of the image's file. model: the version that made them. The figures are those of
    ``learning.sampling.table.ScoreTable``; presence: None from a network that does not say."""

    image_id: str
    state: str
    model: str
    disagreement: float
    boundary_entropy: float
    found: bool
    presence: float | None


class ScoreStore:
    """The scores at ``path``, made when missing; the folder it lies in is not made. Any thread may call its methods. Several
    processes may use one file at the same time."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, no room, no permission: the file itself is sound
                raise
            remove_scores(self.path)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=10, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # what a power cut takes is computed again
            # What is deleted is overwritten: forgotten pictures must not linger in free pages.
            connection.execute("PRAGMA secure_delete=ON")
            if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"{self.path.name} was written by another version")
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError(f"{self.path.name} is damaged")
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version={_VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def changes(self) -> int:
        """Another number when another process, or another ``ScoreStore``, has written since."""
        with self._lock:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    # --- what is known ------------------------------------------------------------------------------------------------

    def vectors(self) -> list[StoredVector]:
        with self._lock:
            rows = self._connection.execute("SELECT * FROM vectors").fetchall()
        return [StoredVector(i, state, made, _halves(v), _halves(t), *rest) for i, state, made, v, t, *rest in rows]

    def scores(self) -> list[StoredScores]:
        with self._lock:
            rows = self._connection.execute("SELECT * FROM scores").fetchall()
        return [StoredScores(i, state, made, d, b, bool(found), p) for i, state, made, d, b, found, p in rows]

    def put(self, vector: StoredVector, scores: StoredScores, joined: Iterable[int] = ()) -> bool:
        """Keep what was computed of one image. joined: groups that turned out to be the same as the vector's. False, and
        nothing is kept, where the image was forgotten meanwhile."""
        bits = [np.asarray(a, np.float16).tobytes() for a in (vector.vector, vector.thumbnail)]
        values = (vector.image_id, vector.state, vector.encoder, *bits, vector.patient, vector.group)
        with self._writing() as connection:
            if connection.execute("SELECT 1 FROM forgotten WHERE image_id = ?", (vector.image_id,)).fetchone():
                return False
            connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            connection.executemany(
                "UPDATE vectors SET family = ? WHERE family = ?", [(vector.group, group) for group in joined]
            )
            connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    scores.image_id,
                    scores.state,
                    scores.model,
                    float(scores.disagreement),
                    float(scores.boundary_entropy),
                    int(scores.found),
                    None if scores.presence is None else float(scores.presence),
                ),
            )
        return True

    # --- what goes ----------------------------------------------------------------------------------------------------

    def remove(self, image_ids: Iterable[str]) -> None:
        """Images that are not in the studies any more."""
        values = [(image_id,) for image_id in image_ids]
        with self._writing() as connection:
            for table in ("vectors", "scores", "forgotten"):
                connection.executemany(f"DELETE FROM {table} WHERE image_id = ?", values)

    def forget(self, image_id: str) -> bool:
        """Remove an image's rows; whether there were any. It is not kept again until ``remember``."""
        with self._writing() as connection:
            removed = [
                connection.execute(f"DELETE FROM {table} WHERE image_id = ?", (image_id,)).rowcount
                for table in ("vectors", "scores")
            ]
            connection.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (image_id,))
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return any(removed)

    def forgotten(self) -> set[str]:
        """Images that were forgotten and not asked for since."""
        with self._lock:
            return {row[0] for row in self._connection.execute("SELECT image_id FROM forgotten")}

    def remember(self, image_id: str) -> None:
        """Somebody opened the image: it may be scored again."""
        with self._writing() as connection:
            connection.execute("DELETE FROM forgotten WHERE image_id = ?", (image_id,))


def remove_scores(path: Path) -> None:
    """Remove the file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def _halves(blob: bytes) -> np.ndarray:
    return np.frombuffer(blob, np.float16)
