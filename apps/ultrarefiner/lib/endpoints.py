"""What the server adds or repairs: which routes stand before MONAI Label's own, and how errors are answered.

MONAI Label runs inference in its event loop and answers bad input with 500. All its other routes stay as they are, behind
``lib.guard``.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib import infer_routes, store_routes, task_routes
from lib.guard import Guard
from lib.page import front_page
from lib.routing import put_first, user_role
from lib.storage import Door, explain, saved_by
from ultrarefiner_monai.types import InputError

logger = logging.getLogger(__name__)


def install(server: FastAPI, app: Any) -> None:
    """Put the app's routes before MONAI Label's, the guard before everything, and limit CORS to what is configured."""
    put_first(server, _routes(app.studies))
    handlers = server.exception_handlers
    handlers[InputError] = _refused
    handlers[json.JSONDecodeError] = _answer(400)
    handlers[ImageNotFoundException] = handlers[LabelNotFoundException] = _answer(404)
    handlers[MONAILabelException] = _answer(404)
    handlers[RequestValidationError] = _invalid
    handlers[OSError] = handlers[sqlite3.Error] = _storage
    handlers[StarletteHTTPException] = _http
    handlers[Exception] = _failed

    origins = [str(o).rstrip("/") for o in settings.MONAI_LABEL_CORS_ORIGINS] or list(app.config.cors_origins)
    server.user_middleware[:] = [
        *(m for m in server.user_middleware if m.cls not in (CORSMiddleware, Guard, Door)),
        Middleware(Guard, limit=app.config.max_upload_mb << 20),
        Middleware(Door, check=app.datastore().presence.check),
    ]
    if origins:
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        server.user_middleware.insert(0, cors)
    server.middleware_stack = server.build_middleware_stack()


def _routes(studies: str) -> list[tuple[str, str, Callable[..., Any]]]:
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/", _front),
        ("POST", "/infer/wsi/{model}", _refuse(404, "there are no pathology models here")),
        ("POST", "/infer/wsi_v2/{model}", _refuse(404, "there are no pathology models here")),
        ("POST", "/infer/{model}", infer_routes.infer),
        ("POST", "/batch/infer/{model}", task_routes.batch_infer),
        ("POST", "/train/", task_routes.train_all),
        ("POST", "/train/{model}", task_routes.train),
        ("DELETE", "/train/", task_routes.stop_training),
        ("POST", "/scoring/{method}", _refuse(404, "there are no scoring methods")),
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
        ("PUT", "/model/{model}", _refuse(403, "models are chosen with `ultrarefiner models use`, not uploaded")),
        ("DELETE", "/model/{model}", _refuse(403, "models are chosen with `ultrarefiner models use`, not removed")),
        ("POST", "/reload", _refuse(403, "restart the server instead")),
    ]
    if not studies.startswith(("http://", "https://")):
        for method in ("GET", "POST"):
            routes.append(
                (method, "/proxy/dicom/{path:path}", _refuse(404, "the studies are a folder, not a DICOMweb store"))
            )
    if not shutil.which("nvidia-smi"):
        routes.append(("GET", "/logs/gpu", _refuse(404, "there is no nvidia-smi on this machine")))
    return routes


async def _front(request: Request, user: User = user_role) -> HTMLResponse:
    return HTMLResponse(front_page(app_instance().info(), str(request.base_url).rstrip("/")))


def _refuse(status: int, message: str) -> Callable[[], Any]:
    """A route that says why there is nothing here."""

    async def route() -> None:
        raise HTTPException(status, message)

    return route


def _answer(status: int) -> Callable[[Request, Exception], Any]:
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(getattr(error, "msg", None) or error)}, status)

    return handler


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own refusals in a sentence, without echoing what came."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    text = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg', '')}" for e in found)
    return JSONResponse({"detail": text or "the request is not valid"}, 422)


async def _storage(request: Request, error: Exception) -> JSONResponse:
    """A disk, a share or the journal failed."""
    found = explain(error, saved_by(request.method, request.url.path))
    if found is None:
        return await _failed(request, error)
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": found[1]}, found[0])


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """Bad input; or a good file that a disk or a share does not give just now: readers cannot tell it from a bad one."""
    if explain(error.__cause__) is not None and isinstance(error.__cause__, Exception):
        return await _storage(request, error.__cause__)
    return JSONResponse({"detail": str(error)}, 400)


async def _http(request: Request, error: Any) -> Any:
    """FastAPI says that a body cannot be parsed where the disk for uploads is full."""
    if isinstance(error.__cause__, OSError) and explain(error.__cause__) is not None:
        return await _storage(request, error.__cause__)
    return await http_exception_handler(request, error)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"detail": f"internal error ({type(error).__name__}); the server's log has the details"}, 500)
