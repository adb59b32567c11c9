"""Quick learning: after each save a process tunes the champion's mask decoder for some seconds (``learning/quick``).

One runs at a time; what is saved meanwhile starts one more afterwards. The process stays for some minutes after a run, is
nice, ends with the server, and loses nothing when it is killed at any moment. A result that may serve moves the registry's pointer, which the server follows.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from lib.tasks.background import CHILD, SHORT_OF_MEMORY
from lib.tasks.served import Served, device_of
from ultrarefiner_monai.config import ServeConfig, to_dict
from ultrarefiner_monai.core.messages import public
from ultrarefiner_monai.core.processes import KILLED, kill_with_children
from ultrarefiner_monai.learning.quick.worker import ANSWER
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

_WORKER = "ultrarefiner_monai.learning.quick.worker"

_IDLE_SECONDS = 300.0  # so long the process waits for the next save: it holds the memory of a loaded model
# A run that takes so long, and so many times its seconds besides, hangs: it is ended.
_LATE_SECONDS, _LATE_FACTOR = 120.0, 4
_MOST_LINE = 1 << 20  # characters


class QuickWorker:
    """Runs of quick learning on the studies of one server. Thread-safe; ``saved`` returns at once and never raises.

    late: after so many seconds a run is ended; None: by what it may take.
    """

    def __init__(self, config: ServeConfig, work: WorkFolder, studies: str, served: Served, late: float | None = None):
        self.config, self.work, self.studies, self.served = config, work, studies, served
        # On a busy machine the imports alone of a process that stands back take a minute.
        self._late = _LATE_SECONDS + _LATE_FACTOR * config.learning.quick_seconds if late is None else late
        self._lock = threading.Condition()
        self._due, self._busy, self._closed = False, False, False
        self._process: subprocess.Popen[str] | None = None
        self._begun = 0.0
        self._error = ""
        self._counts = {"accepted": 0, "refused": 0, "failed": 0}
        self._last: dict[str, Any] = read_json(work.training.quick / "last.json")
        self._thread: threading.Thread | None = None

    def saved(self) -> None:
        """A final label was saved."""
        with self._lock:
            if self._closed or not self.config.learning.quick:
                return
            self._due = True
            self._lock.notify_all()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="quick", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the next save tries again
                    self._error = str(error)
                else:
                    self._thread = thread

    def state(self) -> dict[str, Any]:
        """For the status page. on; running, since (seconds); due: another run follows; model: what serves; last: the last
        run's result, with ``at``; error: why the last run came to nothing, else empty; counts: runs since the start, by what
        came of them."""
        running = self._busy
        return {
            "on": self.config.learning.quick,
            "running": running,
            "seconds": round(time.monotonic() - self._begun, 1) if running else 0.0,
            "due": self._due,
            "model": self.served.quick,
            "last": self._last,
            "error": self._error,
            "counts": dict(self._counts),
        }

    def close(self) -> None:
        """End what runs, and begin nothing any more."""
        with self._lock:
            self._closed, self._due = True, False
            process = self._process
            self._lock.notify_all()
        if process is not None:
            kill_with_children(process)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Lives as long as the process does: the system ends a child together with the thread that started it."""
        while self._next():
            try:
                self._once()
            except Exception as error:  # whatever it is, the champion serves and the next save tries again
                logger.exception("quick learning failed")
                self._counts["failed"] += 1
                self._error = public(str(error)) or type(error).__name__

    def _next(self) -> bool:
        """Wait for a save; False, and the process is ended, when none came for a while or the server closes."""
        with self._lock:
            self._lock.wait_for(lambda: self._due or self._closed, _IDLE_SECONDS)
            if self._due and not self._closed:
                self._due = False
                return True
            self._thread = None
            process, self._process = self._process, None
        _end(process)  # whoever saves does not wait for it
        return False

    def _once(self) -> None:
        self._begun = time.monotonic()
        self._busy = True
        try:
            answer, code = self._ask(json.dumps(self._job()))
        finally:
            self._busy = False
        self._note(answer, code)

    def _ask(self, job: str) -> tuple[dict[str, Any], int]:
        """(the process's answer to a job, 0), or ({}, its exit code) when it ended instead. Raises RuntimeError for one that
        hangs, or answers with what is no answer; it is ended then."""
        process, late = self._started(), threading.Event()
        if process is None:
            return {}, 0
        assert process.stdin is not None and process.stdout is not None

        def end_late() -> None:
            late.set()
            kill_with_children(process)

        watch = threading.Timer(self._late, end_late)
        watch.daemon = True
        watch.start()
        try:
            with suppress(OSError):  # it was killed: there is nothing to read either
                process.stdin.write(job + "\n")
                process.stdin.flush()
            while line := process.stdout.readline(_MOST_LINE):
                if line.startswith(ANSWER):
                    return _read(line.removeprefix(ANSWER)), 0
                logger.debug("quick: %s", line.rstrip())
            code = process.wait()
        except BaseException:  # what else it says would be taken for the answer to the next job
            self._end()
            raise
        finally:
            watch.cancel()
        self._end()
        if late.is_set():
            raise RuntimeError(f"its process was ended, for it took longer than {self._late:.0f} s")
        return {}, code

    def _started(self) -> subprocess.Popen[str] | None:
        """The process that waits for a job: that of before where it still runs; None where the server closes."""
        with self._lock:
            if self._closed or (self._process is not None and self._process.poll() is None):
                return None if self._closed else self._process
        threads = str(self.config.learning.threads)
        process = subprocess.Popen(  # not under the lock: whoever saves does not wait for it
            [sys.executable, str(CHILD), str(os.getpid()), _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,
        )
        with self._lock:
            if not self._closed:
                self._process = process
                return process
        _end(process)
        return None

    def _end(self) -> None:
        """End the process; the next job starts another one."""
        with self._lock:
            process, self._process = self._process, None
        _end(process)

    def _job(self) -> dict[str, Any]:
        # What was promoted just now may not be loaded yet: nobody has asked.
        files = self.served.files(self.served.registry.pointer().name)
        return {
            "work": str(self.work.root),
            "studies": self.studies,
            "base": str(files.path),
            "refiner": None if files.refiner is None else str(files.refiner),
            "options": to_dict(self.config.learning),
            "device": device_of(self.config.device),
            "max_pixels": self.config.max_pixels,
        }

    def _note(self, found: dict[str, Any], code: int) -> None:
        """What the run came to."""
        seconds = time.monotonic() - self._begun
        if self._closed:
            return
        if not found or "error" in found:
            ended = SHORT_OF_MEMORY if code == KILLED else f"its process ended with code {code}"
            self._error = public(str(found.get("error") or ended))
            self._counts["failed"] += 1
            logger.warning("quick learning came to nothing after %.1f s: %s", seconds, self._error)
            return
        self._error = ""
        self._counts["accepted" if found.get("served") else "refused"] += 1
        self._last = found
        what = f"{found['served']} serves" if found.get("served") else "the model that is served stays"
        logger.info(
            "quick learning, %.1f s, from %d label(s): %s: %s",
            seconds,
            found.get("samples", 0),
            what,
            found.get("why", ""),
        )
        self.served.now()  # follows the pointer in a thread: the next request finds it loaded


def _end(process: subprocess.Popen[str] | None) -> None:
    """End a process, if there is one, and let go of it."""
    if process is not None:
        kill_with_children(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _read(text: str) -> dict[str, Any]:
    """The process's answer."""
    with suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise RuntimeError(f"its process answered with what is no answer: {text[:80]!r}")
