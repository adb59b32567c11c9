"""What a correction knows of the work before it, promotions, and journals of older versions."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import ended, forked, steps

from ultrarefiner_monai.masks.pixels import pack_mask
from ultrarefiner_monai.studies import journal_links, journal_rows
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_rows import StoredCorrection

CLICKS = {"0": {"foreground_xy": [[1.0, 2.0]], "background_xy": [], "box_xyxy": None}}
MASK = np.ones((1, 4, 5), np.uint8)

# As versions 1 and 2 wrote them, word for word.
ONE = """
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
"""
TWO = (
    ONE
    + """
CREATE TABLE IF NOT EXISTS saves (
    id INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT NOT NULL, plan TEXT NOT NULL,
    correction_id INTEGER REFERENCES corrections (id) ON DELETE SET NULL);
"""
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "work" / "journal.sqlite")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seconds of the day that the journal's clock shows; the last one stands."""
    time = [0]

    def now() -> str:
        return f"2030-01-01T{time[-1] // 3600:02d}:{time[-1] // 60 % 60:02d}:{time[-1] % 60:02d}.000+00:00"

    for module in (journal_rows, journal_links):
        monkeypatch.setattr(module, "now", now)
    monkeypatch.setattr("ultrarefiner_monai.studies.journal.now", now)
    return time


def propose(journal: Journal, image: str = "a", client: str = "c", clicks: Any = None, image_hash: str = "h") -> int:
    model = "sam_refiner" if clicks else "ultrarefiner"
    return journal.record_proposal(image, image_hash, MASK, model=model, version="v", client=client, prompts=clicks)


def save(
    journal: Journal, client: str = "c", author: str = "", image: str = "a", image_hash: str = "h"
) -> StoredCorrection:
    found = journal.correction(
        journal.record_correction(image, image_hash, MASK, author=author or client, client=client)
    )
    assert found is not None
    return found


def old_journal(path: Path, version: int) -> None:
    old = sqlite3.connect(path)
    old.executescript(TWO if version == 2 else ONE)
    old.execute("PRAGMA journal_mode=WAL")
    old.execute(f"PRAGMA user_version={version}")
    packed = (json.dumps(MASK.shape), pack_mask(MASK))
    proposal = (
        "2026-01-01T00:00:00.000+00:00",
        "a",
        "h",
        "sam_refiner",
        "v0",
        "c",
        json.dumps(CLICKS),
        "{}",
        "[]",
        *packed,
    )
    old.execute(f"INSERT INTO proposals VALUES (NULL{', ?' * 11})", proposal)
    for author in ("dr one", "dr two"):
        old.execute(f"INSERT INTO corrections VALUES (NULL{', ?' * 9})", ("t", "a", "h", 1, author, "c", "{}", *packed))
    if version == 2:  # the second one's save was cut off
        old.execute("INSERT INTO saves VALUES (NULL, 'a', '{}', 2)")
    old.commit()
    old.close()


# --- what came before a save ------------------------------------------------------------------------------------------


def test_a_correction_knows_what_was_offered_first_and_since_when(journal: Journal, clock: list[int]) -> None:
    journal.note_shown("a", "c")
    clock.append(5)
    journal.note_shown("a", "c")  # again: the first time counts
    first, clicked = propose(journal), propose(journal, clicks=CLICKS)
    clock.append(47)
    saved = save(journal)
    assert (saved.first_proposal_id, saved.proposal_id, saved.seconds) == (first, clicked, 47.0)


def test_a_save_again_is_counted_from_the_save_before(journal: Journal, clock: list[int]) -> None:
    journal.note_shown("a", "c")
    first = propose(journal)
    clock.append(60)
    save(journal)
    clock.append(100)
    clicked = propose(journal, clicks=CLICKS)
    clock.append(130)
    again = save(journal)
    assert (again.seconds, again.first_proposal_id, again.proposal_id) == (30.0, first, clicked)
    clock.append(200)
    journal.note_shown("a", "c")
    anew = propose(journal)
    clock.append(210)
    third = save(journal)
    assert (third.seconds, third.first_proposal_id) == (10.0, anew)
    assert [c.id for c in journal.corrections("a")] == [1, 2, 3], "history is kept"
    assert save(journal).seconds is None, "nothing was shown since"


def test_of_a_replaced_file_nothing_is_inherited(journal: Journal) -> None:
    propose(journal)
    save(journal)
    assert save(journal, image_hash="another file").first_proposal_id is None


def test_each_client_has_its_own_times(journal: Journal, clock: list[int]) -> None:
    journal.note_shown("a", "early")
    journal.note_shown("a", "")
    propose(journal, client="early")
    clock.append(300)
    mine = propose(journal, client="late")
    clock.append(310)
    late = save(journal, "late")
    assert (late.first_proposal_id, late.seconds) == (mine, 10.0)
    assert save(journal, "early").seconds == 310.0
    assert save(journal, "unknown").seconds is None, "what was shown to others says nothing"
    assert save(journal, "").seconds == 310.0, "nobody said who they are: all of these are one"


def test_who_asked_for_nothing_was_shown_the_newest_of_others(journal: Journal) -> None:
    propose(journal, client="batch")
    newest = propose(journal, client="batch")
    propose(journal, client="batch", clicks=CLICKS)
    assert save(journal, "c").first_proposal_id == newest


def test_who_is_logged_in_is_known_by_name(journal: Journal, clock: list[int]) -> None:
    journal.note_shown("a", "dr one")
    clock.append(8)
    assert save(journal, client="slicer", author="dr one").seconds == 8.0


def test_a_session_that_became_an_image_was_shown_as_one(journal: Journal, clock: list[int]) -> None:
    journal.note_shown("session:1", "c", "h")
    journal.note_shown("session:2", "c", "other")
    first = propose(journal, "session:1")
    clock.append(20)
    saved = save(journal)
    assert (saved.seconds, saved.first_proposal_id) == (20.0, first)


def test_a_clock_that_jumps_back_gives_no_negative_times_and_keeps_the_order(
    journal: Journal, clock: list[int]
) -> None:
    clock.append(5000)
    journal.note_shown("a", "c")
    first = propose(journal)
    clock.append(100)  # back
    clicked = propose(journal, clicks=CLICKS)
    clock.append(90)
    saved = save(journal)
    assert (saved.first_proposal_id, saved.proposal_id, saved.seconds) == (first, clicked, None)
    clock.append(10)
    journal.note_shown("a", "c")
    anew = propose(journal)
    clock.append(25)
    again = save(journal)
    assert (again.first_proposal_id, again.seconds) == (anew, 15.0)
    assert [c.id for c in journal.corrections()] == [saved.id, again.id]


@pytest.mark.parametrize("shown", [None, "", "yesterday", "2030-01-01T00:00:00"])
def test_times_that_are_none_are_not_known(shown: str | None) -> None:
    assert journal_rows.seconds_between(shown, "2030-01-01T00:00:09.000+00:00") is None


def test_an_image_that_is_fetched_over_and_over_is_noted_once(journal: Journal) -> None:
    for _ in range(50):
        journal.note_shown("a", "c")
    journal.note_shown("a", "d")
    save(journal)
    journal.note_shown("a", "c")
    assert [r[0] for r in journal.rows("SELECT client FROM shown ORDER BY id")] == ["c", "d", "c"]


def test_forgetting_removes_when_an_image_was_shown(journal: Journal) -> None:
    journal.note_shown("a", "c")
    journal.note_shown("session:1", "c", "h")
    journal.note_shown("session:2", "c", "other")
    journal.note_shown("b", "c")
    propose(journal)
    save(journal)
    assert journal.forget("a") == (1, 1)
    assert [r[0] for r in journal.rows("SELECT image_id FROM shown ORDER BY id")] == ["session:2", "b"]
    assert save(journal).first_proposal_id is None


def test_a_first_proposal_that_is_forgotten_is_none(journal: Journal) -> None:
    propose(journal, "session:1")
    saved = save(journal)
    assert saved.first_proposal_id == 1
    journal.forget("session:1")
    kept = journal.correction(saved.id)
    assert kept is not None and kept.first_proposal_id is None and kept.proposal_id is None


# --- promotions -------------------------------------------------------------------------------------------------------


def test_promotions_come_back_in_their_order(journal: Journal) -> None:
    report = {"passed": True, "dice": [0.8, 0.9]}
    one = journal.record_promotion("2030-refiner", "abc", "slow", "configured", report)
    two = journal.record_promotion("configured", "def", "person", "2030-refiner", None)
    first, second = Journal(journal.path).promotions()
    assert (first.id, first.name, first.version, first.by, first.before) == (
        one,
        "2030-refiner",
        "abc",
        "slow",
        "configured",
    )
    assert first.report == report and (second.id, second.by, second.report) == (two, "person", {})


# --- older files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_journal_goes_on(tmp_path: Path, version: int) -> None:
    old_journal(tmp_path / "journal.sqlite", version)
    journal = Journal(tmp_path / "journal.sqlite")
    authors = ["dr one", "dr two"][: 2 if version == 1 else 1]
    assert [(c.author, c.proposal_id, c.seconds, c.first_proposal_id) for c in journal.corrections()] == [
        (author, 1, None, None) for author in authors
    ]
    assert journal.proposals("a")[0].prompts == CLICKS and np.array_equal(journal.corrections()[0].mask, MASK)
    first = propose(journal)
    saved = save(journal, author="dr one")
    assert (saved.id, saved.first_proposal_id, saved.proposal_id) == (3, first, first)
    assert saved.seconds is not None and saved.seconds < 60, "counted from what came after the old save"
    journal.record_promotion("m", "v", "quick", "", {})
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert len(again.corrections()) == len(authors) + 1 and len(again.promotions()) == 1
    assert again.forget("a")[1] == 3


def test_killed_at_any_step_of_bringing_up_to_date_nothing_is_lost(tmp_path: Path) -> None:
    old_journal(tmp_path / "old.sqlite", 2)
    status = -signal.SIGKILL
    for at in range(1, 100):
        path = tmp_path / str(at) / "journal.sqlite"
        path.parent.mkdir()
        shutil.copy(tmp_path / "old.sqlite", path)

        def work(path: Path = path, at: int = at) -> None:
            with steps(at, "kill"):
                Journal(path)

        status = ended(forked(work))
        assert status in (0, -signal.SIGKILL)
        found = sqlite3.connect(path)
        columns = [row[1] for row in found.execute("PRAGMA table_info(corrections)")]
        assert ("shown" in columns) == (found.execute("PRAGMA user_version").fetchone() == (3,))
        found.close()
        journal = Journal(path)
        assert [c.author for c in journal.corrections()] == ["dr one"]
        assert save(journal).id == 3
        journal.close()
        if status == 0:
            break
    assert status == 0 and at > 10


def test_two_processes_may_bring_it_up_to_date_at_the_same_time(tmp_path: Path) -> None:
    for n in range(5):
        path = tmp_path / f"{n}.sqlite"
        old_journal(path, 2)
        with ThreadPoolExecutor(8) as pool:
            journals = list(pool.map(lambda _: Journal(path), range(8)))  # noqa: B023
        assert {len(journal.corrections()) for journal in journals} == {1}
