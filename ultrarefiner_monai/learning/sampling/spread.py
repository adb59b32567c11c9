"""How well labelled images cover the others: distances between the images' vectors, and k-center greedy.

Sener and Savarese, Active learning for convolutional neural networks: a core-set approach, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ultrarefiner_monai.learning.sampling.table import ScoreTable

_BLOCK = 256  # labelled images that are compared at a time


def nearest_distances(vectors: np.ndarray, centers: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """(N,) Euclidean distance of each of ``vectors`` (N, D) to the nearest of ``centers`` (M, D); infinite without any.

    known: (N,) distances to other centers, which count too.
    """
    nearest = np.full(len(vectors), np.inf, np.float32) if known is None else np.square(known)
    lengths = np.einsum("nd,nd->n", vectors, vectors)
    for start in range(0, len(centers), _BLOCK):
        block = centers[start : start + _BLOCK]
        squares = np.einsum("md,md->m", block, block) - 2 * (vectors @ block.T)
        nearest = np.minimum(nearest, np.maximum(lengths + squares.min(axis=1), 0))
    return np.sqrt(nearest)


def spread_order(vectors: np.ndarray, nearest: np.ndarray, count: int = 1) -> np.ndarray:
    """(N,) indices: the ``count`` first by k-center greedy (each the farthest from all centers and from those before it),
    the others by their distance after that.

    vectors: (N, D). nearest: (N,) distances to the centers there are; where they are infinite, there is none, and the first
    is the vector nearest to the mean.
    """
    nearest = np.array(nearest, np.float32)
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        if np.isinf(nearest).all():
            best = int(np.argmin(np.square(vectors - vectors.mean(axis=0)).sum(axis=1)))
        else:
            best = int(np.argmax(nearest))
        chosen.append(best)
        nearest = nearest_distances(vectors, vectors[best : best + 1], nearest)
        nearest[chosen] = -np.inf
    left = np.argsort(-nearest, kind="stable")[: len(vectors) - len(chosen)]
    return np.concatenate([np.asarray(chosen, dtype=int), left])


class Coverage:
    """``nearest_distances`` of a growing pool to its labelled images, kept between two questions: only what is new is
    computed. Not thread-safe."""

    def __init__(self) -> None:
        self._nearest: dict[str, float] = {}
        self._centers: set[str] = set()

    def distances(self, table: ScoreTable, covered: Collection[int]) -> np.ndarray:
        """(N,) distances to the images ``covered``; infinite without any, NaN for an image without a vector.

        The same image has the same vector in each call, until ``forget``.
        """
        known = table.has_vector
        centers = {table.ids[i]: i for i in covered if known[i]}
        if not self._centers <= centers.keys():  # a label was removed
            self.forget()
        fresh = [i for image_id, i in centers.items() if image_id not in self._centers]
        before = [i for image_id, i in centers.items() if image_id in self._centers]
        found = np.array([self._nearest.get(image_id, np.nan) for image_id in table.ids], np.float32)
        new = known & np.isnan(found)
        if new.any():
            found[new] = nearest_distances(table.vectors[new], table.vectors[before])
        if fresh:
            found[known] = nearest_distances(table.vectors[known], table.vectors[fresh], found[known])
        self._nearest = {table.ids[i]: float(found[i]) for i in np.flatnonzero(known)}
        self._centers = set(centers)
        found[~known] = np.nan
        return found

    def forget_image(self, image_id: str) -> None:
        """The vector of one image has changed."""
        if image_id in self._centers:
            self.forget()
        self._nearest.pop(image_id, None)

    def forget(self) -> None:
        """Vectors have changed: all anew."""
        self._nearest, self._centers = {}, set()
