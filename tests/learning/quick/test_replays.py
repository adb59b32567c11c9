"""Left-out replays: nothing is replayed that was learnt from, and what counts as worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_champion import champion, samples

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.learning.quick.replays import Score, compare, folds_of, left_out_replays, score
from ultrarefiner_monai.learning.quick.samples import distinct

OPTIONS = LearningConfig()


def lesion(automatic: float, one: float = 0.8, three: float = 0.9) -> Score:
    return Score(True, automatic, one, three, False)


def test_groups_stay_whole_and_the_newest_is_left_out_first() -> None:
    learnt = samples(champion(), 4)
    parts = folds_of(learnt, 2)
    assert parts == [{"g3", "g1"}, {"g2", "g0"}]
    assert len(folds_of(learnt[:1], 2)) == 1


def test_each_left_out_image_is_replayed_once_and_a_single_group_tells_nothing() -> None:
    system = champion()
    learnt = samples(system, 3)
    asked: list[str] = []

    def before(sample):
        asked.append(sample.id)
        return score(system.refiner, sample)  # type: ignore[arg-type]

    verdict = left_out_replays(system, learnt, [], OPTIONS, before, steps=1)
    assert sorted(asked) == ["i0", "i1", "i2"] and verdict.lesions == 3
    nothing = left_out_replays(system, learnt[:1], [], OPTIONS, before, steps=1)
    assert nothing.lesions == 0 and len(asked) == 3


def test_copies_of_one_image_are_replayed_once() -> None:
    """Two patients, one of them with a hundred near-duplicates and another view: three images can tell anything."""
    system = champion()
    first, second, third = samples(system, 3)
    copies = [replace(first, id=f"copy {k}", group="a", likeness="copy 0") for k in range(100)]
    learnt = [*copies, replace(second, group="a", likeness="b"), replace(third, group="c")]
    verdict = left_out_replays(system, learnt, [], OPTIONS, lambda s: score(system.refiner, s), steps=1)  # type: ignore[arg-type]
    assert verdict.lesions == 3
    assert [s.id for s in distinct(reversed(learnt))] == ["i2", "i1", "copy 99"]


def test_the_champion_against_itself_is_equal() -> None:
    system = champion()
    found = [score(system.refiner, s) for s in samples(system, 2)]  # type: ignore[arg-type]
    verdict = compare(found, found)
    assert verdict.mean == 0 and not verdict.worse_by(0.0, 0.0)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ([lesion(0.75), lesion(0.76)], ""),
        ([lesion(0.6), lesion(0.61)], "mean Dice is"),
        ([lesion(0.9, 0.7), lesion(0.9, 0.7)], "after one click"),
        ([lesion(0.49, 0.99, 0.99), lesion(0.9, 0.99, 0.99)], "1 more lesions are missed"),
    ],
)
def test_what_counts_as_worse(after: list[Score], said: str) -> None:
    reason = compare([lesion(0.7), lesion(0.7)], after).worse_by(0.005, 0.0)
    assert said in reason and bool(said) == bool(reason)


def test_one_more_false_alarm_is_worse() -> None:
    clean, marked = Score(False, 0, 0, 0, False), Score(False, 0, 0, 0, True)
    assert "lesion-free" in compare([lesion(0.7), clean], [lesion(0.8), marked]).worse_by(0.005, 0.0)
    assert not compare([marked], [clean]).worse_by(0.005, 0.0)
