"""Access from the network while no login is configured: with the token that the server prints at its start.

Requests from this machine need no token. Others send it in one of three ways:

* ``Authorization: Bearer TOKEN``
* ``Authorization: Basic``, any name and the token as the password (browsers ask for both)
* MONAI Label's own login (``POST /auth/token``), as 3D Slicer's module and MONAILabelClient do it

The name that comes with the token becomes the author of labels.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
import re
import secrets
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import parse_qs

from filelock import FileLock
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lib.routes.origins import header, is_loopback, log_refusal, route_path
from lib.routes.parameters import TEXT
from ultrarefiner_monai.core.files import replacing

logger = logging.getLogger(__name__)

# The name that the sender of this request gave together with the token, "" for none.
visitor: ContextVar[str] = ContextVar("visitor", default="")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,}")
_LOGIN = ("/auth/", "/auth/token")
_TICKET_SECONDS = 600.0
_MOST_TICKETS = 1000
WORDS = (
    "this server is open to its own machine only, and to those who bring the token that was printed at its start: as "
    "the password, with your name as the user, or as Authorization: Bearer TOKEN"
)


def kept_token(path: Path) -> str:
    """The token in the file ``path`` (mode 0600), made when it is missing: a restart does not change it."""
    try:
        with FileLock(f"{path}.lock"):
            if path.is_file() and _TOKEN.fullmatch(found := path.read_text(encoding="utf-8", errors="replace").strip()):
                os.chmod(path, 0o600)
                return found
            token = secrets.token_urlsafe(32)
            with replacing(path, "w") as file:
                os.chmod(file.name, 0o600)  # before anything is in it
                file.write(token + "\n")
            return token
    except OSError as error:
        logger.warning("the token cannot be kept (%s): the next start makes another one", error.strerror)
        return secrets.token_urlsafe(32)


class Access:
    """ASGI middleware. token: what requests from other machines must carry; "" where none of them is let in."""

    def __init__(self, app: ASGIApp, token: str, prefix: str = ""):
        self.app, self.token = app, token
        self.open = tuple(prefix + path for path in _LOGIN)
        self.sample, self.image = f"{prefix}/activelearning/", f"{prefix}/datastore/image"
        self.tickets = _Tickets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = name_with(self.token, scope)
        known = name is not None or _needs_none(scope, self.token)
        if not known and route_path(scope) not in self.open and not self._has_ticket(scope):
            log_refusal(scope, 401, "no token, or a wrong one")
            headers = {"WWW-Authenticate": 'Basic realm="UltraRefiner", charset="UTF-8"'}
            await JSONResponse({"detail": WORDS}, 401, headers)(scope, receive, send)
            return
        visitor.set(name or "")
        if name is not None and route_path(scope).startswith(self.sample):
            scope.setdefault("state", {})["handed_out"] = lambda image: self.tickets.give(_host(scope, "client"), image)
        await self.app(scope, receive, send)

    def _has_ticket(self, scope: Scope) -> bool:
        """Whether the sender was just offered this image. 3D Slicer fetches the image of its next sample without its
        login, so the address that was offered an image may fetch it for some minutes."""
        if route_path(scope) != self.image or scope["method"] != "GET":
            return False
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("image", [])
        return len(asked) == 1 and self.tickets.valid(_host(scope, "client"), asked[0])


class _Tickets:
    """Until when an address may fetch an image. Thread-safe; the oldest are dropped first."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def give(self, address: str, image: str) -> None:
        with self._lock:
            self._until.pop((address, image), None)
            self._until[address, image] = time.monotonic() + _TICKET_SECONDS
            while len(self._until) > _MOST_TICKETS:
                del self._until[next(iter(self._until))]

    def valid(self, address: str, image: str) -> bool:
        return bool(address) and self._until.get((address, image), 0.0) > time.monotonic()


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine, over its loopback interface: a header of a proxy cannot say so."""
    return is_loopback(_host(scope, "server")) and is_loopback(_host(scope, "client"))


def _needs_none(scope: Scope, token: str) -> bool:
    """Whether no token is needed: from this machine, or where the server listens on loopback alone (no ``token``).
    There a proxy on this machine decides who comes in."""
    return is_local(scope) or (not token and is_loopback(_host(scope, "server")))


def name_with(token: str, scope: Scope) -> str | None:
    """The name that came with the right token ("" for none), None without it."""
    found = header(scope, b"authorization")
    scheme, _, value = found[0].partition(" ") if len(found) == 1 and token else ("", "", "")
    if scheme.lower() == "bearer":
        given, _, name = value.strip().partition(".")
        return _decoded(name) if is_token(given, token) else None
    if scheme.lower() == "basic":
        name, _, given = _decoded(value).partition(":")
        return name if is_token(given, token) and TEXT.fits(name) else None
    return None


def is_token(given: str, token: str) -> bool:
    """Whether ``given`` is the token; takes as long for any wrong one."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _decoded(text: str) -> str:
    """The text in base64 of either alphabet; "" where it is not one line of text."""
    try:
        plain = base64.b64decode(text.replace("-", "+").replace("_", "/") + "===", validate=False).decode()
    except (binascii.Error, ValueError):
        return ""
    return plain if TEXT.fits(plain) else ""


def _host(scope: Scope, end: str) -> str:
    """The address of one end of the connection, ``client`` or ``server``; "" where it is not known."""
    return (scope.get(end) or ("",))[0] or ""
