"""Files that somebody cares about: written beside their place and renamed, so that nobody ever sees half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file (``wb``, or ``w`` for UTF-8 text) that takes ``path``'s place when the block ends without an error.

    After an error, a full disk among them, what stood at ``path`` is still there and nothing is left beside it.
    """
    path = Path(path)
    beside = path.with_name(f".{uuid.uuid4().hex}.part")  # short: a name may fill a file name's whole length
    binary = "b" in mode
    try:
        with open(beside, mode, encoding=None if binary else "utf-8", newline=None if binary else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def copy_in(source: str | Path, path: str | Path) -> None:
    """Copy a file so that ``path`` holds all of it, or what stood there before."""
    with open(source, "rb") as given, replacing(path) as taken:
        shutil.copyfileobj(given, taken, 1 << 20)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
