"""What the server learns by itself from saved labels: quickly after each save, slowly after many.

The slow part is a thread that looks every few seconds whether a round is due (``learning/schedule.py``), and starts its
trainings one after the other as a client would: in a process of its own, through the gate. Nothing is computed here.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Protocol

from fastapi import HTTPException
from monailabel.endpoints import train as stock_train
from monailabel.interfaces.exception import MONAILabelException

from lib.tasks.background import CHILD, DONE, FAILED, Background
from lib.tasks.prepare import Preparer
from lib.tasks.served import Served
from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.mirror import is_due as mirror_is_due
from ultrarefiner_monai.learning.promotion import has_refiner
from ultrarefiner_monai.learning.schedule import (
    MOST_BEGINS,
    Learnt,
    Memory,
    Round,
    Saves,
    following,
    is_due,
    next_trigger,
    trainings,
)
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


class Quick(Protocol):
    """The quick part (``lib.tasks.quick``)."""

    def saved(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Learner:
    """Learning from what is saved. ``begin`` is for the process that serves; in others nothing happens. Thread-safe.

    trainers: the trainings by name, asked when one begins. quick: None where it is off.
    """

    def __init__(
        self,
        options: LearningConfig,
        work: WorkFolder,
        journal: JournalQueue,
        served: Served,
        preparer: Preparer,
        background: Background,
        trainers: Callable[[], Mapping[str, Any]],
        quick: Quick | None = None,
    ):
        self.options, self.work, self.journal, self.served = options, work, journal, served
        self.preparer, self.background, self.trainers, self.quick = preparer, background, trainers, quick
        self.memory = Memory.of(work.training.root / "learning.json")
        self.error = ""
        self._saves = Saves()
        self._look = threading.Event()  # set by who has something for the thread to do
        self._stale, self._closed = True, False
        self._task: dict[str, Any] | None = None  # the round's training, as MONAI Label keeps it
        self._hour_begun: float | None = None
        self._mirror: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def begin(self) -> None:
        """The server has started."""
        self._start_mirror()
        self._thread.start()

    def saved(self, image_id: str) -> None:
        """A final label was saved, or came from the PACS. Returns at once, never raises. Other processes than the one that
        serves learn nothing."""
        self.preparer.seen()
        self._stale = True
        self._look.set()
        if self.quick is not None and self._thread.ident is not None:
            self.quick.saved()

    def state(self) -> dict[str, Any]:
        """What a status page tells: the next trigger, labels since the last round, what runs, and what went wrong last."""
        known, running = self.memory.value, self.background.open()
        return {
            "slow": {
                "on": self.options.slow,
                "next": next_trigger(known, self._saves, self.options, bool(running)),
                "labels": self._saves.images,
                "needed": self.options.labels,
                "round": None if known.round is None else {"task": known.round.task, "done": list(known.round.done)},
                "running": running[0]["request"].get("model", "") if running else "",
                "ended": known.ended,
                "error": self.error or known.error,
            },
            "quick": self.quick.state() if self.quick is not None else {"on": False},
        }

    def close(self) -> None:
        """End what was started here; the trainings end with ``app.trainings``."""
        self._closed = True
        self._look.set()
        if self.quick is not None:
            self.quick.close()
        if self._mirror is not None and self._mirror.poll() is None:
            self._mirror.kill()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            try:
                self._step()
                self.error = ""
            except Exception as error:  # a full disk, a locked journal: it is tried again
                text = str(getattr(error, "strerror", None) or error)
                if text != self.error:
                    logger.exception("the slow learning cannot go on")
                self.error = text
            self._look.wait(LOOK_SECONDS)
            self._look.clear()

    def _step(self) -> None:
        known = self.memory.value
        if self._stale:
            self._stale = False
            try:
                self._saves, known = self._counted(known)
            except BaseException:
                self._stale = True
                raise
        if known.round is not None:
            self._go_on(known.round)
            return
        since = None if self._hour_begun is None else time.monotonic() - self._hour_begun
        now = datetime.now()
        quiet = self.preparer.quiet_seconds()
        if self.background.open() or not is_due(known, self._saves, self.options, quiet, now, since):
            return
        refiner = self._has_refiner()
        # Without a refiner nothing has prepared the labels yet: all that were saved count.
        first = trainings(refiner, self._lesions() if refiner else self._saves.all, self.options)
        day = {"day": str(now.date())} if self.options.hour else {}
        if not first:
            reason = "there is no refiner to train, and there are too few labels for the coarse network"
            self.memory.keep(tried=self._saves.newest, error=reason, **day)
            self._hour_begun = time.monotonic() if day else None
            return
        logger.info("%d images were labelled since the last training: learning begins", self._saves.images)
        self.memory.keep(tried=self._saves.newest, error="", round=Round(self._saves.newest, first[0]), **day)
        self._hour_begun = time.monotonic() if day else None
        self._start(first[0])

    def _go_on(self, current: Round) -> None:
        """Follow the round's training; begin the next one where it has ended, and this one again after a restart."""
        if self._task is None:
            if self.preparer.quiet_seconds() >= 60 * self.options.quiet_minutes and not self.background.open():
                self._begin(current)
            return
        if self._task["id"] in {task["id"] for task in self.background.open()}:
            return
        status = self._task["status"]
        if self._closed:  # asked after the status: the server's end stopped it, and its next start goes on
            return
        error = "" if status == DONE else str(self._task.get("error", "")) if status == FAILED else "it was stopped"
        done = (*current.done, current.task)
        task = "" if error else following(current.task, trainings(self._has_refiner(), self._lesions(), self.options))
        if task:
            self.memory.keep(round=Round(current.saves, task, 0, done))
            self._task = None  # last: where the disk is full, this step is done again
            self._start(task)
        else:
            self._end(current, f"{current.task}: {error}" if error else "")
            self._task = None
            pointer = self.served.registry.pointer()
            if self.quick is not None and pointer.by == "slow" and not pointer.quick:
                self.quick.saved()  # what was corrected is tuned on top of the new champion, too

    def _begin(self, current: Round) -> None:
        if current.begins >= MOST_BEGINS:
            self._end(current, f"{current.task} was begun {current.begins} times and never ended")
            return
        self._start(current.task)

    def _start(self, task: str) -> None:
        current = self.memory.value.round
        assert current is not None
        # Written first: a training that ends the whole machine is not begun for ever.
        self.memory.keep(round=Round(current.saves, task, current.begins + 1, current.done))
        request = self.trainers()[task].defaults()
        try:
            self._task = stock_train.run_model(task, request, False, True)
        except (HTTPException, MONAILabelException) as error:
            self._end(current, f"{task} could not be started: {getattr(error, 'detail', None) or error}")

    def _end(self, current: Round, error: str) -> None:
        """The round is over. After a failure the same labels are tried again together with the next one."""
        learnt = {} if error else {"learnt": current.saves}
        ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.memory.keep(round=None, ended=ended, error=error, **learnt)
        self._stale = True
        if error:
            logger.error("the slow learning ended: %s", error)

    # --- looking ------------------------------------------------------------------------------------------------------

    def _counted(self, known: Learnt) -> tuple[Saves, Learnt]:
        def ask(journal: Journal) -> Saves:
            newest = journal.rows("SELECT COALESCE(MAX(id), 0) FROM corrections")[0][0]
            since = min(known.learnt, newest) if known.learnt <= newest else 0
            count = journal.rows("SELECT COUNT(DISTINCT image_id) FROM corrections WHERE id > ?", (since,))[0][0]
            everything = journal.rows("SELECT COUNT(DISTINCT image_id) FROM corrections")[0][0]
            return Saves(int(newest), int(count), int(everything))

        found = self.journal.ask(ask)
        if found.newest < max(known.learnt, known.tried):  # another journal, or all that was learnt was forgotten
            known = self.memory.keep(learnt=min(known.learnt, found.newest), tried=0)
        return found, known

    def _has_refiner(self) -> bool:
        try:
            return has_refiner(self.served.files(self.served.registry.pointer().name))
        except (InputError, OSError):
            return True  # the training says what is wrong with it

    def _lesions(self) -> int:
        """Images with a lesion that are trained on, as the last training prepared them."""
        rows = self.work.training.read_rows()
        return len({row["image"] for row in rows if row["class"] == "lesion" and row["fold"] == "train"})

    def _start_mirror(self) -> None:
        """Bring the journal's promotions in line; MLflow's store in a process of its own, where it lacks something."""
        self._quietly(self.served.registry.repair_journal)
        if not mirror_is_due(self.work):
            return
        command = [
            sys.executable,
            str(CHILD),
            str(os.getpid()),
            "ultrarefiner_monai.learning.mirror",
            str(self.work.root),
        ]
        self._quietly(lambda: self._spawn(command))

    def _spawn(self, command: list[str]) -> None:
        self._mirror = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _quietly(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:
            logger.warning("what tells of the models could not be brought in line: %s", error)
