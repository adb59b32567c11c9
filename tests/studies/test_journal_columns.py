"""The page for researchers explains each column of the exported journal."""

from __future__ import annotations

import re
from pathlib import Path

from ultrarefiner_monai.studies.journal_table import COLUMNS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "research" / "journal.md"


def test_each_column_is_explained_and_no_other() -> None:
    text = PAGE.read_text(encoding="utf-8")
    part = text[text.index("## Columns") : text.index("Work done by hand")]
    named = [
        name for row in part.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(named) == sorted(COLUMNS)
