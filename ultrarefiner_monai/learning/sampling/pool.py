"""The scores of all images of a studies folder, in memory and in the work folder (``studies.score_store``)."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import numpy as np

from ultrarefiner_monai.datasets.grouping import CORRELATION
from ultrarefiner_monai.learning.sampling.scores import Scores
from ultrarefiner_monai.learning.sampling.spread import Coverage, nearest_distances
from ultrarefiner_monai.learning.sampling.table import UNKNOWN_GROUP, ScoreTable
from ultrarefiner_monai.studies.score_store import ScoreStore, StoredScores, StoredVector

_FIGURES = ("disagreement", "boundary_entropy", "found", "presence")
_ROOM = 64


class ScorePool:
    """What is known of each image for the encoder and the model that serve. Thread-safe.

    A new model (``serve``) makes all scores unknown, but for the vectors where its image encoder is the one before.
    """

    def __init__(self, store: ScoreStore):
        self._store, self._lock = store, threading.RLock()
        self._encoder = self._model = ""
        self._coverage = Coverage()
        self._seen = -1
        self._forgotten: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[str, int] = {}
        self._states: dict[str, str] = {}
        self._vectors = np.zeros((0, 0), np.float32)
        self._thumbnails = np.zeros((0, 0), np.float32)
        self._groups, self._patients = np.zeros(0, int), np.zeros(0, "U12")
        self._figures = np.zeros((0, len(_FIGURES)), np.float32)
        self._coverage.forget()

    # --- which model ----------------------------------------------------------------------------------------------------

    def serve(self, encoder: str, model: str) -> None:
        """Scores of this encoder and this model count from now on."""
        with self._lock:
            if (encoder, model) != (self._encoder, self._model):
                self._encoder, self._model = encoder, model
                self._load()

    def follow(self) -> None:
        """Take over what another process changed: `ultrarefiner forget`."""
        with self._lock:
            if self._store.changes() != self._seen:
                self._load()

    def _load(self) -> None:
        self._seen = self._store.changes()
        self._forgotten = self._store.forgotten()
        self._clear()
        for stored in self._store.vectors():
            row = self._row(stored.image_id)
            self._set_picture(row, stored)
            if stored.encoder == self._encoder:
                self._set_vector(row, stored.vector)
        for scores in self._store.scores():
            if scores.model == self._model and self._states.get(scores.image_id) == scores.state:
                self._set_figures(self._rows[scores.image_id], scores)

    # --- questions ------------------------------------------------------------------------------------------------------

    def missing(self, image_id: str, only_vector: bool = False) -> bool:
        """Whether the image is to be scored: never one that was forgotten and not opened since. only_vector: whether its
        vector alone is missing."""
        with self._lock:
            if image_id in self._forgotten:
                return False
            row = self._rows.get(image_id)
            if row is None or not self._vectors.shape[1] or np.isnan(self._vectors[row, 0]):
                return True
            return not only_vector and bool(np.isnan(self._figures[row, 2]))

    def state(self, image_id: str) -> str:
        """The state of the file of which something is known, "" for none."""
        with self._lock:
            return self._states.get(image_id, "")

    def scored(self, image_ids: Collection[str]) -> int:
        """How many of these have scores of the model that serves."""
        with self._lock:
            rows = [self._rows[i] for i in image_ids if i in self._rows]
            return int(np.count_nonzero(~np.isnan(self._figures[rows, 2]))) if rows else 0

    def table(self, image_ids: Sequence[str]) -> ScoreTable:
        """What is known of these images, in this order."""
        with self._lock:
            rows = np.array([self._rows.get(i, -1) for i in image_ids], dtype=int)
            known = rows >= 0
            vectors = np.full((len(rows), self._vectors.shape[1]), np.nan, np.float32)
            figures = np.full((len(rows), len(_FIGURES)), np.nan, np.float32)
            groups = np.full(len(rows), UNKNOWN_GROUP)
            vectors[known], figures[known] = self._vectors[rows[known]], self._figures[rows[known]]
            groups[known] = self._groups[rows[known]]
        return ScoreTable(tuple(image_ids), vectors, groups, *(figures[:, k] for k in range(len(_FIGURES))))

    def distances(self, table: ScoreTable, labelled: Collection[int], busy: Collection[int] = ()) -> np.ndarray:
        """(N,) of ``table`` to its rows ``labelled``, of which only what is new is computed (``Coverage``), and to the few
        ``busy`` ones, which come and go."""
        with self._lock:
            found = self._coverage.distances(table, labelled)
        known = table.has_vector
        centers = table.vectors[[k for k in busy if known[k]]]
        found[known] = nearest_distances(table.vectors[known], centers, found[known])
        return found

    # --- what comes and goes --------------------------------------------------------------------------------------------

    def put(
        self, image_id: str, state: str, thumbnail: np.ndarray, patient: str, scores: Scores, encoder: str, model: str
    ) -> bool:
        """Keep the scores of an image, made by this encoder and model; False where it was forgotten meanwhile."""
        with self._lock:
            group, joined = self._group(image_id, thumbnail, patient)
            vector = StoredVector(image_id, state, encoder, scores.vector, thumbnail, patient, group)
            figures = (scores.disagreement, scores.boundary_entropy, scores.found, scores.presence)
            stored = StoredScores(image_id, state, model, *figures)
            if not self._store.put(vector, stored, joined):
                return False
            row = self._row(image_id)
            self._set_picture(row, vector)
            self._groups[np.isin(self._groups, joined)] = group
            self._coverage.forget_image(image_id)
            if encoder == self._encoder:
                self._set_vector(row, np.asarray(scores.vector, np.float16))
            if model == self._model:
                self._set_figures(row, stored)
            return True

    def keep_only(self, image_ids: Collection[str]) -> None:
        """Drop what is known of images that are not among these."""
        with self._lock:
            gone = (self._rows.keys() | self._forgotten) - set(image_ids)
            if gone:
                self._store.remove(gone)
                self._load()

    def drop(self, image_ids: Collection[str]) -> None:
        """The files of these images have changed: nothing is known of them."""
        with self._lock:
            if image_ids:
                self._store.remove(image_ids)
                self._load()

    def remember(self, image_id: str) -> None:
        """Somebody opened the image: where it was forgotten, it may be scored again."""
        with self._lock:
            if image_id in self._forgotten:
                self._store.remember(image_id)
                self._forgotten.discard(image_id)

    def close(self) -> None:
        self._store.close()

    # --- rows (the lock is held) ----------------------------------------------------------------------------------------

    def _row(self, image_id: str) -> int:
        row = self._rows.setdefault(image_id, len(self._rows))
        if row >= len(self._groups):
            more = max(_ROOM, len(self._groups))
            self._groups = np.concatenate([self._groups, np.full(more, UNKNOWN_GROUP)])
            self._patients = np.concatenate([self._patients, np.zeros(more, self._patients.dtype)])
            self._vectors, self._thumbnails, self._figures = (
                np.concatenate([a, np.full((more, a.shape[1]), fill, np.float32)])
                for a, fill in ((self._vectors, np.nan), (self._thumbnails, 0), (self._figures, np.nan))
            )
        return row

    def _set_picture(self, row: int, stored: StoredVector) -> None:
        if not self._thumbnails.shape[1]:
            self._thumbnails = np.zeros((len(self._groups), len(stored.thumbnail)), np.float32)
        self._thumbnails[row] = stored.thumbnail
        self._groups[row], self._patients[row] = stored.group, stored.patient
        self._states[stored.image_id] = stored.state

    def _set_vector(self, row: int, vector: np.ndarray) -> None:
        if self._vectors.shape[1] != len(vector):
            self._vectors = np.full((len(self._groups), len(vector)), np.nan, np.float32)
        self._vectors[row] = vector

    def _set_figures(self, row: int, stored: StoredScores) -> None:
        presence = np.nan if stored.presence is None else stored.presence
        self._figures[row] = (stored.disagreement, stored.boundary_entropy, stored.found, presence)

    def _group(self, image_id: str, thumbnail: np.ndarray, patient: str) -> tuple[int, list[int]]:
        """The group of an image, and other groups that it joins to that one."""
        count, own = len(self._rows), self._rows.get(image_id, -1)
        if self._thumbnails.shape[1]:
            alike = self._thumbnails[:count] @ np.asarray(thumbnail, np.float32) >= CORRELATION
            if patient:
                alike |= self._patients[:count] == patient
            if own >= 0:
                alike[own] = True  # what it was joined to stays
            found = sorted(set(self._groups[:count][alike].tolist()) - {UNKNOWN_GROUP})
            if found:
                return found[0], found[1:]
        return int(self._groups[:count].max(initial=UNKNOWN_GROUP)) + 1, []
