"""What is known of each image of a pool, as columns: strategies choose by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ultrarefiner_monai.datasets.grouping import near_duplicate_groups

UNKNOWN_GROUP = -1


@dataclass(frozen=True)
class ScoreTable:
    """One row an image, N of them, in the order in which ``first`` takes them.

    vectors: (N, D) float32, what the image encoder makes of the image, pooled over its area; NaN where it is not known.
    groups: (N,) int, one number for near-duplicates and for one patient's images; UNKNOWN_GROUP where it is not known.
    disagreement: (N,) in [0, 1], 1 - Dice(coarse mask, refined mask). boundary_entropy: (N,) bits in [0, 1], mean entropy of
    ``coarse_prob`` around the coarse outline. found: (N,) 1 where anything was outlined, 0 where nothing was. presence:
    (N,) in [0, 1], the coarse network's P(there is a lesion). These four are float32, NaN where they are not known.
    """

    ids: tuple[str, ...]
    vectors: np.ndarray
    groups: np.ndarray
    disagreement: np.ndarray
    boundary_entropy: np.ndarray
    found: np.ndarray
    presence: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.ids)
        for name in ("vectors", "groups", "disagreement", "boundary_entropy", "found", "presence"):
            rows = len(getattr(self, name))
            if rows != count:
                raise ValueError(f"a score table of {count} images needs {count} rows of {name}, got {rows}")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        vectors: np.ndarray | None = None,
        groups: Sequence[int] | np.ndarray | None = None,
        disagreement: Sequence[float] | np.ndarray | None = None,
        boundary_entropy: Sequence[float] | np.ndarray | None = None,
        found: Sequence[float] | np.ndarray | None = None,
        presence: Sequence[float] | np.ndarray | None = None,
    ) -> ScoreTable:
        """A table in which what is left out is not known."""

        def column(values: Sequence[float] | np.ndarray | None) -> np.ndarray:
            return np.full(len(ids), np.nan, np.float32) if values is None else np.asarray(values, np.float32)

        return cls(
            tuple(ids),
            np.full((len(ids), 0), np.nan, np.float32) if vectors is None else np.asarray(vectors, np.float32),
            np.full(len(ids), UNKNOWN_GROUP) if groups is None else np.asarray(groups, dtype=int),
            column(disagreement),
            column(boundary_entropy),
            column(found),
            column(presence),
        )

    @property
    def has_vector(self) -> np.ndarray:
        """(N,) bool."""
        if not self.vectors.shape[1]:
            return np.zeros(len(self), bool)
        return ~np.isnan(self.vectors[:, 0])


def groups_of(thumbnails: np.ndarray, patients: Sequence[str] | None = None) -> np.ndarray:
    """(N, D) thumbnails (``datasets.grouping.thumbnail``) and the patients' names where they are known ("" where not) ->
    (N,) groups for a table. All pairs are compared: seconds for 5000 images."""
    return np.asarray(near_duplicate_groups(thumbnails, patients), dtype=int)
