"""Files of the app that are damaged: kept under a dated name for somebody to look at, and known until they are removed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

ASIDE = ".broken-"
# What belongs to a SQLite file: left behind it would be taken for a part of the new one.
_ALONG = ("-wal", "-shm")


def set_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.broken-DATE, what SQLite keeps beside it too; where it is now."""
    aside = path.with_name(f"{path.name}{ASIDE}{datetime.now():%Y%m%d-%H%M%S}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}{ASIDE}{datetime.now():%Y%m%d-%H%M%S}-{count}")
    os.replace(path, aside)
    for end in _ALONG:
        beside = path.with_name(path.name + end)
        if beside.exists():
            os.replace(beside, aside.with_name(aside.name + end))
    return aside


def set_aside_files(paths: Iterable[Path]) -> list[Path]:
    """The damaged files that lie beside these, without what belongs to a SQLite file."""
    found = [p for path in paths for p in path.parent.glob(f"{path.name}{ASIDE}*")]
    return sorted(p for p in set(found) if not p.name.endswith(_ALONG))
