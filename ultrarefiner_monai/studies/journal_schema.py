"""The tables of the journal, and how a file of an older version comes to have them.

``shown`` says when an image was handed out to a client, ``promotions`` which model became the served one. Rows are added,
and removed only by ``forget``, by a save that is taken back, and by what was prepared and given up. Order is by id: the
clock may jump.
"""

from __future__ import annotations

import sqlite3

# 1 had no saves. 2 did not know of a correction when its image was shown and what was offered first, nor of promotions.
SCHEMA_VERSION = 3

_TABLES = """
CREATE TABLE IF NOT EXISTS proposals (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, image_id TEXT NOT NULL, image_hash TEXT NOT NULL,
    model TEXT NOT NULL, version TEXT NOT NULL, client TEXT NOT NULL, prompts TEXT NOT NULL, reply TEXT NOT NULL,
    cache_keys TEXT NOT NULL, shape TEXT NOT NULL, mask BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS proposals_of_image ON proposals (image_id, id);
CREATE TABLE IF NOT EXISTS corrections (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, image_id TEXT NOT NULL, image_hash TEXT NOT NULL,
    proposal_id INTEGER REFERENCES proposals (id) ON DELETE SET NULL, author TEXT NOT NULL, client TEXT NOT NULL,
    info TEXT NOT NULL, shape TEXT NOT NULL, mask BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS corrections_of_image ON corrections (image_id, id);
CREATE TABLE IF NOT EXISTS prepared (
    image_id TEXT NOT NULL, image_hash TEXT NOT NULL, cache_key TEXT NOT NULL, PRIMARY KEY (image_id, cache_key));
CREATE TABLE IF NOT EXISTS saves (
    id INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL, plan TEXT NOT NULL,
    correction_id INTEGER REFERENCES corrections (id) ON DELETE SET NULL);
CREATE TABLE IF NOT EXISTS shown (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, image_id TEXT NOT NULL, image_hash TEXT NOT NULL,
    client TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS shown_of_image ON shown (image_id, id);
CREATE TABLE IF NOT EXISTS promotions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
    promoted_by TEXT NOT NULL, before TEXT NOT NULL, report TEXT NOT NULL);
"""

# shown: ISO time, NULL where nobody knows. first_proposal_id: the automatic proposal that the work began with. The last two
# are the newest ids there were when the label was saved: what comes after them belongs to the next save.
_NEW_IN_3 = (
    "shown TEXT",
    "first_proposal_id INTEGER REFERENCES proposals (id) ON DELETE SET NULL",
    "newest_proposal INTEGER",
    "newest_shown INTEGER",
)


def bring_up_to_date(connection: sqlite3.Connection, name: str) -> None:
    """Make the tables, or add what an older version lacks: all of it or, when the process dies, nothing.

    connection: in autocommit mode. name: the file's, for the message of the RuntimeError where a newer version wrote it.
    """
    if _version(connection, name) == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _version(connection, name) != SCHEMA_VERSION:  # another process may have been quicker
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            known = {row[1] for row in connection.execute("PRAGMA table_info(corrections)")}
            for column in _NEW_IN_3:
                if column.split()[0] not in known:
                    connection.execute(f"ALTER TABLE corrections ADD COLUMN {column}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, name: str) -> int:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > SCHEMA_VERSION:
        raise RuntimeError(f"{name} was written by a newer version (schema {found}, known {SCHEMA_VERSION})")
    return found
