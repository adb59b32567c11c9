"""Routes of a server whose studies are a DICOMweb store.

Those that wait for the store wait in threads: MONAI Label's own run in its event loop. Viewers reach the store through
our proxy: MONAI Label's own knows neither tokens nor certificates.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any

import anyio
import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from monailabel.endpoints import datastore as stock_datastore
from monailabel.endpoints.user.auth import User

from lib.app import App
from lib.routes.routing import Route, annotator_role, name_of, put_first, user_role
from lib.routes.views import listed
from lib.store.pacs import PacsStudies
from ultrarefiner_monai.core.messages import public, public_values
from ultrarefiner_monai.dicomweb.client import PacsError

# What DICOMweb has below its root. Others are none of a viewer's business: Orthanc reaches other servers from there.
_RESOURCES = ("studies", "series", "instances")
_OPERATIONS = ("wado", "qido", "stow")
# Nothing that means something to whoever reads the address next: no %, which would be decoded once more, no "..".
_PART = re.compile(r"(?!\.+$)[A-Za-z0-9_.,:~-]+")
_FIRST_FRAME = re.compile(r".*/series/([0-9.]+)/instances/([0-9.]+)/frames/1/?")
_PICTURES = ("/rendered", "/thumbnail")
_STOW = re.compile(r"studies(/[0-9.]+)?")
_REQUEST_HEADERS = ("accept", "accept-encoding", "content-type", "if-none-match", "range")
_RESPONSE_HEADERS = ("content-type", "content-encoding", "content-length", "content-range", "etag", "warning")
_BLOCK = 1 << 18


def install(server: FastAPI, app: App) -> None:
    """Put routes that wait for the store into threads, before all others."""
    store = app.datastore()
    assert isinstance(store, PacsStudies)

    async def info(user: User = user_role) -> Any:
        await anyio.to_thread.run_sync(store.fresh)
        return public_values(await anyio.to_thread.run_sync(app.info))

    async def list_images(
        request: Request, output: stock_datastore.ResultType | None = None, user: User = user_role
    ) -> Any:
        def work() -> Any:
            store.fresh()
            return stock_datastore.datastore(output)

        return listed(request, output, await anyio.to_thread.run_sync(work))

    async def read(request: Request, path: str, user: User = user_role) -> Response:
        answer = await _proxy(request, path)
        shown = shown_image(path, store.mirror.images)
        if shown and answer.status_code == 200:
            app.prepare(shown)
            app.note_shown(shown, name_of(user))
        return answer

    async def write(request: Request, path: str, user: User = annotator_role) -> Response:
        return await _proxy(request, path)

    async def _proxy(request: Request, path: str) -> Response:
        path = way_to(request.method, path)
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        if path.endswith(_PICTURES) and "," in headers.get("accept", ""):
            headers["accept"] = "image/jpeg"  # Orthanc refuses a list such as browsers send for an <img>
        headers.setdefault("accept-encoding", "identity")  # or requests asks for what the viewer cannot unpack
        body = await request.body() if request.method == "POST" else None
        answer = await anyio.to_thread.run_sync(
            store.pacs.forward, request.method, path, request.url.query, headers, body
        )
        kept = {name: answer.headers[name] for name in _RESPONSE_HEADERS if name in answer.headers}
        return StreamingResponse(_pieces(answer), answer.status_code, kept)

    routes: list[Route] = [
        ("GET", "/info/", info),
        ("GET", "/datastore/", list_images),
        ("GET", "/proxy/dicom/{path:path}", read),
        ("POST", "/proxy/dicom/{path:path}", write),
    ]
    put_first(server, routes)
    server.exception_handlers[PacsError] = _failed
    server.middleware_stack = server.build_middleware_stack()


def way_to(method: str, path: str) -> str:
    """The path below the store's root for a viewer's ``path``. HTTPException 404 where it is not DICOMweb, and for a
    POST that does not store objects: with the server's account it could do anything there."""
    first, _, rest = path.partition("/")
    path = (rest if first in _OPERATIONS else path).rstrip("/")
    parts = path.split("/")
    if parts[0] not in _RESOURCES or not all(map(_PART.fullmatch, parts)):
        raise HTTPException(404, f"DICOMweb has {', '.join(_RESOURCES)}, not {path!r:.80}")
    if method == "POST" and not _STOW.fullmatch(path):
        raise HTTPException(404, f"objects are stored at studies, not at {path!r:.80}")
    return path


def shown_image(path: str, images: Container[str]) -> str | None:
    """The image that a viewer begins to show with this request: one for the pixels of a first frame."""
    found = _FIRST_FRAME.fullmatch(path)
    return next((uid for uid in (found.groups() if found else ()) if uid in images), None)


async def _failed(request: Request, error: Exception) -> Response:
    """The store failed. Its own 404 stays one; other errors are not the client's fault and become 502 or 503."""
    status = 404 if getattr(error, "status", None) == 404 else 503 if getattr(error, "transient", True) else 502
    return JSONResponse({"detail": public(str(error))}, status)


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    """The body as the store sends it, packed or not."""
    with answer:
        yield from answer.raw.stream(_BLOCK, decode_content=False)
