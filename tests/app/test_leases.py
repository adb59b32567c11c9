"""Two users do not get the same image; one alone never notices."""

from __future__ import annotations

import sys

from app_server import APP

sys.path.insert(0, str(APP))
from lib.tasks.leases import Leases  # noqa: E402


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_image_is_anothers_until_time_is_up() -> None:
    clock = Clock()
    leases = Leases(10, clock)
    assert leases.take("a", "ann") and leases.take("a", "ann")
    assert not leases.take("a", "ben")
    clock.now += 300
    assert leases.take("b", "cem")
    clock.now += 60
    assert leases.of_others("ben") == {"a": 360, "b": 60} and list(leases.of_others("ben")) == ["a", "b"]
    assert leases.of_others("ann") == {"b": 60}
    clock.now += 240
    assert leases.of_others("ben") == {"b": 300} and leases.take("a", "ben")
    assert not leases.take("a", "ann")


def test_who_asks_for_another_gives_up_the_one_before() -> None:
    leases = Leases(10)
    leases.take("a", "ann")
    leases.take("b", "ann")
    assert leases.take("a", "ben") and list(leases.of_others("ben")) == ["b"]


def test_a_label_ends_the_lease_and_one_can_be_taken_over() -> None:
    leases = Leases(10)
    leases.take("a", "ann")
    leases.give_up("a")
    leases.give_up("never held")
    assert leases.take("a", "ben")
    assert leases.take("a", "cem", anyway=True) and leases.of_others("cem") == {} and "a" in leases.of_others("ben")


def test_without_minutes_there_are_none() -> None:
    leases = Leases(0)
    assert leases.take("a", "ann") and leases.take("a", "ben") and leases.of_others("cem") == {}
