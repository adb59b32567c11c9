"""The door that checks a request's names and size: no name leaves the studies, no upload is too large; and nothing is kept by
browsers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.routes.origins import route_path
from lib.routes.parameters import check_names
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.names import check_name

_NAMES = ("image", "label", "id", "tag")
_SESSION = re.compile(r"[0-9a-fA-F-]{1,64}")
# A client that is still sending does not read the answer: so much more is taken and thrown away before it comes.
_DRAIN_BYTES = 1 << 30
# JSON and form fields are parsed in memory, in the event loop; files come as multipart.
_TEXT_BYTES = 4 << 20


@dataclass(frozen=True)
class Query:
    """The query parameters of one route."""

    methods: frozenset[str]
    path: re.Pattern[str]
    names: tuple[str, ...]


class Guard:
    """ASGI middleware. limit: bytes of a request's body; they are counted while they arrive and not held in memory.
    queries: the query parameters of the routes; the first route that fits counts. Where none fits, any parameter
    passes."""

    def __init__(self, app: ASGIApp, limit: int, queries: Sequence[Query] = ()):
        self.app, self.limit, self.queries = app, limit, queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            check_target(route_path(scope), scope.get("query_string", b""))
            self._check_query(scope)
        except InputError as error:
            await JSONResponse({"detail": str(error)}, 400)(scope, receive, send)
            return
        headers = dict(scope["headers"])
        files = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        limit = self.limit if files else min(self.limit, _TEXT_BYTES)
        body = _Body(receive, limit, files)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            if b"expect" not in headers:
                await body.drain()
            await JSONResponse({"detail": body.message}, 413)(scope, receive, send)
            return
        await self.app(scope, body, _unkept(send))

    def _check_query(self, scope: Scope) -> None:
        """Refuse unknown parameters: one may be a typing error (``tagg=draft``), and the label would go under another
        tag."""
        text, path = scope.get("query_string", b""), route_path(scope)
        fits = (q for q in self.queries if scope["method"] in q.methods and q.path.match(path))
        if text and (query := next(fits, None)):
            names = [name for name, _ in parse_qsl(text.decode("latin-1"), keep_blank_values=True)]
            check_names(names, query.names, path)


def check_target(path: str, query: bytes) -> None:
    """InputError for a name in the path or the query that has path parts. Both are decoded as the server decodes
    them."""
    parts = path.split("/")
    if ".." in parts or "\\" in path or "\0" in path:
        raise InputError(f"the address {path!r:.120} has path parts that are not allowed")
    if len(parts) > 2 and parts[1] == "session" and parts[2] and not _SESSION.fullmatch(parts[2]):
        raise InputError(f"{parts[2]!r:.80} is no session id")
    values = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    # 3D Slicer sends the name of its volume along with a session; it may be anything, and is not used.
    unused = "image" if path.startswith("/infer/") and any(n == "session_id" and v for n, v in values) else ""
    for name, value in values:
        if name in _NAMES and name != unused and value:
            check_name(value, name)
        if name == "session_id" and value and not _SESSION.fullmatch(value):
            raise InputError(f"{value!r:.80} is no session id")


def _unkept(send: Send) -> Send:
    """No browser keeps pictures and names on its disk: workstations are shared. Answers that say otherwise do as they say."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if all(name.lower() != b"cache-control" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"cache-control", b"no-store")]}
        await send(message)

    return sent


class _Body:
    """``receive`` that counts bytes. Beyond the limit it reads on for a while, so that the client sees the answer,
    then raises 413."""

    def __init__(self, receive: Receive, limit: int, files: bool):
        self.receive, self.limit, self.seen = receive, limit, 0
        if files or limit != _TEXT_BYTES:
            words = "upload is larger than the limit of {} MB (max_upload_mb in the server's config)"
        else:
            words = "request is larger than {} MB, as much as may come without a file"
        self.message = f"the {words.format(limit >> 20)}"

    async def __call__(self) -> Message:
        message = await self.receive()
        self.seen += len(message.get("body", b""))
        if self.seen > self.limit:
            if message.get("more_body"):
                await self.drain()
            raise HTTPException(413, self.message)
        return message

    async def drain(self) -> None:
        taken = 0
        more: Any = True
        while more and taken < _DRAIN_BYTES:
            message = await self.receive()
            taken += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body")
