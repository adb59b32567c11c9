"""Runs a module in a process that never outlives the server, even one that is killed.

``python child.py PID MODULE ARGUMENTS``: PID is the server's; MODULE is ``monailabel.interfaces.utils.app`` for a task of
MONAI Label.
This file imports nothing of the app: its watch over the server must begin before the imports that take seconds.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # prctl.h


def end_with(parent: int) -> None:
    """From now on this process is killed when ``parent``, which has to be the one that started it, has ended.

    Every file of a run is whole at any moment. Where the system has no such call, a thread looks once a second.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform.startswith("linux") else None
    if prctl is None or prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    del sys.path[0]  # this folder: its modules are `lib.NAME`, and hide nobody's
    end_with(int(sys.argv.pop(1)))
    own = os.getpid()
    # Workers that load data end with this process in the same way.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: end_with(own))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
