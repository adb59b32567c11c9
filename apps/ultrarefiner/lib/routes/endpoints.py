"""What the server adds or repairs: which routes stand before MONAI Label's own, and how errors are answered.

MONAI Label runs inference in its event loop and answers bad input with 500. All its other routes stay as they are, behind
``lib.routes.doors``. docs/it/security.md lists every route.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from starlette.exceptions import HTTPException as StarletteHTTPException

from lib.routes import infer as infer_routes
from lib.routes import store as store_routes
from lib.routes import tasks as task_routes
from lib.routes import views as view_routes
from lib.routes.messages import hide, public, public_values
from lib.routes.page import front_page
from lib.routes.routing import put_first, user_role
from lib.store.storage import explain, saved_by
from ultrarefiner_monai.core.types import InputError

logger = logging.getLogger(__name__)


def install(server: FastAPI, app: Any) -> None:
    """Put the app's routes before MONAI Label's, and let errors be answered in words without paths."""
    put_first(server, _routes(app.studies))
    hide(app.app_dir, app.work.root, tempfile.gettempdir(), Path.home(), *([] if app.pacs else [app.studies]))
    server.exception_handlers.update(error_handlers())


def error_handlers() -> dict[Any, Callable[..., Any]]:
    """How each kind of error is answered."""
    return {
        InputError: _wrong,
        json.JSONDecodeError: _answer(400),
        ImageNotFoundException: _answer(404),
        LabelNotFoundException: _answer(404),
        MONAILabelException: _answer(404),
        RequestValidationError: _invalid,
        OSError: _storage,
        sqlite3.Error: _storage,
        StarletteHTTPException: _refused,
        requests.RequestException: _away,
        Exception: _failed,
    }


def _routes(studies: str) -> list[tuple[str, str, Callable[..., Any]]]:
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/", _front),
        *view_routes.routes(),
        *(
            (method, "/docs", _refuse(404, "that page needs scripts of other servers: /openapi.json has all it says"))
            for method in ("GET", "HEAD")
        ),
        ("POST", "/infer/wsi/{model}", _refuse(404, "there are no pathology models here")),
        ("POST", "/infer/wsi_v2/{model}", _refuse(404, "there are no pathology models here")),
        ("POST", "/infer/{model}", infer_routes.infer),
        ("POST", "/batch/infer/{model}", task_routes.batch_infer),
        ("DELETE", "/batch/infer", task_routes.stop_batch),
        ("GET", "/batch/infer", task_routes.batch_status),
        ("GET", "/train/", task_routes.train_status),
        ("POST", "/train/", task_routes.train_all),
        ("POST", "/train/{model}", task_routes.train),
        ("DELETE", "/train/", task_routes.stop_training),
        ("POST", "/scoring/{method}", _refuse(404, "there are no scoring methods")),
        *((method, "/scoring/", _refuse(404, "there are no scoring methods")) for method in ("GET", "POST", "DELETE")),
        ("PUT", "/datastore/", store_routes.add_image),
        ("PUT", "/datastore/image", store_routes.add_image),
        ("PUT", "/datastore/label", store_routes.save_label),
        ("PUT", "/datastore/image/info", store_routes.put_image_info),
        ("PUT", "/datastore/label/info", store_routes.put_label_info),
        ("PUT", "/datastore/updatelabelinfo", store_routes.put_label_info_old),
        ("GET", "/datastore/image", store_routes.get_image),
        ("HEAD", "/datastore/image", store_routes.check_image),
        ("DELETE", "/datastore/", store_routes.remove_image),
        ("DELETE", "/datastore/image", store_routes.remove_image),
        ("DELETE", "/datastore/label", store_routes.remove_label),
        ("GET", "/datastore/dataset", store_routes.download_dataset),
        ("PUT", "/session/", store_routes.create_session),
        ("POST", "/activelearning/{strategy}", store_routes.next_sample),
        ("GET", "/model/{model}", _refuse(404, "models are not handed out: `ultrarefiner models list` shows them")),
        ("GET", "/model/info/{model}", _refuse(404, "/info/ says which model answers")),
        ("PUT", "/model/{model}", _refuse(403, "models are chosen with `ultrarefiner models use`, not uploaded")),
        ("DELETE", "/model/{model}", _refuse(403, "models are chosen with `ultrarefiner models use`, not removed")),
        ("POST", "/reload", _refuse(403, "restart the server instead")),
    ]
    if not studies.startswith(("http://", "https://")):
        for method in ("GET", "POST"):
            routes.append(
                (method, "/proxy/dicom/{path:path}", _refuse(404, "the studies are a folder, not a DICOMweb store"))
            )
    return routes


async def _front(request: Request, user: User = user_role) -> HTMLResponse:
    return HTMLResponse(front_page(public_values(app_instance().info()), str(request.base_url).rstrip("/")))


def _refuse(status: int, message: str) -> Callable[[], Any]:
    """A route that says why there is nothing here."""

    async def route() -> None:
        raise HTTPException(status, message)

    route.refuses = True  # type: ignore[attr-defined]
    return route


def _answer(status: int) -> Callable[[Request, Exception], Any]:
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": public(str(getattr(error, "msg", None) or error))}, status)

    return handler


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own refusals in a sentence, without echoing what came."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    text = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg', '')}" for e in found)
    return JSONResponse({"detail": public(text) or "the request is not valid"}, 422)


async def _refused(request: Request, error: Any) -> Any:
    """An HTTPException of whoever raised it. FastAPI says that a body cannot be parsed where the disk for uploads is full."""
    if error.status_code == 400 and isinstance(error.__cause__, OSError) and explain(error.__cause__) is not None:
        return await _storage(request, error.__cause__)
    error.detail = public_values(error.detail)
    return await http_exception_handler(request, error)


async def _storage(request: Request, error: Exception) -> JSONResponse:
    """A disk, a share or the journal failed."""
    found = explain(error, saved_by(request.method, request.url.path))
    if found is None:
        return await _failed(request, error)
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": found[1]}, found[0])


async def _wrong(request: Request, error: Exception) -> JSONResponse:
    """Bad input; or a good file that a disk or a share does not give just now: readers cannot tell it from a bad one."""
    cause = error.__cause__
    # Decoders have errors with the system's numbers too (PyAV): those tell of the file, not of a disk.
    if isinstance(cause, OSError) and type(cause).__module__ == "builtins" and explain(cause) is not None:
        return await _storage(request, cause)
    return await _answer(400)(request, error)


async def _away(request: Request, error: Exception) -> JSONResponse:
    """Whom this server asks itself: the login. (A PACS has errors of its own.)"""
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": f"the login server does not answer ({type(error).__name__}): try again"}, 503)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"detail": f"internal error ({type(error).__name__}); the server's log has the details"}, 500)
