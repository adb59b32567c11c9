"""Scores for the next sample, computed while nobody waits: image after image, behind what the first clicks need.

What is computed on the way goes into the cache, so an image that is scored is prepared, too. Nothing is computed while a
request is, and an answer never waits for scores. In a PACS few images are fetched for it (``Options.enough``).
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from monailabel.interfaces.exception import ImageNotFoundException

from lib.store.datastore import StudiesFolder
from lib.store.pacs import PacsStudies
from lib.tasks.answers import Engine
from lib.tasks.prepare import Preparer
from ultrarefiner_monai.core.cache import EmbeddingCache, image_key
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.series import sha256_of_image, state_of
from ultrarefiner_monai.dicomweb.client import PacsError
from ultrarefiner_monai.learning.labelled import patient_hash
from ultrarefiner_monai.learning.sampling.pool import ScorePool
from ultrarefiner_monai.learning.sampling.scores import (
    combined,
    encoder_key,
    score_frame,
    scored_frames,
    shown_picture,
)
from ultrarefiner_monai.learning.sampling.strategies import Options
from ultrarefiner_monai.learning.sampling.table import ScoreTable
from ultrarefiner_monai.pipeline.outline import crops
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.availability import StudiesAway
from ultrarefiner_monai.studies.journal import OPENED
from ultrarefiner_monai.studies.score_store import ScoreStore

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
_FILES_EVERY = 120  # looks: so often the files themselves are looked at
# The disk cache is filled so far at most: the rest is for images that users open.
_CACHE_SHARE = 0.8
_OWN_CACHE = 32 << 20


class Scorer:
    """Keeps the scores of the studies' images up to date. Thread-safe. datastore: returns the studies; enabled: the option
    ``prepare``; without it what was computed before still counts."""

    def __init__(
        self, engine: Engine, preparer: Preparer, datastore: Callable[[], StudiesFolder], enabled: bool = True
    ):
        self.engine, self.preparer, self.datastore, self.enabled = engine, preparer, datastore, enabled
        self.enough = Options().enough
        self._pool: ScorePool | None = None
        self._lock = threading.Lock()
        self._todo: list[str] = []
        self._refused: dict[str, str] = {}  # images that cannot be scored -> their state
        self._steps: Iterator[None] | None = None
        self._own: Predictor | None = None  # with a cache of its own, where the common one is full
        self._ends = threading.Event()

    def start(self) -> None:
        """Open the scores there are, and begin to complete them in the background."""
        try:
            self._pool = ScorePool(ScoreStore(self.engine.work.scores))
        except (sqlite3.Error, OSError) as error:
            logger.error("there are no scores for the next sample: %s", error)
            return
        threading.Thread(target=self._watch, name="scores", daemon=True).start()

    def close(self) -> None:
        """Begin nothing any more."""
        self._ends.set()

    # --- questions ------------------------------------------------------------------------------------------------------

    def table(self, image_ids: Sequence[str]) -> ScoreTable:
        """What is known of these images just now."""
        return ScoreTable.of(image_ids) if self._pool is None else self._pool.table(image_ids)

    def distances(self, table: ScoreTable, labelled: Collection[int], busy: Collection[int]) -> np.ndarray | None:
        """See ``ScorePool.distances``; None where nothing is known."""
        return None if self._pool is None else self._pool.distances(table, labelled, busy)

    def state(self) -> dict[str, int]:
        """For /info/: how many images have scores of the model that serves, and how many are still to get some."""
        if self._pool is None:
            return {"scored": 0, "left": 0}
        with self._lock:
            left = len(self._todo) + (self._steps is not None)
        return {"scored": self._pool.scored(self.datastore().list_images()), "left": left}

    def opened(self, image_id: str) -> None:
        """A user opened the image: where it was forgotten, it may be scored again."""
        if self._pool is not None:
            try:
                self._pool.remember(image_id)
            except sqlite3.Error as error:
                logger.warning("the scores cannot be written: %s", error)

    # --- what is to be done ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        looks = 0
        while not self._ends.is_set():
            try:
                self.look(files=looks % _FILES_EVERY == 0)
            except StudiesAway as error:
                logger.debug("no scores just now: %s", error)
            except (sqlite3.Error, OSError) as error:
                logger.warning("scores for the next sample: %s", error)
            except Exception:
                logger.exception("scores for the next sample")
            looks += 1
            self._ends.wait(_LOOK_SECONDS)

    def look(self, files: bool = False) -> None:
        """Find out which images lack scores. files: also whether their files are those that were scored."""
        pool, store = self._pool, self.datastore()
        assert pool is not None
        predictor, encoder, model = self._serving()
        pool.serve(encoder, model)
        pool.follow()
        labelled, offered = store.pool()
        everything = labelled | offered.keys()
        if everything:  # a PACS may list nothing for a moment
            pool.keep_only(everything)
        if files:
            self._compare_files(pool, store, everything)
        todo = [i for i in offered if pool.missing(i)] + [i for i in labelled if pool.missing(i, only_vector=True)]
        todo = sorted((i for i in todo if i not in self._refused), key=_shuffled)
        if isinstance(store, PacsStudies):
            todo = self._of_pacs(store, todo, self.enough - pool.scored(offered))
        with self._lock:
            self._todo = todo[::-1] if self.enabled else []
        if self._todo:
            self.preparer.behind(self._step)

    def _compare_files(self, pool: ScorePool, store: StudiesFolder, image_ids: Collection[str]) -> None:
        changed = []
        for image_id in image_ids:
            known = pool.state(image_id) or self._refused.get(image_id)
            try:
                if known and _state(_path(store, image_id)) != known:
                    changed.append(image_id)
            except StudiesAway:
                raise
            except Exception as error:  # it is gone just now, or cannot be read
                logger.debug("%s: %s", image_id, error)
        self._refused = {i: s for i, s in self._refused.items() if i in image_ids and i not in changed}
        pool.drop(changed)

    def _of_pacs(self, store: PacsStudies, todo: list[str], more: int) -> list[str]:
        """Images that are here already, and so many others that ``enough`` are scored."""
        here = [i for i in todo if store.mirror.cached(i)]
        others = [] if store.mirror.problem else [i for i in todo if not store.mirror.cached(i)]
        return here + others[: max(0, more - len(here))]

    # --- one frame at a time, in the preparer's thread --------------------------------------------------------------------

    def _step(self) -> bool:
        """One frame; whether there is more to do."""
        with self._lock:
            if self._steps is None and self._todo:
                self._steps = self._score(self._todo.pop())
            steps = self._steps
        if steps is None or self._ends.is_set():
            return False
        try:
            next(steps)
        except StopIteration:
            with self._lock:
                self._steps = None
        except BaseException:
            with self._lock:
                self._steps = None
            raise
        return True

    def _score(self, image_id: str) -> Iterator[None]:
        try:
            yield from self._score_frames(image_id)
        except StudiesAway as error:
            logger.debug("%s is not scored just now: %s", image_id, error)
        except sqlite3.Error as error:
            logger.warning("%s is not scored: %s", image_id, error)
        except (InputError, ImageNotFoundException, OSError) as error:  # told when its turn to be offered comes
            logger.debug("%s is not scored: %s", image_id, error)
            if not (isinstance(error, PacsError) and error.transient):
                self._refuse(image_id)
        except Exception as error:
            logger.warning("%s is not scored: %s", image_id, error, exc_info=error)
            self._refuse(image_id)

    def _refuse(self, image_id: str) -> None:
        try:
            state = _state(_path(self.datastore(), image_id))
        except Exception:
            state = "-"
        self._refused[image_id] = state

    def _score_frames(self, image_id: str) -> Iterator[None]:
        pool, store = self._pool, self.datastore()
        assert pool is not None
        if not pool.missing(image_id):  # it was in work when the list was made
            return
        predictor, encoder, model = self._serving()
        path = store.image_path(image_id)
        state = _state(path)
        image_file = self.engine.read(path)
        sha256 = sha256_of_image(path)
        frames = scored_frames(image_file.n_frames)
        keys = {image_key(c) for k in frames for c in crops(image_file.frame(k), image_file.regions_of(k))}
        shared = self._has_room()
        if shared:
            self.engine.journal.ask(lambda journal: journal.note_opened(image_id))
            # Before there is anything to forget.
            self.engine.journal.ask(lambda journal: journal.note_prepared(image_id, sha256, keys))
        asked = predictor if shared else self._with_own_cache(predictor)
        parts = []
        for number, k in enumerate(frames):
            if number:
                yield
            parts.append(score_frame(asked.seen_as(image_file.view), image_file.frame(k), image_file.regions_of(k)))
        kept = False
        if _state(path) == state:
            kept = pool.put(
                image_id, state, shown_picture(image_file), patient_hash(image_file), combined(parts), encoder, model
            )
        self._clean(image_id, keys, kept, shared)

    def _clean(self, image_id: str, keys: set[str], kept: bool, shared: bool) -> None:
        """Where the image was forgotten meanwhile, nothing stays of what was computed."""
        if not shared:
            assert self._own is not None
            for key in keys:
                self._own.cache.forget(key)  # type: ignore[union-attr]
            return
        noted = {OPENED, *keys}
        if not kept or not self.engine.journal.ask(lambda journal: noted <= journal.prepared(image_id)):
            self.engine.drop(keys)
            self.engine.journal.ask(lambda journal: journal.drop_prepared(image_id, noted))

    # --- which model ----------------------------------------------------------------------------------------------------

    def _serving(self) -> tuple[Predictor, str, str]:
        """The champion, what its vectors depend on, and what its other scores do. A quick model is a matter of minutes, and
        changes the decoder alone: it renews nothing."""
        predictor = self.engine.served.champion()
        return predictor, encoder_key(predictor), predictor.system.version

    def _has_room(self) -> bool:
        cache = self.engine.served.cache
        return cache.disk_dir is not None and cache.usage()["disk_bytes"] < _CACHE_SHARE * cache.disk_bytes

    def _with_own_cache(self, predictor: Predictor) -> Predictor:
        if self._own is None or self._own.system is not predictor.system:
            self._own = Predictor(predictor.system, EmbeddingCache(_OWN_CACHE), predictor.device)
        return self._own


def _path(store: StudiesFolder, image_id: str) -> Path:
    """The image's files without fetching them."""
    return store.mirror.folder / "images" / image_id if isinstance(store, PacsStudies) else store.image_path(image_id)


def _state(path: Path) -> str:
    """Of the files of an image: changes when one of them does."""
    found = [(Path(name).name, *rest) for name, *rest in state_of(path)]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _shuffled(image_id: str) -> str:
    """An order in which the first few are like all others: names tell of days and patients."""
    return hashlib.sha256(image_id.encode()).hexdigest()
