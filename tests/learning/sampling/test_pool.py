"""All images' scores: what survives a promotion, a restart, `forget`; groups that grow together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ultrarefiner_monai.learning.sampling.pool import ScorePool
from ultrarefiner_monai.learning.sampling.scores import Scores
from ultrarefiner_monai.learning.sampling.table import UNKNOWN_GROUP
from ultrarefiner_monai.studies.score_store import ScoreStore

THUMBNAILS = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0].astype(np.float32)


def put(pool: ScorePool, name: str, k: int = 0, patient: str = "", encoder: str = "e1", model: str = "m1") -> bool:
    scores = Scores(np.full(4, k, np.float32), k / 100, 0.5, k % 2 == 0, None if k == 3 else 0.25)
    return pool.put(name, f"state{k}", THUMBNAILS[k], patient, scores, encoder, model)


@pytest.fixture
def pool(tmp_path: Path) -> ScorePool:
    found = ScorePool(ScoreStore(tmp_path / "scores.sqlite"))
    found.serve("e1", "m1")
    return found


def test_what_is_put_is_in_the_table_after_a_restart_too(pool: ScorePool, tmp_path: Path) -> None:
    for k in range(200):
        assert put(pool, f"i{k}", k % 60)
    again = ScorePool(ScoreStore(tmp_path / "scores.sqlite"))
    again.serve("e1", "m1")
    ids = ["i7", "nobody", "i3", "i150"]
    for table in (pool.table(ids), again.table(ids)):
        np.testing.assert_allclose(table.vectors[:, 0], [7, np.nan, 3, 30])
        np.testing.assert_allclose(table.disagreement, [0.07, np.nan, 0.03, 0.3], atol=1e-6)
        np.testing.assert_allclose(table.found, [0, np.nan, 0, 1])
        np.testing.assert_allclose(table.presence, [0.25, np.nan, np.nan, 0.25])
        assert table.groups[1] == UNKNOWN_GROUP and len(set(table.groups)) == 4
    assert again.scored(ids) == 3 and again.state("i7") == "state7" and again.state("nobody") == ""
    assert not again.missing("i7") and again.missing("nobody")


def test_a_promotion_leaves_the_vectors_and_renews_the_rest(pool: ScorePool) -> None:
    put(pool, "a", 1)
    pool.serve("e1", "m2")
    table = pool.table(["a"])
    assert table.has_vector.all() and np.isnan(table.found).all() and table.groups[0] != UNKNOWN_GROUP
    assert pool.missing("a") and not pool.missing("a", only_vector=True) and pool.scored(["a"]) == 0
    put(pool, "a", 1, model="m2")
    assert not pool.missing("a")
    pool.serve("e2", "m3")
    assert not pool.table(["a"]).has_vector.any() and pool.missing("a", only_vector=True)
    pool.serve("e1", "m2")  # a roll-back
    assert not pool.missing("a")


def test_scores_of_the_model_before_do_not_count(pool: ScorePool) -> None:
    pool.serve("e1", "m2")
    put(pool, "a", 1, model="m1")  # begun before the promotion
    assert pool.missing("a") and not pool.missing("a", only_vector=True)


def test_near_duplicates_and_patients_grow_together(pool: ScorePool, tmp_path: Path) -> None:
    put(pool, "a", 1)
    put(pool, "b", 2, patient="p")
    put(pool, "c", 3, patient="p")
    put(pool, "d", 4)
    assert pool.table(list("abcd")).groups.tolist() == [0, 1, 1, 2]
    scores = Scores(np.zeros(4, np.float32), 0, 0, True, None)
    both = THUMBNAILS[1] * 0.93 + THUMBNAILS[4] * 0.93  # as like a as d
    assert pool.put("e", "s", both, "p", scores, "e1", "m1")
    assert len(set(pool.table(list("abcde")).groups.tolist())) == 1
    again = ScorePool(ScoreStore(tmp_path / "scores.sqlite"))
    assert len(set(again.table(list("abcde")).groups.tolist())) == 1
    put(pool, "f", 5)
    assert pool.table(["f"]).groups[0] not in pool.table(list("abcde")).groups


def test_what_is_forgotten_elsewhere_goes_here_and_is_not_scored_again_until_it_is_opened(
    pool: ScorePool, tmp_path: Path
) -> None:
    put(pool, "a", 1)
    put(pool, "b", 2)
    other = ScoreStore(tmp_path / "scores.sqlite")
    assert other.forget("a") and not other.forget("a")
    assert not put(pool, "a", 1), "it was in work just then"
    pool.follow()
    assert np.isnan(pool.table(["a", "b"]).found).tolist() == [True, False]
    assert not pool.missing("a")
    pool.remember("a")
    assert pool.missing("a") and put(pool, "a", 1)
    other.forget("gone")
    pool.follow()
    pool.keep_only(["a"])
    assert pool.state("b") == "" and not other.forgotten() and [v.image_id for v in other.vectors()] == ["a"]


def test_a_changed_file_is_unknown(pool: ScorePool) -> None:
    put(pool, "a", 1)
    put(pool, "b", 2)
    pool.drop(["a"])
    assert pool.missing("a") and not pool.missing("b")


def test_distances_follow_new_vectors(pool: ScorePool) -> None:
    for k in (1, 2, 6):
        put(pool, f"i{k}", k)
    ids = ["i1", "i2", "i6", "i9"]
    np.testing.assert_allclose(pool.distances(pool.table(ids), [0]), [0, 2, 10, np.nan])
    np.testing.assert_allclose(pool.distances(pool.table(ids), [0], busy=[2, 3]), [0, 2, 0, np.nan])
    put(pool, "i9", 9)
    put(pool, "i1", 3)  # another picture under the same name, which is labelled
    np.testing.assert_allclose(pool.distances(pool.table(ids), [0]), [0, 2, 6, 12])
    pool.serve("e2", "m2")
    put(pool, "i1", 1, encoder="e2", model="m2")
    assert np.isnan(pool.distances(pool.table(ids), [0])[1:]).all()
