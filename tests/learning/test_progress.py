"""Curves of the saved labels: order, labels that were saved again, clocks that jump."""

from __future__ import annotations

from datetime import datetime, timezone
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultrarefiner_monai.learning.progress import RECENT, WINDOW, Progress, Save, curve, in_order, progress_of

START = 1_700_000_000.0
MAYBE = st.none() | st.floats(-1e9, 4e9)


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def saves_of(images: str, clicks: list[int] | None = None) -> list[Save]:
    return [
        Save(k, iso(START + 60 * k), image, clicks[k] if clicks else 0, 0.5, 30.0, "v")
        for k, image in enumerate(images)
    ]


def test_an_empty_journal() -> None:
    found = progress_of([])
    assert found == Progress() and found.labels_before(START) == 0 and found.clicks.recent is None


def test_an_image_counts_once_with_its_first_save() -> None:
    found = progress_of(saves_of("abacb", [4, 3, 0, 2, 0]))
    assert (found.images, found.saves) == (3, 5)
    assert found.clicks.total == 4 + 3 + 2 and found.clicks.count == 3
    assert found.times == tuple(START + 60 * k for k in (0, 1, 3))
    assert [found.labels_before(START + s) for s in (-1, 0, 60, 150, 180, 9999)] == [0, 1, 2, 2, 3, 3]


@given(st.permutations(range(30)))
def test_rows_may_come_in_any_order(order: list[int]) -> None:
    saves = saves_of("abcde" * 6, list(range(30)))
    assert progress_of([saves[k] for k in order]) == progress_of(saves)


@given(st.lists(MAYBE, max_size=60))
def test_times_never_fall_and_are_those_that_were_given(times: list[float | None]) -> None:
    found = in_order(times)
    assert len(found) == len(times) and all(a <= b for a, b in pairwise(found))
    assert set(found) <= {t for t in times if t is not None} or not any(t is not None for t in times)


@given(st.lists(st.floats(0, 1e9), min_size=5, max_size=40).map(sorted), st.data())
def test_a_clock_that_jumps_shifts_nothing_but_its_own_labels(times: list[float], data: st.DataObject) -> None:
    wrong = data.draw(st.integers(2, len(times) - 3))
    jumped = data.draw(st.sampled_from([-1e6, 2e9]))  # before all, after all
    found = in_order([*times[:wrong], jumped, *times[wrong + 1 :]])
    assert found[:wrong] == times[:wrong] and found[wrong + 1 :] == times[wrong + 1 :]
    assert found[wrong] == times[wrong - 1]


def test_times_that_are_none_and_seconds_that_cannot_be() -> None:
    rows = [Save(1, "yesterday", "a", seconds=-5), Save(2, iso(START), "b", seconds=40), Save(3, "", "c", seconds=9e4)]
    found = progress_of(rows)
    assert found.times == (START,) * 3 and found.seconds.count == 1 and found.seconds.recent == 40


@given(st.lists(st.none() | st.integers(0, 9), max_size=700))
def test_a_curve_is_the_mean_of_the_last_labels(values: list[int | None]) -> None:
    found, known = curve(values), [(k + 1, v) for k, v in enumerate(values) if v is not None]
    assert found.count == len(known) and found.total == sum(v for _, v in known)
    assert len(found.points) <= 122 and [k for k, _ in found.points] == sorted({k for k, _ in found.points})
    for number, mean in found.points:
        last = [v for k, v in known if k <= number][-WINDOW:]
        assert mean == pytest.approx(fmean(last))
    if known:
        assert found.points[-1][0] == known[-1][0]
        assert found.recent == pytest.approx(fmean([v for _, v in known][-RECENT:]))


def test_figures_by_the_champion_that_answered() -> None:
    rows = [
        Save(1, iso(START), "a", 4, 0.6, 30, "old"),
        Save(2, iso(START), "b", 2, 0.8, 30, "old+quick1"),
        Save(3, iso(START), "c", 1, 0.9, 30, "new"),
        Save(4, iso(START), "d"),
    ]
    found = progress_of(rows).versions
    assert set(found) == {"old", "new"}
    assert found["old"].labels == 2 and found["old"].clicks == 3 and found["old"].dice == pytest.approx(0.7)
