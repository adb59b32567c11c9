"""The summary that is kept: brought up to date behind whoever asks, and alive after what it cannot read."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from app_server import eventually

from lib.tasks import progress
from lib.tasks.progress import ProgressKeeper
from ultrarefiner_monai.studies.journal import Journal


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_OFTEN_SECONDS", 0.0)


def fill(path: Path, count: int, begin: int = 0) -> None:
    journal = Journal(path)
    mask = np.zeros((1, 60, 80), np.uint8)
    mask[0, :30, :40] = 1
    kind = {"model": "ultrarefiner", "version": "v1", "client": "c"}
    for k in range(begin, begin + count):
        journal.record_proposal(f"i{k}", f"h{k}", mask, **kind)
        journal.record_correction(f"i{k}", f"h{k}", mask, client="c")
    journal.record_promotion("ultrarefiner-1", "v2", "slow", "configured", {"reasons": ["better"]})
    journal.close()


def test_no_journal_then_one_then_more(tmp_path: Path) -> None:
    path = tmp_path / "work" / "journal.sqlite"
    keeper = ProgressKeeper(path)
    assert keeper.now(5).progress.images == 0 and not path.exists()
    for count in (3, 7):
        fill(path, count, begin=count)
        found = keeper.now(5)
        assert found.progress.images == (3 if count == 3 else 10) and not found.left
    assert found.progress.dice.recent == 1.0 and [p.by for p in found.promotions] == ["slow", "slow"]


def test_whoever_asks_does_not_wait_for_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "work" / "journal.sqlite"
    fill(path, 3)
    keeper = ProgressKeeper(path)
    seen = keeper._figures._dice
    monkeypatch.setattr(keeper._figures, "_dice", lambda *values: (time.sleep(0.4), seen(*values))[1])
    begin = time.monotonic()
    assert keeper.now().progress.images == 0 and keeper.now(0.1).progress.images == 0
    assert time.monotonic() - begin < 0.35
    assert eventually(lambda: keeper.now().progress.images == 3)


def test_mistakes_are_asked_for_when_there_are_new_labels(tmp_path: Path) -> None:
    path, asked = tmp_path / "work" / "journal.sqlite", []
    keeper = ProgressKeeper(path, lambda saves: asked.append(1) or len(asked))
    assert keeper.now(5).mistakes is None
    fill(path, 2)
    assert keeper.now(5).mistakes == 1 and keeper.now(5).mistakes == 1
    fill(path, 1, begin=2)
    assert keeper.now(5).mistakes == 2


def test_labels_are_counted_while_mistakes_are_looked_for(tmp_path: Path) -> None:
    """The first look at mistakes takes half a minute on a busy machine; the newest labels are looked at after it."""
    path, hold, asked = tmp_path / "work" / "journal.sqlite", threading.Event(), []

    def slow(saves: list) -> int:
        asked.append(len(saves))
        assert hold.wait(30)
        return len(saves)

    keeper = ProgressKeeper(path, slow)
    fill(path, 2)
    assert keeper.now(5).progress.images == 2 and eventually(lambda: asked == [2])
    for images in (3, 4):
        fill(path, 1, begin=images)
        assert eventually(lambda images=images: keeper.now(5).progress.images == images)
    assert keeper.now(5).progress.images == 4 and keeper.now().mistakes is None and asked == [2]
    hold.set()
    assert eventually(lambda: keeper.now().mistakes == 4) and asked == [2, 4]


def test_a_damaged_journal_is_said_and_the_next_one_read(tmp_path: Path) -> None:
    path = tmp_path / "work" / "journal.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"this is no database at all" * 100)
    keeper = ProgressKeeper(path)
    assert "could not be counted" in keeper.now(5).problem
    path.unlink()
    fill(path, 2)
    found = keeper.now(5)
    assert found.progress.images == 2 and not found.problem


@pytest.mark.slow
def test_five_thousand_labels(tmp_path: Path) -> None:
    """Counted behind whoever asks, who gets an answer at once, with what is known so far."""
    path = tmp_path / "work" / "journal.sqlite"
    fill(path, 1)
    journal = Journal(path)
    with journal.transaction() as connection:
        for k in range(1, 5000):
            names = "created, ?, ?, model, version, client, prompts, reply, cache_keys, shape, mask"
            connection.execute(
                f"INSERT INTO proposals SELECT NULL, {names} FROM proposals WHERE id = 1", (f"i{k}", "h")
            )
            connection.execute(
                "INSERT INTO corrections (created, image_id, image_hash, proposal_id, author, client, info, shape, mask)"
                " SELECT created, ?, 'h', ?, author, client, info, shape, mask FROM corrections WHERE id = 1",
                (f"i{k}", k + 1),
            )
    journal.close()
    keeper, longest, told = ProgressKeeper(path), 0.0, set()
    end = time.monotonic() + 60
    while keeper.now().progress.images < 5000 and time.monotonic() < end:
        begin = time.perf_counter()
        told.add(keeper.now().progress.images)
        longest = max(longest, time.perf_counter() - begin)
        time.sleep(0.02)
    found = keeper.now()
    assert found.progress.images == found.progress.dice.count == 5000 and found.progress.dice.recent == 1.0
    assert len(told) > 2 and longest < 0.5
