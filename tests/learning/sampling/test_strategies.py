"""Which image is chosen, from tables of a few images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.sampling.strategies import STRATEGIES, Options, choose, draws
from ultrarefiner_monai.learning.sampling.table import ScoreTable

EXACT = Options(among=1)


def table(count: int = 30, **columns: Any) -> ScoreTable:
    """Scored images on a line of vectors, all with a lesion."""
    rng = np.random.default_rng(0)
    known: dict[str, Any] = {
        "vectors": np.arange(count, dtype=np.float32)[:, None] * np.array([[1.0, 0.5]], np.float32),
        "groups": np.arange(count),
        "disagreement": rng.random(count),
        "boundary_entropy": rng.random(count),
        "found": np.ones(count),
        "presence": np.ones(count),
    }
    return ScoreTable.of([f"i{n:02}" for n in range(count)], **known | columns)


def firsts(strategy: str, scores: ScoreTable, labelled: set[int], times: int = 300, **rest: Any) -> Counter[int]:
    """How often each row is drawn, over so many questions."""
    return Counter(
        int(choose(strategy, scores, labelled, rng=draws(len(labelled), n), **rest)[0]) for n in range(times)
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labels", [0, 3, 25])
def test_all_that_is_free_is_in_the_order_once(strategy: str, labels: int) -> None:
    order = choose(strategy, table(), set(range(labels)), skipped=[29, 28, 2], busy={27})
    assert sorted(order.tolist()) == sorted(set(range(labels, 30)) - {27})
    assert not len(choose(strategy, table(), set(range(30))))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_question_has_the_same_answer_and_another_one_another(strategy: str) -> None:
    scores = table()
    once, twice = (choose(strategy, scores, {1, 2}, rng=draws(2, 7)).tolist() for _ in range(2))
    assert once == twice
    if strategy != "first":
        assert len(firsts(strategy, scores, {1, 2})) > 2


def test_an_unknown_strategy_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match="recommended, diverse.*first"):
        choose("cleverest", table(), set())


def test_what_was_skipped_comes_after_all_others_and_the_oldest_half_first() -> None:
    skipped = [5, 4, 3, 2]
    assert choose("first", table(7), {0}, skipped).tolist() == [1, 6, 5, 4, 3, 2]
    for strategy in STRATEGIES:
        order = choose(strategy, table(7), {0}, skipped).tolist()
        assert (set(order[:2]), set(order[2:4]), set(order[4:])) == ({1, 6}, {5, 4}, {3, 2}), strategy


def test_the_cold_start_begins_in_the_middle_and_goes_to_the_ends() -> None:
    chosen: list[int] = []
    for _ in range(5):
        chosen.append(int(choose("diverse", table(), set(chosen), options=EXACT)[0]))
    assert chosen[0] in (14, 15) and set(chosen[1:3]) == {0, 29}
    assert all(abs(n - chosen[0]) in (7, 8) for n in chosen[3:])


def test_what_others_work_on_counts_as_covered() -> None:
    assert choose("diverse", table(), {0}, options=EXACT)[0] == 29
    assert choose("diverse", table(), {0}, busy={29}, options=EXACT)[0] in (14, 15)


@pytest.mark.parametrize("strategy", ["disagreement", "boundary_entropy"])
def test_the_largest_score_comes_first_and_empty_images_last(strategy: str) -> None:
    scores = np.linspace(0, 0.9, 30)
    found = np.ones(30)
    found[[29, 28]] = 0
    order = choose(strategy, table(found=found, **{strategy: scores}), {0}, options=EXACT).tolist()
    assert order == [*range(27, 0, -1), 29, 28]
    drawn = firsts(strategy, table(found=found, **{strategy: scores}), {0}, options=Options(among=3))
    assert set(drawn) == {27, 26, 25} and min(drawn.values()) > 60


@pytest.mark.parametrize("strategy", ["recommended", "diverse", "disagreement", "boundary_entropy"])
@pytest.mark.parametrize("labels", [1, 22])
def test_near_duplicates_and_the_same_patients_come_last(strategy: str, labels: int) -> None:
    groups = np.arange(30)
    groups[[25, 26]] = 0  # like the first labelled one
    entropy = np.zeros(30)
    entropy[[25, 26]] = 1
    scores = table(groups=groups, disagreement=entropy, boundary_entropy=entropy)
    order = choose(strategy, scores, set(range(labels)), rng=draws(1, 3)).tolist()
    assert set(order[-2:]) == {25, 26}
    unknown = table(groups=np.full(30, -1), disagreement=entropy, boundary_entropy=entropy)
    if strategy not in ("recommended", "diverse"):
        assert set(choose(strategy, unknown, {0}, options=EXACT).tolist()[:2]) == {25, 26}


def test_recommended_goes_from_spread_to_doubt() -> None:
    entropy = np.zeros(30)
    entropy[[16, 17, 18]] = [0.8, 0.9, 1.0]
    scores = table(disagreement=entropy, boundary_entropy=entropy)
    early = choose("recommended", scores, {0}, options=EXACT)[0]
    assert early == choose("diverse", scores, {0}, options=EXACT)[0] == 29
    late = firsts("recommended", scores, set(range(10)), options=Options(diverse_until=5, among=3))
    assert sum(late[n] for n in (16, 17, 18)) > 150 > late[29]


def test_the_noise_decays_as_labels_grow() -> None:
    entropy = np.linspace(0, 1, 400)
    scores = table(400, disagreement=entropy, boundary_entropy=entropy)
    means = []
    for labels in (10, 40, 160):
        drawn = firsts("recommended", scores, set(range(labels)), options=Options(diverse_until=10))
        means.append(sum(n * times for n, times in drawn.items()) / 300)
    assert means[0] < means[1] < means[2] and means[2] > 390
    assert len(firsts("recommended", scores, set(range(300)), options=Options(diverse_until=10))) >= 3


@pytest.mark.parametrize("labels", [2, 40])
def test_blank_images_neither_win_nor_starve(labels: int) -> None:
    found = np.ones(200)
    found[100:] = 0
    likely = np.where(found == 0, 1.0, 0.1)  # as if all blank ones were the least sure, and far away
    vectors = np.where(found == 0, 1000.0, 0.0)[:, None] + np.arange(200.0)[:, None]
    scores = table(200, found=found, boundary_entropy=likely, disagreement=1 - likely, vectors=vectors)
    drawn = firsts("recommended", scores, set(range(labels)), times=1000)
    blank = sum(times for n, times in drawn.items() if n >= 100)
    assert 60 < blank < 140
    few = np.ones(200)
    few[-2:] = 0
    rare = firsts("recommended", table(200, found=few), set(range(labels)), times=1000)
    assert 0 < rare[198] + rare[199] < 30
    only = set(range(100))  # only blank ones are left
    assert len(choose("recommended", scores, only)) == 100


def test_what_is_not_scored_is_drawn_at_random_the_more_rarely_the_more_is_scored() -> None:
    def unscored_draws(scored: int, enough: int) -> int:
        known = np.arange(30) < scored
        column = np.where(known, 0.5, np.nan)
        vectors = np.where(known[:, None], np.arange(30.0)[:, None], np.nan)
        groups = np.where(known, np.arange(30), -1)
        scores = table(vectors=vectors, groups=groups, found=column, boundary_entropy=column, disagreement=column)
        options = Options(enough=enough)
        counts = [firsts(s, scores, set(), options=options) for s in ("recommended", "diverse", "boundary_entropy")]
        share = [sum(times for n, times in c.items() if n >= scored) for c in counts]
        assert max(share) - min(share) < 60
        return sum(share) // 3

    assert unscored_draws(0, 200) == 300
    assert 150 < unscored_draws(10, 200) < 250
    assert unscored_draws(10, 10) == 0
    assert unscored_draws(30, 200) == 0
    nothing = ScoreTable.of([f"i{n}" for n in range(30)])
    assert len(firsts("recommended", nothing, set())) == 30


def test_after_a_promotion_that_keeps_the_encoder_the_spread_is_still_known() -> None:
    column = np.full(30, np.nan)
    scores = table(found=column, boundary_entropy=column, disagreement=column)
    assert choose("recommended", scores, {0}, options=EXACT)[0] == 29


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="30 images needs 30 rows of found, got 3"):
        table(found=np.ones(3))
