"""When the slow learning begins: labels and quiet, an hour, clocks that jump, what failed; and what survives a restart."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.learning.schedule import (
    APART_SECONDS,
    Learnt,
    Memory,
    Round,
    Saves,
    following,
    is_due,
    next_trigger,
    trainings,
)

NOON = datetime(2026, 3, 1, 12, 0)
NEW = Learnt()
BY_COUNT = LearningConfig(labels=10, quiet_minutes=5)
BY_HOUR = LearningConfig(hour="02:30")


def test_labels_and_quiet_together() -> None:
    def due(images: int, quiet: float, known: Learnt = NEW, options: LearningConfig = BY_COUNT) -> bool:
        return is_due(known, Saves(50, images), options, quiet, NOON, None)

    assert due(10, 300) and due(25, 1e6)
    assert not due(9, 1e6) and not due(10, 299)
    assert not due(10, 300, options=LearningConfig(slow=False))
    assert not due(10, 300, Learnt(round=Round(40, "sam_refiner")))
    assert not due(10, 300, Learnt(tried=50)), "what failed is not tried again until there is a new label"
    assert due(11, 300, Learnt(tried=49))


def test_an_hour_once_a_day_when_there_is_a_new_label() -> None:
    night = datetime(2026, 3, 1, 2, 30)

    def due(now: datetime, known: Learnt = NEW, images: int = 1, since: float | None = None) -> bool:
        return is_due(known, Saves(50, images), BY_HOUR, 0.0, now, since)

    assert due(night) and due(night + timedelta(minutes=59))
    assert not due(night - timedelta(minutes=1)) and not due(night + timedelta(minutes=60)) and not due(NOON)
    assert not due(night, images=0) and not due(night, Learnt(day="2026-03-01"))
    assert is_due(Learnt(), Saves(1, 1), LearningConfig(hour="23:50"), 0, datetime(2026, 3, 1, 0, 10), None), (
        "past midnight"
    )


def test_a_clock_that_jumps() -> None:
    """Back by a day again and again: nothing begins in a row. Far ahead and back: the next night is not lost."""
    night = datetime(2026, 3, 1, 2, 30)
    for days in range(1, 30):
        jumped = night - timedelta(days=days)
        assert not is_due(Learnt(day="2026-03-01"), Saves(60, 3), BY_HOUR, 0, jumped, APART_SECONDS - 1)
    assert is_due(Learnt(day="2036-01-01"), Saves(60, 3), BY_HOUR, 0, night, None)
    assert is_due(Learnt(day="2036-01-01"), Saves(60, 3), BY_HOUR, 0, night, APART_SECONDS)


def test_the_trainings_of_a_round() -> None:
    options = LearningConfig(coarse_labels=60, joint_labels=200)
    assert trainings(True, 59, options) == ["sam_refiner"]
    assert trainings(True, 60, options) == ["sam_refiner", "transunet"]
    assert trainings(True, 200, options) == ["sam_refiner", "transunet", "ultrarefiner"]
    assert trainings(False, 59, options) == [] and trainings(False, 500, options) == ["transunet"]
    assert following("sam_refiner", ["sam_refiner", "transunet"]) == "transunet"
    assert following("sam_refiner", ["transunet", "ultrarefiner"]) == "transunet"
    assert following("transunet", ["sam_refiner", "transunet"]) == "" == following("of a later version", ["transunet"])


def test_memory_survives_and_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "training" / "learning.json"
    memory = Memory.of(path)
    assert memory.value == Learnt() and not path.exists()
    memory.keep(tried=7, day="2026-03-01", round=Round(7, "transunet", 2, ("sam_refiner",)))
    assert Memory.of(path).value == memory.value
    memory.keep(round=None, learnt=7)
    assert Memory.of(path).value == Learnt(learnt=7, tried=7, day="2026-03-01")
    path.unlink()
    path.mkdir()  # nothing can be written there
    with pytest.raises(OSError):
        memory.keep(learnt=99)
    assert memory.value.learnt == 7, "the step is done again"
    path.rmdir()
    for content in (
        "{ half",
        "[]",
        '{"learnt": "7"}',
        json.dumps({"nonsense": 1}),
        '{"round": {"saves": 1}}',
        '{"round": 5}',
        '{"round": {"saves": 1, "task": "sam_refiner", "begins": "2", "done": []}}',
        '{"round": {"saves": 1, "task": "of another version", "done": []}}',
    ):
        path.write_text(content)
        assert Memory.of(path).value == Learnt()


@pytest.mark.parametrize(
    ("known", "saves", "options", "words"),
    [
        (Learnt(), Saves(3, 3), BY_COUNT, "after 7 more labels and 5 minutes without a request"),
        (Learnt(), Saves(12, 12), BY_COUNT, "after 5 minutes without a request"),
        (Learnt(tried=12), Saves(12, 12), BY_COUNT, "with the next label"),
        (Learnt(tried=12, learnt=12), Saves(12, 0), BY_COUNT, "after 10 more labels and 5 minutes without a request"),
        (Learnt(), Saves(), BY_HOUR, "at 02:30, when there is a new label"),
        (Learnt(), Saves(1, 1), BY_HOUR, "at 02:30"),
        (Learnt(round=Round(1, "transunet")), Saves(1, 1), BY_COUNT, "it runs: transunet"),
        (Learnt(), Saves(), LearningConfig(slow=False), "only when somebody starts a training (learning.slow is off)"),
    ],
)
def test_the_next_trigger_in_words(known: Learnt, saves: Saves, options: LearningConfig, words: str) -> None:
    assert next_trigger(known, saves, options) == words
