"""Trainings and batches: of each kind one runs, in a process of its own, and the others wait.

``Background`` takes the place of MONAI Label's executor and keeps MONAI Label's tables, so that routes and clients
read the tasks as before. What differs: a stop also ends the tasks that wait. A process ends with the server, together
with all that it started. A task that failed says why.
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
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from monailabel.utils.async_tasks.utils import background_executors, background_processes, background_tasks

from ultrarefiner_monai.core.messages import public_values
from ultrarefiner_monai.core.processes import KILLED, kill_with_children

logger = logging.getLogger(__name__)

Task = dict[str, Any]
WAITING, RUNNING, STOPPED, DONE, FAILED = "SUBMITTED", "RUNNING", "STOPPED", "DONE", "ERROR"  # MONAI Label's words
SHORT_OF_MEMORY = "the system killed its process, most likely because the memory did not suffice"
CHILD = Path(__file__).with_name("child.py")
_MONAI_LABEL = "monailabel.interfaces.utils.app"
_KEPT_TASKS, _KEPT_LINES = 100, 20


def settled(tasks: Any) -> Any:
    """A copy of tasks for a reply, without paths of the server. Their threads go on changing the originals."""
    while True:
        try:
            return public_values(tasks)
        except RuntimeError:  # changed in this very moment
            time.sleep(0.001)


class Background:
    """Tasks of one kind. method: what MONAI Label calls it. failed(task, reason): called when one has failed; it
    returns the reason as users get it. Thread-safe."""

    def __init__(self, method: str, failed: Callable[[Task, str], str] = lambda _, reason: reason):
        self.method, self._failed = method, failed
        self._lock = threading.Lock()
        self._closed = False
        self._tasks: list[Task] = background_tasks.setdefault(method, [])
        self._processes: dict[str, subprocess.Popen[str]] = background_processes.setdefault(method, {})
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=method)

    def install(self) -> None:
        """Let MONAI Label hand its tasks of this kind to this object."""
        background_executors[self.method] = self

    def submit(self, function: Any, task: Task, *rest: Any) -> Future[None]:
        """Queue a task. The signature is that of MONAI Label's executor; ``function`` and ``rest`` are not used."""
        task["details"] = deque(["it waits for its turn"], maxlen=_KEPT_LINES)
        del self._tasks[:-_KEPT_TASKS]
        return self._pool.submit(self._run, task)

    def open(self) -> list[Task]:
        """The task that runs and those that wait, in the order in which they run."""
        return [task for task in list(self._tasks) if task["status"] in (WAITING, RUNNING)]

    def stop(self) -> Task | None:
        """End what runs, with all that it started, and what waits. Returns what ran, else what would have been next."""
        with self._lock:
            stopped = self.open()
            for task in stopped:
                task |= {"status": STOPPED, "end_ts": _now()}
            running = list(self._processes.values())
            self._processes.clear()
        for process in running:
            kill_with_children(process)
        if stopped:
            logger.info("%d %s task(s) are stopped", len(stopped), self.method)
        return stopped[0] if stopped else None

    def close(self) -> None:
        """End all, and begin nothing any more."""
        self._closed = True
        self.stop()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, task: Task) -> None:
        try:
            with self._lock:  # nobody stops between the look and the entry in the table
                if self._closed or task["status"] != WAITING:
                    return
                process = self._start(task)
                self._processes[task["id"]] = process
                task["status"] = RUNNING
        except OSError as error:
            self._end(task, f"no process could be started: {error.strerror}")
            return
        reader = threading.Thread(target=self._read, args=(process, task["details"]), daemon=True)
        reader.start()
        code = process.wait()
        kill_with_children(process)  # what it left
        reader.join(10)
        logger.info("%s task ended with code %d", self.method, code)
        with self._lock:
            self._processes.pop(task["id"], None)
        if task["status"] != RUNNING:
            return
        self._end(task, _reason(code, list(task["details"])) if code else "")

    def _start(self, task: Task) -> subprocess.Popen[str]:
        # MONAI Label makes PYTHONPATH of the one and CUDA_VISIBLE_DEVICES of the other: no request has a say in that.
        request = {key: value for key, value in task["request"].items() if key not in ("bundle_path", "gpus")}
        environment = dict(os.environ)
        if self.method == "train":
            environment["MONAI_LABEL_DATASTORE_AUTO_RELOAD"] = "false"
        command = [sys.executable, str(CHILD), str(os.getpid()), _MONAI_LABEL, "-m", self.method]
        command += ["-r", json.dumps({**request, "gpus": "all"}, separators=(",", ":"))]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # a group of its own: it ends as a whole
        )

    def _read(self, process: subprocess.Popen[str], details: deque[str]) -> None:
        out = logging.getLogger(f"task_{self.method}")
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                if line := line.rstrip():
                    out.info(line)
                    details.append(line)

    def _end(self, task: Task, reason: str) -> None:
        if reason:
            try:
                reason = self._failed(task, reason)
            except Exception:  # whatever it is, the task has ended
                logger.exception("the end of a %s task could not be noted", self.method)
            logger.error("%s task failed: %s", self.method, reason)
            task["details"].append(reason)
            task |= {"error": reason, "result": reason}  # 3D Slicer shows the result
        with self._lock:
            if task["status"] != STOPPED:
                task |= {"status": FAILED if reason else DONE, "end_ts": _now()}


NOT_DONE = "was not trained: "  # in the last line of a child that failed, before the reason


def _reason(code: int, lines: list[str]) -> str:
    """Why a child ended, from its exit code and its last lines."""
    if code == KILLED:  # what the system does where memory is short
        return SHORT_OF_MEMORY
    said = next((line.split(NOT_DONE, 1)[1] for line in reversed(lines) if NOT_DONE in line), "")
    if said:
        return said
    if code < 0:
        with suppress(ValueError):
            return f"its process ended by {signal.Signals(-code).name}"
    last = lines[-1] if lines else ""
    return f"its process ended with code {code}" + (f": {last:.300}" if last else "")


def _now() -> str:
    return datetime.today().strftime("%Y-%m-%d %H:%M:%S")
