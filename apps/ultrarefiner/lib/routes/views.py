"""Routes that only show something: /info/, listings, sessions, logs.

Replies are bounded in size and hold no path of the server.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from html import escape
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import HTTPException, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from monailabel.config import settings
from monailabel.endpoints import datastore as stock_datastore
from monailabel.endpoints import session as stock_session
from monailabel.endpoints.user.auth import User

from lib.app import App
from lib.routes.access import is_local
from lib.routes.files import sent_at_once
from lib.routes.routing import Route, admin_role, user_role
from ultrarefiner_monai.core.messages import public, public_values

_MOST_LINES = 10_000
_LOG_BYTES = 1 << 20
_GPU_SECONDS = 10


def routes(app: App) -> list[Route]:
    async def info(user: User = user_role) -> Any:
        return public_values(await anyio.to_thread.run_sync(app.info))

    return [
        ("GET", "/info/", info),
        ("GET", "/datastore/", list_images),
        ("GET", "/datastore/image/info", image_info),
        ("GET", "/datastore/label/info", label_info),
        ("GET", "/session/{session_id}", get_session),
        ("DELETE", "/session/{session_id}", remove_session),
        ("GET", "/logs/", read_log),
        ("GET", "/logs/gpu", gpu),
    ]


async def list_images(
    request: Request, output: stock_datastore.ResultType | None = None, user: User = user_role
) -> Any:
    """Counts, the index (``all``), or pairs of paths for programs that train on this machine (``train``)."""
    found = await anyio.to_thread.run_sync(stock_datastore.datastore, output)
    return listed(request, output, found)


def listed(request: Request, output: stock_datastore.ResultType | None, found: Any) -> Any:
    """The listing without paths of the server; pairs of paths (``train``) go to programs on this machine only."""
    if output != stock_datastore.ResultType.train:
        return public_values(found)
    if not is_local(request.scope):
        raise HTTPException(
            403,
            "output=train lists paths of the server, which mean nothing on another machine: take output=all, and fetch "
            "images and labels by their ids",
        )
    return found


async def image_info(image: str, user: User = user_role) -> Any:
    return public_values(await anyio.to_thread.run_sync(stock_datastore.get_image_info, image))


async def label_info(label: str, tag: str, user: User = user_role) -> Any:
    return public_values(await anyio.to_thread.run_sync(stock_datastore.get_label_info, label, tag))


async def get_session(session_id: str, update_ts: bool = False, image: bool = False, user: User = user_role) -> Any:
    find = partial(stock_session.get_session, session_id, update_ts, image)
    return _shown(await anyio.to_thread.run_sync(partial(sent_at_once, find) if image else find))


async def remove_session(session_id: str, user: User = user_role) -> Any:
    return _shown(await anyio.to_thread.run_sync(stock_session.remove_session, session_id))


def _shown(found: Any) -> Any:
    return found if isinstance(found, Response) else public_values(found)


async def read_log(
    lines: Annotated[int, Query(ge=1, le=_MOST_LINES)] = 300,
    html: bool = True,
    text: bool = False,
    refresh: Annotated[int, Query(ge=0, le=3600)] = 0,
    user: User = admin_role,
) -> Response:
    """The last ``lines`` of the server's log, at most 1 MB; as a page that needs nothing from elsewhere, or as text."""
    path = Path(settings.MONAI_LABEL_APP_DIR, "logs", "app.log")
    content = public(await anyio.to_thread.run_sync(_last_lines, path, lines))
    if text or not html:
        return PlainTextResponse(content)
    again = f'<meta http-equiv="refresh" content="{max(refresh, 3)}">' if refresh else ""
    head = f'<meta charset="utf-8"><title>Log</title>{again}'
    return HTMLResponse(f"<!doctype html><html><head>{head}</head><body><pre>{escape(content)}</pre></body></html>")


def _last_lines(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            found = file.read(_LOG_BYTES)
    except OSError as error:
        raise HTTPException(404, f"the log {path.name} cannot be read: {error.strerror}") from error
    return "".join(found.decode("utf-8", "replace").splitlines(keepends=True)[-lines:])


async def gpu(user: User = admin_role) -> Response:
    """What nvidia-smi says."""

    def work() -> Response:
        try:
            found = subprocess.run(["nvidia-smi"], capture_output=True, timeout=_GPU_SECONDS, check=False)
        except FileNotFoundError as error:
            raise HTTPException(404, "there is no nvidia-smi on this machine") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise HTTPException(503, f"nvidia-smi does not answer ({type(error).__name__})") from error
        return PlainTextResponse(found.stdout.decode("utf-8", "replace"))

    return await anyio.to_thread.run_sync(work)
