"""Quick learning: after each save a process tunes the champion's mask decoder for some seconds (``learning/quick``).

One runs at a time; what is saved meanwhile starts one more afterwards. The process stays for some minutes after a run, is
nice, ends with the server, and loses nothing when it is killed at any moment. A result that may serve moves the registry's pointer, which the server follows.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lib.tasks.background import SHORT_OF_MEMORY
from lib.tasks.served import Served, device_of
from ultrarefiner_monai.config import ServeConfig, to_dict
from ultrarefiner_monai.core.messages import public
from ultrarefiner_monai.learning.quick.worker import ANSWER
from ultrarefiner_monai.studies.training_folder import read_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("child.py")
_WORKER = "ultrarefiner_monai.learning.quick.worker"

_IDLE_SECONDS = 300.0  # so long the process waits for the next save: it holds the memory of a loaded model
_LATE_FACTOR = 4  # a run that takes so many times its seconds hangs: it is ended


class QuickWorker:
    """Runs of quick learning on the studies of one server. Thread-safe; ``saved`` returns at once and never raises."""

    def __init__(self, config: ServeConfig, work: WorkFolder, studies: str, served: Served):
        self.config, self.work, self.studies, self.served = config, work, studies, served
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
                self._thread = threading.Thread(target=self._run, name="quick", daemon=True)
                self._thread.start()

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
            _kill(process)

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
            self._end()
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
        """(the process's answer to a job, 0), or ({}, its exit code) when it ended instead."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        watch = threading.Timer(_LATE_FACTOR * self.config.learning.quick_seconds, _kill, (process,))
        watch.daemon = True
        watch.start()
        try:
            with suppress(OSError):  # it was killed: there is nothing to read either
                process.stdin.write(job + "\n")
                process.stdin.flush()
            for line in process.stdout:
                if line.startswith(ANSWER):
                    return json.loads(line.removeprefix(ANSWER)), 0
                logger.debug("quick: %s", line.rstrip())
        finally:
            watch.cancel()
        code = process.wait()
        self._end()
        return {}, code

    def _started(self) -> subprocess.Popen[str]:
        """The process that waits for a job: that of before where it still runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return self._process
            threads = str(self.config.learning.threads)
            self._process = subprocess.Popen(
                [sys.executable, str(_CHILD), str(os.getpid()), _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                start_new_session=True,
            )
            return self._process

    def _end(self) -> None:
        """End the process; the next job starts another one."""
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _job(self) -> dict[str, Any]:
        files = self.served.files(self.served.name)
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
            ended = SHORT_OF_MEMORY if code == -signal.SIGKILL else f"its process ended with code {code}"
            self._error = public(str(found.get("error") or ended))
            self._counts["failed"] += 1
            logger.warning("quick learning came to nothing after %.1f s: %s", seconds, self._error)
            return
        self._error = ""
        self._counts["accepted" if found.get("served") else "refused"] += 1
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._last = {**found, "at": at}
        what = f"{found['served']} serves" if found.get("served") else "the model that is served stays"
        logger.info("quick learning, %.1f s, %d samples: %s: %s", seconds, found.get("samples", 0), what, found["why"])
        self.served.now()  # follows the pointer in a thread: the next request finds it loaded


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
