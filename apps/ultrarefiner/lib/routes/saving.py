"""The door in front of all that saves: while the studies are away it answers 503, before anything is read or
changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ultrarefiner_monai.studies.availability import StudiesAway
from ultrarefiner_monai.studies.failures import LABEL, explain

logger = logging.getLogger(__name__)

_LOOKS_AT_ONCE = 4
_CHANGING = ("PUT", "POST", "DELETE", "PATCH")


def saved_by(method: str, path: str) -> str:
    """What a request was about to save, for ``explain``; empty for one that only reads or computes."""
    if method == "PUT":
        kinds = {"/datastore/label": LABEL, "/datastore/updatelabelinfo": "The information", "/session": "The image"}
        kinds["/datastore/label/info"] = kinds["/datastore/image/info"] = "The information"
        return kinds.get(path.rstrip("/"), "The image" if "/datastore" in path else "It")
    return ""


class SavingDoor:
    """ASGI middleware: while the studies are away, whatever could save or start something is answered 503, in words.

    check: raises StudiesAway; it is called in one of a few threads of its own, a share that hangs must not stop the
    server.
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
    """Read the rest of the body: a client that is still sending does not read the answer. The guard bounds the size."""
    try:
        while True:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                return
    except Exception as error:  # too large: the answer is the same
        logger.debug("a body was not read to its end: %s", error)
