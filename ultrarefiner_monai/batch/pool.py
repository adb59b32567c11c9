"""Worker processes that may die: each has one job at a time, so that the parent knows what a dead one was working on.

Why not pebble: its ``ProcessPool``, too, knows the job of a dead worker, but one that dies while it loads the model (too
little memory for so many) is replaced again and again while others work, and else ends the whole pool. Here a process says
when it is ready, one that dies before that is not replaced, and a batch gives up where deaths will not end.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ultrarefiner_monai.batch.jobs import Job
from ultrarefiner_monai.batch.table import Row
from ultrarefiner_monai.batch.work import Setup, failure, serve
from ultrarefiner_monai.core.types import InputError

log = logging.getLogger(__name__)

_MOST_DEATHS = 20  # then something is wrong with the machine, not with a file
_MOST_UNREACHED = 3  # jobs in a row, each after all its retries: the store is down
_GRACE_SECONDS = 5.0
Take = Callable[[Job, list[Row]], None]


class Unreachable(InputError):
    """The DICOMweb store does not answer any more; what is left was not tried."""


@dataclass
class _Member:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    job: Job | None = None


class Pool:
    """``count`` processes that answer jobs. ``serve`` is what they run; ``stop`` has to be called at the end."""

    def __init__(self, setup: Setup, count: int):
        self.setup, self.deaths, self.unreached = setup, 0, 0
        # Not forked: torch's threads and a GPU's context do not survive it.
        self._context = multiprocessing.get_context("spawn")
        self._members: list[_Member] = []
        for _ in range(count):
            self._start()

    def run(self, jobs: Iterable[Job], take: Take) -> None:
        """Call ``take`` with each job and its rows, in the order in which they are finished. InputError when the model
        cannot be loaded or the processes keep dying, Unreachable for a store that is down; what was taken stays."""
        waiting = deque(jobs)
        while waiting or any(member.job for member in self._members):
            ready = {member.connection: member for member in self._members}
            for connection in wait(list(ready)):
                member = ready[connection]  # type: ignore[index]
                try:
                    kind, value = member.connection.recv()
                except (EOFError, ConnectionResetError):
                    self._bury(member, waiting, take)
                    continue
                if kind == "broken":
                    raise InputError(value)
                if kind == "answer":
                    assert member.job is not None
                    job, member.job = member.job, None
                    rows, unreachable = value
                    take(job, rows)
                    self.unreached = self.unreached + 1 if unreachable else 0
                    if self.unreached >= _MOST_UNREACHED:
                        raise Unreachable(rows[0]["error"])
                member.ready = True
                if waiting:
                    member.job = waiting.popleft()
                    self._send(member, member.job)

    def stop(self) -> None:
        """End all processes: those at work at once, what they were writing is dropped."""
        for member in self._members:
            if member.job is None:
                self._send(member, None)
            else:
                member.process.terminate()
        for member in self._members:
            member.process.join(_GRACE_SECONDS)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.connection.close()
        self._members = []

    # --- members ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=serve, args=(there, self.setup), daemon=True)
        process.start()
        there.close()  # so that its death is seen as the end of the pipe
        self._members.append(_Member(process, here))

    def _bury(self, member: _Member, waiting: deque[Job], take: Take) -> None:
        member.process.join()
        member.connection.close()
        self._members.remove(member)
        self.deaths += 1
        how = _ending(member.process.exitcode)
        if not member.ready:
            # Too little memory for so many, most likely: those that work go on, and no other one is tried.
            if not self._members:
                raise InputError(
                    f"a process ended while it loaded the model ({how}): too little memory? Try fewer --processes"
                )
            log.warning("a process ended while it loaded the model (%s): going on with %d", how, len(self._members))
            return
        if self.deaths > _MOST_DEATHS:
            raise InputError(f"{self.deaths} processes ended unexpectedly (the last one: {how}): given up")
        if member.job is not None:
            take(member.job, [failure(member.job, f"the process that worked on it ended ({how}): out of memory?")])
        if waiting:
            self._start()

    @staticmethod
    def _send(member: _Member, message: Job | None) -> None:
        try:
            member.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died just now: the next look at its pipe says so


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
