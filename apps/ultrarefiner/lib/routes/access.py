"""Access from the network while no login is configured: with the token that the server prints at its start.

Requests from this machine need no token. Others send it in one of three ways:

* ``Authorization: Bearer TOKEN``
* ``Authorization: Basic``, any name and the token as the password (browsers ask for both)
* MONAI Label's own login (``POST /auth/token``), as 3D Slicer's module and MONAILabelClient do it

The name that comes with the token becomes the author of labels.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

import anyio
import jwt
import requests
from fastapi import Depends, Form, HTTPException, Request
from fastapi.security import OAuth2PasswordRequestForm
from filelock import FileLock
from monailabel.config import settings
from monailabel.endpoints import login as stock_login
from monailabel.endpoints.user import auth as stock_auth
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lib.routes.origins import header, is_loopback, log_refusal, route_path
from lib.routes.parameters import TEXT
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError

logger = logging.getLogger(__name__)

# The name that the sender of this request gave together with the token, "" for none.
visitor: ContextVar[str] = ContextVar("visitor", default="")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,}")
# Signed with a private key: a public one is no secret.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
_LOGIN = ("/auth/", "/auth/token")
_TICKET_SECONDS = 600.0
_MOST_TICKETS = 1000
_WORDS = (
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
    """ASGI middleware. token: what others than this machine have to bring, "" where they cannot come in at all."""

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
            await JSONResponse({"detail": _WORDS}, 401, headers)(scope, receive, send)
            return
        visitor.set(name or "")
        if name is not None and route_path(scope).startswith(self.sample):
            scope.setdefault("state", {})["handed_out"] = lambda image: self.tickets.give(_host(scope, "client"), image)
        await self.app(scope, receive, send)

    def _has_ticket(self, scope: Scope) -> bool:
        """3D Slicer fetches the image of its next sample without its login: for a while, the address that was just offered
        an image gets this one."""
        if route_path(scope) != self.image or scope["method"] != "GET":
            return False
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("image", [])
        return len(asked) == 1 and self.tickets.valid(_host(scope, "client"), asked[0])


class _Tickets:
    """(address, image) -> until when. Thread-safe; the oldest go first."""

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
    """Where the server listens on loopback alone (no ``token``), a proxy on this machine has let the others in."""
    return is_local(scope) or (not token and is_loopback(_host(scope, "server")))


def name_with(token: str, scope: Scope) -> str | None:
    """The name that came with the right token ("" for none), None without it."""
    found = header(scope, b"authorization")
    scheme, _, value = found[0].partition(" ") if len(found) == 1 and token else ("", "", "")
    if scheme.lower() == "bearer":
        given, _, name = value.strip().partition(".")
        return _decoded(name) if _same(given, token) else None
    if scheme.lower() == "basic":
        name, _, given = _decoded(value).partition(":")
        return name if _same(given, token) and TEXT.fits(name) else None
    return None


def routes(token: str) -> list[tuple[str, str, Callable[..., Any]]]:
    """MONAI Label's login, with the token as the password and any name."""

    async def asked_for(request: Request) -> dict[str, Any]:
        return {
            "enabled": bool(token) and not is_local(request.scope),
            "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
            "realm": "",
        }

    async def log_in(username: str = Form(""), password: str = Form("")) -> dict[str, str]:
        if not token:
            raise HTTPException(404, "this server has no login: it answers its own machine, or everybody")
        name = username.strip()
        if not TEXT.fits(name):
            raise InputError(f"the user name must be {TEXT.words}")
        if not _same(password.strip(), token):
            raise HTTPException(401, f"this is not the token: {_WORDS}")
        coded = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
        return {"access_token": f"{token}.{coded}" if coded else token, "token_type": "bearer"}

    async def valid() -> dict[str, Any]:
        return {"username": visitor.get(), "email": None, "name": visitor.get(), "roles": []}

    return [("GET", "/auth/", asked_for), ("POST", "/auth/token", log_in), ("GET", "/auth/token/valid", valid)]


def login_routes() -> list[tuple[str, str, Callable[..., Any]]]:
    """MONAI Label's own login with Keycloak, which blocked all others while it asks there and answered 500 to a slip."""

    def ask(form: OAuth2PasswordRequestForm) -> Any:
        try:
            return asyncio.run(stock_login.access_token(form))
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            if status < 500:
                raise HTTPException(401, "the login does not know this user with this password") from error
            raise

    async def log_in(form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> Any:
        return await anyio.to_thread.run_sync(ask, form)

    stock_auth.from_token = user_of
    return [("POST", "/auth/token", log_in)]


def user_of(token: str) -> stock_auth.User:
    """Whose token of Keycloak it is. In place of MONAI Label's, which names no algorithms: PyJWT 2 then refuses all.

    Raises jwt.InvalidTokenError for what is no token of this realm, or names nobody.
    """
    key = stock_auth.get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    claims = jwt.decode(token, key, algorithms=_ALGORITHMS, options={"verify_aud": False})
    name = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
    if not isinstance(name, str) or not name:
        raise jwt.InvalidTokenError("the token names no user")
    roles: Any = claims
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(part) if isinstance(roles, dict) else None
    texts = {k: v for k in ("email", "name") if isinstance(v := claims.get(_claim(k)), str)}
    return stock_auth.User(username=name, roles=[str(r) for r in roles] if isinstance(roles, list) else [], **texts)


def _claim(name: str) -> str:
    return str(getattr(settings, f"MONAI_LABEL_AUTH_TOKEN_{name.upper()}"))


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _decoded(text: str) -> str:
    """What base64 of either alphabet says, "" where that is no text of one line."""
    try:
        plain = base64.b64decode(text.replace("-", "+").replace("_", "/") + "===", validate=False).decode()
    except (binascii.Error, ValueError):
        return ""
    return plain if TEXT.fits(plain) else ""


def _host(scope: Scope, end: str) -> str:
    """The address of one end of the connection, ``client`` or ``server``; "" where it is not known."""
    return (scope.get(end) or ("",))[0] or ""
