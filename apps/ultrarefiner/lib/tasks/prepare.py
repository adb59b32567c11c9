"""What a first click needs is there before it comes: an image that was handed out is computed frame by frame, unasked.

Embeddings go into the cache, automatic results to the engine; there are no proposals in the journal, which only learns what
the cache calls the frames, so that ``forget`` finds them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from lib.tasks.answers import Engine, OpenImageFile
from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.pipeline.outline import crops
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import OPENED

logger = logging.getLogger(__name__)

MOST_IMAGES = 4


class _Job:
    """One image. left: its frames still to do; filled: bytes of the cache that they took; room: bytes that it may
    still fill without pushing out itself or a newer image; keys: what the cache calls the frames done."""

    def __init__(self, image_id: str, work: Callable[[_Job], Iterator[None]]):
        self.image_id, self.filled, self.room, self.frame_bytes = image_id, 0, 0, 1
        self.left: list[int] = []
        self.keys: set[str] = set()
        self.steps = work(self)


class Preparer:
    """One frame at a time, in a thread of its own, and none begins while a request computes. Thread-safe.

    The image opened last comes first. Older ones wait, a few of them, and go on within what those after them left of the
    cache. Behind them all comes what nobody waits for (``behind``). The process ends when the frame in work is done.
    """

    def __init__(self, engine: Engine, enabled: bool = True):
        self.engine, self.enabled = engine, enabled
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._lock = threading.Lock()
        self._jobs: list[_Job] = []  # the newest one last
        self._requests, self._working = 0, False
        self._last = time.monotonic()
        self._complained: set[str] = set()
        self._behind: Callable[[], bool] | None = None

    def behind(self, step: Callable[[], bool]) -> None:
        """Call ``step`` again and again while there is nothing else to do and no request computes, until it says that it is
        done (False), or fails. It takes as long as a frame does."""
        with self._lock:
            self._behind = step
        self._go_on()

    def open(self, image_id: str, find: Callable[[], Path]) -> None:
        """An image was handed out; ``find`` returns its file, it may take its time. Returns at once, never raises."""
        self.seen()
        if not self.enabled:
            return
        cache = self.engine.served.cache
        room = max(cache.ram_bytes, cache.disk_bytes if cache.disk_dir is not None else 0)
        with suppress(RuntimeError):  # the process is about to end
            self.engine.journal.submit(lambda journal: journal.note_opened(image_id))
        with self._lock:
            job = next((j for j in self._jobs if j.image_id == image_id), None)
            job = job or _Job(image_id, lambda job: self._steps(job, find))
            job.room = room - job.filled
            self._jobs = [*(j for j in self._jobs if j is not job), job][-MOST_IMAGES:]
        self._go_on()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a user's request: at most the frame in work is finished beside it."""
        with self._lock:
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1
                self._last = time.monotonic()
            self._go_on()

    def seen(self) -> None:
        """Somebody did something else, such as saving: it is not quiet."""
        self._last = time.monotonic()

    def quiet_seconds(self) -> float:
        """How long nobody asked for an image or an outline, by a clock that never jumps; 0 while somebody waits."""
        with self._lock:
            return 0.0 if self._requests else time.monotonic() - self._last

    def left(self) -> int:
        """How many steps are still to do, about one a frame; 0 when all that was opened is prepared."""
        with self._lock:
            return sum(1 + len(job.left) for job in self._jobs)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        with self._lock:
            if self._working or self._requests:
                return
            if self._jobs:
                self._working = self._submit(self._step, self._jobs[-1])
            elif self._behind is not None:
                self._working = self._submit(self._step_behind, self._behind)

    def _submit(self, work: Callable[..., Any], *values: Any) -> bool:
        try:
            self._pool.submit(work, *values)
        except RuntimeError:  # the process is about to end
            return False
        return True

    def _step(self, job: _Job) -> None:
        more = False
        try:
            more = next(job.steps, self) is None
        except Exception as error:  # nobody asked for it: whoever does gets the error, or the answer
            if job.image_id not in self._complained:
                self._complained.add(job.image_id)
                trace = None if isinstance(error, (InputError, OSError)) else error
                # Through the pool: it is closed, and silent, where the end of the process was the error.
                self._submit(partial(logger.warning, "%s is not prepared: %s", job.image_id, error, exc_info=trace))
        with self._lock:
            self._working = False
            if not more:
                self._jobs = [j for j in self._jobs if j is not job]
        self._go_on()

    def _step_behind(self, step: Callable[[], bool]) -> None:
        more = False
        try:
            more = step()
        except Exception as error:
            self._submit(
                partial(logger.warning, "what is computed in the background failed: %s", error, exc_info=error)
            )
        with self._lock:
            self._working = False
            if not more and self._behind is step:
                self._behind = None
        self._go_on()

    def _steps(self, job: _Job, find: Callable[[], Path]) -> Iterator[None]:
        if self._forgotten(job):
            return
        path = find()
        sha256, predictor = "", None
        while True:
            opened, now = self.engine.open(path), self.engine.served.now()
            if now is not predictor or opened.sha256 != sha256:  # another model, or file: all anew
                predictor, sha256, job.left = now, opened.sha256, frame_order(opened.image_file.n_frames)
            if not job.left or job.room < job.frame_bytes:
                return
            try:
                self._prepare(job, predictor, opened, job.left.pop(0))
            finally:
                gone = self._forgotten(job)
            if gone:
                return
            yield

    def _prepare(self, job: _Job, predictor: Predictor, opened: OpenImageFile, k: int) -> None:
        parts = crops(opened.image_file.frame(k), opened.image_file.regions_of(k))
        keys = {image_key(part) for part in parts}
        job.keys |= keys
        # Before there is anything to forget.
        self.engine.journal.ask(lambda journal: journal.note_prepared(job.image_id, opened.sha256, keys))
        for part in parts:
            predictor.prepare(part)
        self.engine.answer(predictor.seen_as(opened.image_file.view), opened, k)
        job.frame_bytes = sum(self.engine.served.cache.held(key) for key in keys)
        with self._lock:
            job.filled += job.frame_bytes
            for other in self._jobs[: self._jobs.index(job) + 1] if job in self._jobs else ():
                other.room -= job.frame_bytes
        if not job.frame_bytes:  # the cache is too small for a single frame
            job.left = []

    def _forgotten(self, job: _Job) -> bool:
        """Whether the image was forgotten since it was opened; then nothing stays of what was prepared meanwhile.

        ``forget`` removes what was noted before it; notes that are gone tell of it, whatever was in work just then.
        """
        if self.engine.journal.ask(lambda journal: {OPENED, *job.keys} <= journal.prepared(job.image_id)):
            return False
        if job.keys:
            self.engine.drop(job.keys)
            self.engine.journal.ask(lambda journal: journal.drop_prepared(job.image_id, {OPENED, *job.keys}))
        return True


def frame_order(count: int) -> list[int]:
    """Frames in the order in which they are looked at: 3D Slicer shows the middle one first, other viewers the first one;
    then outwards from the middle."""
    middle = count // 2
    return sorted(range(count), key=lambda k: (k != middle, k != 0, abs(k - middle), k))
