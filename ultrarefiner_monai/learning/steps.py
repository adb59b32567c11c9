"""The steps of the pointer in the journal: which model became the served one, when, by whom. The server begins the journal;
where there is none, nothing is noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultrarefiner_monai.learning.pointer import Pointer
from ultrarefiner_monai.studies.journal import Journal


def label_of(pointer: Pointer) -> str:
    """What is served, as the journal names it: the quick model where one is set, else the champion."""
    return pointer.quick or pointer.name


def last_promotion(journal: Path) -> str:
    """The name in the newest entry; empty where there is none. Raises what SQLite raises."""
    if not journal.is_file():
        return ""
    opened = Journal(journal)
    try:
        rows = opened.rows("SELECT name FROM promotions ORDER BY id DESC LIMIT 1")
    finally:
        opened.close()
    return str(rows[0][0]) if rows else ""


def note_promotion(
    journal: Path, pointer: Pointer, version: str, before: str, report: dict[str, Any] | None = None
) -> None:
    """Add an entry. before: what was served until then, as ``label_of`` names it."""
    if not journal.is_file():
        return
    opened = Journal(journal)
    try:
        opened.record_promotion(label_of(pointer), version, pointer.by, before, report)
    finally:
        opened.close()
