"""What a disk, a share or the journal does wrong is said in words that hold no path."""

from __future__ import annotations

import errno
import re
import sqlite3
from pathlib import Path

import pytest
from filelock import Timeout

from ultrarefiner_monai.studies.failures import AWAY, FULL, LABEL, explain
from ultrarefiner_monai.studies.journal import Journal

SECRET = "/srv/secret/place"


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        ("ENOSPC", FULL, "full"),
        ("EDQUOT", FULL, "full"),
        ("EROFS", AWAY, "read-only"),
        ("EACCES", AWAY, "permission"),
        ("EPERM", AWAY, "permission"),
        ("EIO", AWAY, "does not answer"),
        ("ESTALE", AWAY, "does not answer"),
        ("EMFILE", AWAY, "too many files"),
        ("ENOENT", AWAY, "gone"),
        ("EISDIR", AWAY, "lies where"),
        ("EEXIST", AWAY, "lies where"),
    ],
)
def test_words_for_what_a_disk_does(number, status, words):
    error = OSError(getattr(errno, number), "its own words", SECRET)
    found = explain(error, LABEL)
    assert found is not None and found[0] == status and words in found[1] and SECRET not in found[1]
    assert "Your outline is not saved. Keep 3D Slicer open, tell your IT, then press Submit Label again." in found[1]
    reading = explain(error)
    assert reading is not None and "not saved" not in reading[1] and "IT" in reading[1]


@pytest.mark.parametrize("error", [OSError("image file is truncated"), OSError(errno.EINVAL, "x"), ValueError(), None])
def test_other_errors_are_not_explained(error):
    assert explain(error) is None


def test_a_lock_that_is_held():
    found = explain(Timeout(SECRET))
    assert found is not None and found[0] == AWAY and SECRET not in found[1]


def _locked(path: Path) -> None:
    first = sqlite3.connect(path, isolation_level=None)
    first.execute("BEGIN EXCLUSIVE")
    sqlite3.connect(path, timeout=0).execute("CREATE TABLE x (y)")


def _foreign(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    Journal(path)


def _read_only(path: Path) -> None:
    sqlite3.connect(path).execute("CREATE TABLE x (y)")
    sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("CREATE TABLE z (y)")


def _no_folder(path: Path) -> None:
    sqlite3.connect(path / "nothing" / "here")


def _full(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE x (y)")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("INSERT INTO x VALUES (?)", (b"x" * 100_000,))


@pytest.mark.parametrize(
    ("fail", "status", "words"),
    [
        (_locked, AWAY, "Another program"),
        (_foreign, AWAY, "journal.*damaged"),
        (_read_only, AWAY, "read-only"),
        (_no_folder, AWAY, "permission"),
        (_full, FULL, "disk of the server is full"),
    ],
)
def test_words_for_what_sqlite_does(tmp_path, fail, status, words):
    with pytest.raises(sqlite3.Error) as raised:
        fail(tmp_path / "journal.sqlite")
    found = explain(raised.value, LABEL)
    assert found is not None and found[0] == status and re.search(words, found[1])
    assert str(tmp_path) not in found[1]
