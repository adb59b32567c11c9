"""Distances to what is labelled: against the plain formula, and kept between two questions."""

from __future__ import annotations

import numpy as np

from ultrarefiner_monai.learning.sampling.spread import Coverage, nearest_distances, spread_order
from ultrarefiner_monai.learning.sampling.table import ScoreTable, groups_of


def plain(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors[:, None] - centers[None], axis=2).min(axis=1)


def test_distances_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(1)
    vectors, centers = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(600, 8)).astype(np.float32)
    np.testing.assert_allclose(nearest_distances(vectors, centers), plain(vectors, centers), atol=1e-3)
    half = nearest_distances(vectors, centers[:300])
    np.testing.assert_allclose(nearest_distances(vectors, centers[300:], half), plain(vectors, centers), atol=1e-3)
    assert np.isinf(nearest_distances(vectors, centers[:0])).all()


def test_greedy_halves_the_largest_hole() -> None:
    vectors = np.linspace(0, 1, 65, dtype=np.float32)[:, None]
    order = spread_order(vectors, np.full(65, np.inf), count=9)
    assert len(set(order.tolist())) == 65
    assert order[0] == 32 and set(order[1:3].tolist()) == {0, 64}
    assert plain(vectors, vectors[order[:9]]).max() <= 0.126


def test_kept_distances_are_those_computed_anew() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    vectors[30:] = np.nan
    ids = [f"i{n}" for n in range(40)]
    coverage = Coverage()
    for covered, known in [([0, 1], 35), ([0, 1, 2, 33], 35), ([0, 1, 2, 33], 40), ([0, 2], 40), ([], 40)]:
        shown = vectors.copy()
        if known == 40:  # scored meanwhile
            shown[30:] = np.arange(60).reshape(10, 6)
        found = coverage.distances(ScoreTable.of(ids, shown), covered)
        rows = ~np.isnan(shown[:, 0])
        assert np.isnan(found[~rows]).all()
        centers = [n for n in covered if rows[n]]
        expected = plain(shown[rows], shown[centers]) if centers else np.full(rows.sum(), np.inf)
        np.testing.assert_allclose(found[rows], expected, atol=1e-3)
    part = ScoreTable.of(ids[5:10], vectors[5:10])  # images that left the pool
    np.testing.assert_allclose(coverage.distances(part, [0]), plain(vectors[5:10], vectors[5:6]), atol=1e-3)


def test_groups_join_what_is_alike_and_one_patients_images() -> None:
    rng = np.random.default_rng(3)
    thumbnails = rng.normal(size=(6, 100)).astype(np.float32)
    thumbnails[4] = thumbnails[1] + 0.01
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    groups = groups_of(thumbnails, ["a", "", "b", "a", "", ""])
    assert groups[0] == groups[3] and groups[1] == groups[4] and len(set(groups.tolist())) == 4
