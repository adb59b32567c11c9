"""results.csv of a batch: a line as soon as an image is finished, so that a run that was killed can go on.

Lines are appended while it runs, each with one write that reaches the disk; what a kill left of a line is dropped when
the file is read again. At the end, and at the start of the next run, it is written anew, one line an image.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from ultrarefiner_monai.core.files import replacing

Row = dict[str, str]
DONE, FAILED = "done", "failed"
COLUMNS = (
    *("id", "source", "study_uid", "series_uid", "sop_uid", "version", "frames", "frame", "lesion", "lesion_frames"),
    *("long_axis", "short_axis", "area", "unit", "iou_pred", "uncertainty", "presence", "safety_rule", "seconds"),
    *("status", "error", "warnings", "mask", "stored", "time", "state"),
)


class Results:
    """The rows of one results.csv. One process writes it; ``source`` names the job that a row came from.

    ``state`` ends in the number of the job's rows, so that a job of which a kill left a part is known as unfinished.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rows: dict[str, list[Row]] = {}
        for row in _read(path):
            self._rows.setdefault(row["source"], []).append(row)

    def of(self, source: str) -> list[Row]:
        """The rows of a job, none when it was never answered."""
        return self._rows.get(source, [])

    def rows(self) -> list[Row]:
        """All rows, in the order of their ids."""
        return sorted((row for rows in self._rows.values() for row in rows), key=lambda row: (row["id"], row["source"]))

    def finished(self, source: str, state: str) -> list[Row]:
        """The rows of a job that was answered in full, without a failure, from this very ``state``; else none."""
        rows = self.of(source)
        sound = all(row["status"] == DONE and row["state"] == f"{state}/{len(rows)}" for row in rows)
        return rows if sound else []

    def add(self, source: str, state: str, rows: Sequence[Row]) -> None:
        """Put a job's rows in the place of its former ones, and on the disk. OSError when the disk is full."""
        common = {"source": source, "state": f"{state}/{len(rows)}", "time": datetime.now(timezone.utc).isoformat()}
        self._rows[source] = [{name: _plain({**row, **common}.get(name, "")) for name in COLUMNS} for row in rows]
        with self.path.open("ab") as file:
            file.write(_lines(self._rows[source]))
            file.flush()
            os.fsync(file.fileno())

    def drop(self, sources: Iterable[str]) -> None:
        """Forget jobs that are no longer asked for; the file follows with ``rewrite``."""
        for source in sources:
            self._rows.pop(source, None)

    def rewrite(self) -> None:
        """The whole file anew, atomically."""
        with replacing(self.path) as file:
            file.write(_lines([dict(zip(COLUMNS, COLUMNS)), *self.rows()]))

    def sources(self) -> set[str]:
        return set(self._rows)


def _lines(rows: Iterable[Row]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")


def _plain(value: str) -> str:
    """On one line, and UTF-8: file names may hold anything."""
    return " ".join(value.encode("utf-8", "backslashreplace").decode().split())


def _read(path: Path) -> list[Row]:
    """Whole rows only; of a job that was answered twice, in a run that was killed, the last answer counts."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        if None in row or None in row.values() or row.get("status") not in (DONE, FAILED) or not row.get("source"):
            continue  # torn, or of another version of this program
        rows.append({name: row.get(name) or "" for name in COLUMNS})
    newest: dict[str, str] = {}
    for row in rows:
        newest[row["source"]] = max(newest.get(row["source"], ""), row["time"])
    return [row for row in rows if row["time"] == newest[row["source"]]]
