"""What is read of the journal for the curves, beside a server that writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrarefiner_monai.learning.label_figures import LabelFigures, clicks_in, packed_dice
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.masks.pixels import pack_mask
from ultrarefiner_monai.studies.journal import Journal

CLICKS = {"0": {"foreground_xy": [[1, 2], [3, 4]], "background_xy": [[5, 6]], "box_xyxy": [0, 0, 9, 9]}}


def mask(width: int, frames: int = 1) -> np.ndarray:
    found = np.zeros((frames, 20, 30), np.uint8)
    found[:, :10, :width] = 1
    return found


def save(journal: Journal, image: str, proposed: int, saved: int, prompts: dict | None = None) -> int:
    kind = {"model": "ultrarefiner", "version": "v1", "client": "c", "prompts": prompts}
    journal.record_proposal(image, f"hash {image}", mask(proposed), **kind)
    return journal.record_correction(image, f"hash {image}", mask(saved), client="c")


@pytest.fixture
def journal(tmp_path: Path):
    opened = Journal(tmp_path / "work" / "journal.sqlite")
    yield opened
    opened.close()


def test_no_journal(tmp_path: Path) -> None:
    assert LabelFigures(tmp_path / "none.sqlite").look() == []
    assert not list(tmp_path.iterdir())


def test_each_save_with_its_figures(journal: Journal) -> None:
    save(journal, "a", 10, 20)
    save(journal, "b", 10, 10)
    journal.record_correction("c", "hash c", mask(5))
    found = LabelFigures(journal.path).look()
    assert [s.image_id for s in found] == ["a", "b", "c"]
    assert [s.dice for s in found] == [pytest.approx(2 / 3), 1.0, None]
    assert [s.clicks for s in found] == [0, 0, None] and [s.version for s in found] == ["v1", "v1", ""]


def test_what_was_clicked_is_no_measure_of_the_proposal(journal: Journal) -> None:
    save(journal, "a", 10, 10, CLICKS)
    (found,) = LabelFigures(journal.path).look()
    assert found.clicks == 4 and found.dice is None


def test_only_what_is_new_is_compared_and_what_was_forgotten_is_gone(journal: Journal) -> None:
    figures = LabelFigures(journal.path)
    for k in range(230):
        save(journal, f"i{k}", 10, 20)
    told: list[tuple[int, int]] = []
    assert len(figures.look(lambda saves: told.append((len(saves), figures.left)))) == 230
    assert told == [(200, 30)] and figures.left == 0
    # Read again, a mask that cannot be unpacked would raise: those that are known are not.
    journal.rows("UPDATE corrections SET mask = x'00' WHERE image_id = 'i0'")
    save(journal, "new", 10, 10)
    assert [s.dice for s in figures.look()][-1] == 1.0
    journal.forget("new")
    assert len(figures.look()) == 230


def test_a_label_that_is_not_in_its_place_yet_does_not_count(journal: Journal) -> None:
    number = save(journal, "a", 10, 20)
    with journal.transaction() as connection:
        connection.execute("INSERT INTO saves VALUES (NULL, 'a', '{}', ?)", (number,))
    assert LabelFigures(journal.path).look() == []


def test_another_journal_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "work" / "journal.sqlite"
    figures = LabelFigures(path)
    for saved, dice in ((20, 2 / 3), (10, 1.0)):
        for old in path.parent.glob("*"):
            old.unlink()
        journal = Journal(path)
        save(journal, "a", 10, saved)
        journal.rows("UPDATE corrections SET created = ?", (f"2026-01-01T00:00:{saved}+00:00",))
        assert [s.dice for s in figures.look()] == [pytest.approx(dice)]
        journal.close()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_dice_of_packed_masks_is_that_of_the_masks(seed: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((frames, 7, 9)) < rng.choice([0, 0.5, 1]) for _ in range(2))
    rows = {"frames": [{"frame": k} for k in range(frames)]}
    assert packed_dice(pack_mask(a), pack_mask(b), a.shape, rows) == pytest.approx(dice_of(a, b))
    assert packed_dice(pack_mask(a), pack_mask(b), a.shape, {"frame": frames - 1}) == pytest.approx(
        dice_of(a[-1], b[-1])
    )
    other = packed_dice(pack_mask(a), pack_mask(b), a.shape, {"frame": 9})
    assert other is None if frames > 1 else other == pytest.approx(dice_of(a, b)), "a picture's only frame is meant"


def test_clicks() -> None:
    assert clicks_in(CLICKS) == 4 and clicks_in({}) == 0 and clicks_in({**CLICKS, "1": CLICKS["0"]}) == 8
