"""The journal as a table: what stands in a row, what is not known, and that it takes little memory."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_rows import BESIDE
from ultrarefiner_monai.studies.journal_table import COLUMNS, Row, table_rows, write_table

CLICKS = {
    "0": {"foreground_xy": [[1.0, 2.0], [3.0, 2.0]], "background_xy": [[7.0, 7.0]], "box_xyxy": [0, 0, 5, 5]},
    "2": {"foreground_xy": [[4.0, 4.0]], "background_xy": [], "box_xyxy": None},
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "work" / "journal.sqlite")


def square(size: int, *frames: int, of: int = 1) -> np.ndarray:
    mask = np.zeros((of, 20, 20), np.uint8)
    for k in frames or (0,):
        mask[k, :size, :10] = 1
    return mask


def table(journal: Journal) -> list[Row]:
    text = io.StringIO()
    count = write_table(journal, text)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert len(rows) == count and all(tuple(row) == COLUMNS for row in rows)
    return rows


def test_a_row_says_what_was_offered_and_what_became_of_it(journal: Journal) -> None:
    journal.note_shown("a", "c")
    journal.record_proposal("a", "h", square(4), model="ultrarefiner", version="v1", client="c")
    journal.record_proposal("a", "h", square(8), model="sam_refiner", version="v2", client="c", prompts=CLICKS)
    journal.record_correction("a", "h", square(10), author="dr one", client="c")
    (row,) = table(journal)
    assert (row["image"], row["image_sha256"], row["author"], row["client"]) == ("a", "h", "dr one", "c")
    assert (row["model"], row["version"], row["first_model"], row["first_version"]) == (
        "sam_refiner",
        "v2",
        "ultrarefiner",
        "v1",
    )
    assert (row["foreground_clicks"], row["background_clicks"], row["boxes"]) == ("3", "1", "1")
    assert json.loads(row["clicks"]) == CLICKS
    assert float(row["dice_first"]) == pytest.approx(2 * 40 / 140, abs=1e-4)
    assert float(row["dice_last"]) == pytest.approx(2 * 80 / 180, abs=1e-4)
    assert [row[f"area_{name}"] for name in ("first", "last", "label")] == ["40", "80", "100"]
    assert 0 <= float(row["seconds"]) < 60 and row["shown"] <= row["saved"] and row["superseded"] == "0"


def test_saves_that_were_superseded_are_marked_and_kept(journal: Journal) -> None:
    for author in ("one", "two"):
        journal.record_correction("a", "h", square(4), author=author)
    journal.record_correction("b", "h", square(4), author="three")
    late = journal.record_correction("a", "h", square(4), author="late", info={BESIDE: True})
    assert [(r["author"], r["superseded"]) for r in table(journal)] == [
        ("one", "1"),
        ("two", "0"),
        ("three", "0"),
        ("late", "1"),
    ]
    assert [r["label"] for r in table_rows(journal, "a")] == ["1", "2", str(late)]


def test_what_is_not_known_is_empty(journal: Journal) -> None:
    journal.record_correction("a", "h", square(4))
    (row,) = table(journal)
    empty = {name for name in COLUMNS if row[name] == ""}
    assert empty == {
        *(
            "author",
            "client",
            "shown",
            "seconds",
            "model",
            "version",
            "first_model",
            "first_version",
            "clicks",
            "boxes",
        ),
        *("foreground_clicks", "background_clicks", "dice_first", "dice_last", "area_first", "area_last"),
    }
    assert row["area_label"] == "40"


def test_of_a_cine_the_frames_that_were_marked_and_answered_are_compared(journal: Journal) -> None:
    label = square(10, 1, 3, of=5)
    whole = [{"frame": k} for k in range(5)]
    offered = square(10, 0, 1, 2, 3, 4, of=5)
    journal.record_proposal("a", "h", offered, model="ultrarefiner", version="v", reply={"frames": whole})
    journal.record_proposal("a", "h", square(5, 3, of=5), model="sam_refiner", version="v", reply={"frame": 3})
    journal.record_correction("a", "h", label)
    (row,) = table(journal)
    assert (row["frames"], row["frames_marked"], row["frames_compared"]) == ("5", "2", "1")
    assert (row["dice_last"], row["area_label"]) == ("0.66667", "100")
    assert row["dice_first"] == "1.00000", "frames that the label does not mark may just not have been looked at"


def test_an_empty_label_is_compared_too(journal: Journal) -> None:
    journal.record_proposal("a", "h", square(4), model="ultrarefiner", version="v")
    journal.record_correction("a", "h", np.zeros((1, 20, 20), np.uint8))
    (row,) = table(journal)
    assert (row["dice_first"], row["area_label"], row["frames_marked"], row["frames_compared"]) == (
        "0.00000",
        "0",
        "0",
        "1",
    )


def test_names_that_clients_choose_are_no_formulas_and_stay_on_one_line(journal: Journal) -> None:
    journal.record_correction("a", "h", square(4), author="=HYPERLINK(1)", client="two\nlines, and a comma")
    (row,) = table(journal)
    assert (row["author"], row["client"]) == ("'=HYPERLINK(1)", "two lines, and a comma")


def test_thousands_of_labels_are_read_one_by_one(journal: Journal) -> None:
    noise = (np.random.default_rng(0).random((1, 300, 300)) > 0.5).astype(np.uint8)
    for _ in range(100):
        journal.record_correction("a", "h", noise)
    tracemalloc.start()
    rows = sum(1 for _ in table_rows(journal))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 100 and peak < 20 * noise.nbytes
