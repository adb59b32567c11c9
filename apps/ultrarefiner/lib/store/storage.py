"""What a disk, a share or the journal does wrong, in words that a radiologist understands; and the door to all that saves.

Words hold no path: who needs one finds it in the server's log.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

import anyio
from filelock import Timeout
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ultrarefiner_monai.studies.availability import StudiesAway

logger = logging.getLogger(__name__)

FULL, AWAY = 507, 503
LABEL = "Your outline"
_FULL = "The disk of the server is full."
_READ_ONLY = "The server cannot write to its disk: it is read-only."
_FORBIDDEN = "The server is not allowed to use a file or folder of its disk (a permission is missing)."
_BROKEN = "The disk or network share of the server does not answer as it should."
_BUSY = "Another program holds the server's files just now."
_MANY = "The server has too many files open just now."
_JOURNAL = "The server's record of corrections (the journal) is damaged."
_IN_THE_WAY = "Something else lies where the server keeps its files."
_GONE = "A file of the server that was there a moment ago is gone."

_BY_ERRNO: dict[int, tuple[int, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (FULL, _FULL)),
    errno.EROFS: (AWAY, _READ_ONLY),
    **dict.fromkeys((errno.EACCES, errno.EPERM), (AWAY, _FORBIDDEN)),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)
        + (errno.EREMOTEIO, errno.ENODEV, errno.ENXIO),
        (AWAY, _BROKEN),
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), (AWAY, _MANY)),
    **dict.fromkeys((errno.EBUSY, errno.EDEADLK, errno.ENOLCK, errno.ETXTBSY), (AWAY, _BUSY)),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), (AWAY, _GONE)),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP), (AWAY, _IN_THE_WAY)),
}
_BY_TEXT = (  # SQLite's own words; its codes are known from Python 3.11 on only
    ("full", FULL, _FULL),
    ("readonly", AWAY, _READ_ONLY),
    ("unable to open", AWAY, _FORBIDDEN),
    ("locked", AWAY, _BUSY),
    ("malformed", AWAY, _JOURNAL),
    ("not a database", AWAY, _JOURNAL),
    ("i/o error", AWAY, _BROKEN),
)
_LOOKS_AT_ONCE = 4
_CHANGING = ("PUT", "POST", "DELETE", "PATCH")


def explain(error: BaseException | None, saving: str = "") -> tuple[int, str] | None:
    """(status, words) for an OSError or an error of SQLite; None where it is neither, or tells nothing of a disk.

    saving: what is not saved now ("Your outline"), empty where the request did not save.
    """
    found: tuple[int, str] | None = None
    if isinstance(error, StudiesAway):
        found = AWAY, f"{str(error)[:1].upper()}{str(error)[1:]}."
    elif isinstance(error, Timeout):
        found = AWAY, _BUSY
    elif isinstance(error, OSError) and error.errno is not None:
        found = _BY_ERRNO.get(error.errno)
    elif isinstance(error, sqlite3.Error):
        text = str(error).lower()
        found = next(((status, words) for part, status, words in _BY_TEXT if part in text), (AWAY, _JOURNAL))
    if found is None:
        return None
    status, words = found
    if saving == LABEL:
        tell = "" if "Tell your IT" in words else ", tell your IT"
        return status, f"{words} {LABEL} is not saved. Keep 3D Slicer open{tell}, then press Submit Label again."
    if saving:
        return status, f"{words} {saving} is not saved. Tell your IT, then try again."
    return status, words if "IT" in words else f"{words} Tell your IT, then try again."


def saved_by(method: str, path: str) -> str:
    """What a request was about to save, for ``explain``; empty for one that only reads or computes."""
    if method == "PUT":
        kinds = {"/datastore/label": LABEL, "/datastore/updatelabelinfo": "The information", "/session": "The image"}
        kinds["/datastore/label/info"] = kinds["/datastore/image/info"] = "The information"
        return kinds.get(path.rstrip("/"), "The image" if "/datastore" in path else "It")
    return ""


class SavingDoor:
    """ASGI middleware: while the studies are away, whatever could save or start something is answered 503, in words.

    check: raises StudiesAway; it is called in one of a few threads of its own, a share that hangs must not stop the server.
    """

    def __init__(self, app: ASGIApp, check: Callable[[], Any]):
        self.app, self.check = app, check
        self._limiter = anyio.CapacityLimiter(_LOOKS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in _CHANGING and not _is_login(scope["path"]):
            try:
                await anyio.to_thread.run_sync(self.check, limiter=self._limiter)
            except StudiesAway as error:
                await _drain(receive)
                found = explain(error, saved_by(scope["method"], scope["path"]))
                assert found is not None
                await JSONResponse({"detail": found[1]}, found[0])(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_login(path: str) -> bool:
    return path.rstrip("/").endswith(("/auth", "/auth/token"))


async def _drain(receive: Receive) -> None:
    """Read what a client still sends: one that is sending does not read the answer. The guard bounds it."""
    try:
        while True:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return
    except Exception as error:  # too large: the answer is the same
        logger.debug("a body was not read to its end: %s", error)
