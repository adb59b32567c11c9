"""Processes that this one starts, on POSIX systems and on Windows."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

# What the exit code of a process is that was killed, as it is when the system ran out of memory.
KILLED = -int(getattr(signal, "SIGKILL", 9))


def kill_with_children(process: subprocess.Popen) -> None:
    """End a process and all that it started, at once; one that has ended is let be.

    Where there are groups of processes, it must have been started with ``start_new_session``.
    """
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for child in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
