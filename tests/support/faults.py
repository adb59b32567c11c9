"""Disks that fill up and processes that are killed, at the n-th step that touches the disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

_WRITES = ("BEGIN", "COMMIT", "INSERT", "DELETE", "CREATE", "ALTER")


class Connection:
    """An SQLite connection whose writes are steps, too."""

    def __init__(self, real: sqlite3.Connection, step: Callable[[str, bool], None]):
        self._real, self._step = real, step

    def execute(self, query: str, *values: Any) -> Any:
        if query.lstrip().startswith(_WRITES):
            self._step(f"sqlite {query.split()[0]}", True)
        return self._real.execute(query, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Steps:
    """Counts the steps on the disk; at number ``at``, from 1, something goes wrong. names: of the steps so far.

    how: ``once`` fails that step alone; ``full`` that one and all later ones that need room, as a full disk does; ``kill``
    ends the process there and then.
    """

    def __init__(self, at: int, how: str = "once"):
        self.at, self.how, self.names = at, how, list[str]()

    def __call__(self, name: str, needs_room: bool) -> None:
        self.names.append(name)
        late = len(self.names) > self.at and self.how == "full" and needs_room
        if len(self.names) != self.at and not late:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("sqlite"):
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(errno.ENOSPC, "No space left on device")

    @property
    def went_wrong(self) -> bool:
        return len(self.names) >= self.at


@contextmanager
def steps(at: int, how: str = "once") -> Iterator[Steps]:
    """Steps that are counted within the block; journals that are opened within it count, too."""
    count = Steps(at, how)
    connect = sqlite3.connect

    def counted(where: Any, name: str, needs_room: bool) -> Any:
        real = getattr(where, name)

        def work(*values: Any, **options: Any) -> Any:
            count(name, needs_room)
            return real(*values, **options)

        return mock.patch.object(where, name, work)

    with (
        counted(os, "replace", False),
        counted(os, "unlink", False),
        counted(os, "link", True),
        counted(os, "mkdir", True),
        counted(os, "fsync", True),
        counted(shutil, "copyfileobj", True),
        mock.patch.object(sqlite3, "connect", lambda *v, **o: Connection(connect(*v, **o), count)),
    ):
        yield count


def forked(work: Callable[[], Any]) -> int:
    """Do ``work`` in a process of its own; its id. No journal may be open: SQLite must not be forked."""
    process = os.fork()
    if process == 0:
        signal.alarm(120)  # never left behind
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
