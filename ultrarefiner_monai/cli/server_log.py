"""The log of a server that ``launch`` starts: everything but the token, in files that do not grow without bound."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO, cast

# The first and last words of the message with the token (``lib/routes/doors.py``): for the console, never for the log.
TOKEN_BEGINS, TOKEN_ENDS = "This machine can use the server at once.", "(docs/it/security.md)."
MOST_TOKEN_LINES = 10  # should the last words not come, the log goes on after so many lines
LOG_BYTES, LOG_FILES, LAST_LINES = 10 << 20, 5, 15
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class LaunchError(Exception):
    """The server cannot be started; the message says why and what to do."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """LaunchError where ``path`` cannot be made."""
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"cannot write {path}: {error.strerror or error}. Move away what lies there, or make its folder writable"
        ) from error


class ServerLog:
    """What the server writes to stdout and stderr, line by line into a file that is bounded.

    path: the newest 10 MB, for its owner only; older ones lie beside it as path.1 to path.5. last: the last lines,
    without colours. Raises LaunchError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, deque[str](maxlen=LAST_LINES)
        self._token_lines = 0  # how many may still belong to the message with the token
        with written(path):
            self._file = _OwnersFile(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(message)s"))

    def follow(self, stream: TextIO) -> None:
        """Write until the server closes ``stream``; the message with the token goes to the console in place of the file.

        Reads on whatever fails: a server whose output nobody takes stands still once the pipe is full.
        """
        with contextlib.closing(self._file):
            for line in stream:
                with contextlib.suppress(OSError, ValueError):  # ValueError: the console was closed
                    self._take(_COLOURS.sub("", line.rstrip("\n")))

    def _take(self, text: str) -> None:
        if self._is_about_token(text):
            print(text, flush=True)
            return
        self.last.append(text)
        self._file.emit(logging.makeLogRecord({"msg": text}))

    def _is_about_token(self, text: str) -> bool:
        if text.startswith(TOKEN_BEGINS):
            self._token_lines = MOST_TOKEN_LINES
        about = self._token_lines > 0
        self._token_lines = 0 if text.endswith(TOKEN_ENDS) else max(self._token_lines - 1, 0)
        return about


class _OwnersFile(RotatingFileHandler):
    """Its mode is 0600: names of images stand in it. A failure is said once, not with each line."""

    _failed = False

    def _open(self) -> TextIOWrapper:
        def owners(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        file = cast(TextIOWrapper, open(self.baseFilename, self.mode, encoding=self.encoding, opener=owners))
        with contextlib.suppress(OSError):  # one that was there before
            os.chmod(self.baseFilename, 0o600)
        return file

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}. The server goes on.", file=sys.stderr)
