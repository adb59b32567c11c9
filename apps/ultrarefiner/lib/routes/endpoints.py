"""Which routes stand before MONAI Label's own.

MONAI Label runs inference in its event loop and answers bad input with 500. All its other routes stay as they are,
behind ``lib.routes.doors``. docs/it/security.md lists every route.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from monailabel.endpoints.user.auth import User

from lib.app import App
from lib.routes import views
from lib.routes.dicomweb import DicomWebRoutes
from lib.routes.errors import error_handlers
from lib.routes.infer import InferRoutes
from lib.routes.metrics import Metrics
from lib.routes.ohif import OhifRoutes
from lib.routes.page import front_page
from lib.routes.routing import Route, put_first, user_role
from lib.routes.status import StatusRoutes
from lib.routes.store import StoreRoutes
from lib.routes.tasks import TaskRoutes
from lib.routes.viewer import ViewerRoutes
from lib.routes.worklist import WorklistRoutes
from ultrarefiner_monai.core.messages import hide, public_values


def install(server: FastAPI, app: App) -> None:
    """Put the app's routes before MONAI Label's, and let errors be answered in words without paths."""
    server.state.metrics = Metrics(app)
    put_first(server, [*_routes(app), *server.state.metrics.routes()])
    hide(app.app_dir, app.work.root, tempfile.gettempdir(), Path.home(), *([] if app.pacs else [app.studies]))
    server.exception_handlers.update(error_handlers())


def _routes(app: App) -> list[Route]:
    dicomweb = None if app.pacs else DicomWebRoutes(app)
    instances = None if dicomweb is None else dicomweb.instances
    store = StoreRoutes(app)
    viewer = ViewerRoutes(app, instances, store.next_sample)
    return [
        ("GET", "/", _front(app)),
        *viewer.routes(),
        *OhifRoutes(app.config.ohif).routes(),
        *WorklistRoutes(app, instances, store.next_sample, viewer.place_of).routes(),
        *views.routes(app),
        *InferRoutes(app).routes(),
        *TaskRoutes(app).routes(),
        *store.routes(),
        *StatusRoutes(app).routes(),
        *([] if dicomweb is None else dicomweb.routes()),
        *_refusals(app.studies),
    ]


def _front(app: App) -> Callable[..., Any]:
    async def _front(request: Request, user: User = user_role) -> HTMLResponse:
        return HTMLResponse(front_page(public_values(app.info()), str(request.base_url).rstrip("/")))

    return _front


def _refusals(studies: str) -> list[Route]:
    """Routes of MONAI Label that mean nothing here, or that would change the server: they say so."""
    docs = _refuse(404, "that page needs scripts of other servers: /openapi.json has all it says")
    no_pathology = _refuse(404, "there are no pathology models here")
    no_scoring = _refuse(404, "there are no scoring methods")
    no_store = _refuse(404, "the studies are a folder: they can be read over DICOMweb, not stored into")
    is_folder = not studies.startswith(("http://", "https://"))
    return [
        *((method, "/docs", docs) for method in ("GET", "HEAD")),
        ("POST", "/infer/wsi/{model}", no_pathology),
        ("POST", "/infer/wsi_v2/{model}", no_pathology),
        ("POST", "/scoring/{method}", no_scoring),
        *((method, "/scoring/", no_scoring) for method in ("GET", "POST", "DELETE")),
        ("GET", "/model/{model}", _refuse(404, "models are not handed out: `ultrarefiner models list` shows them")),
        ("GET", "/model/info/{model}", _refuse(404, "/info/ says which model answers")),
        ("PUT", "/model/{model}", _refuse(403, "models are chosen with `ultrarefiner models promote`, not uploaded")),
        ("DELETE", "/model/{model}", _refuse(403, "models are chosen with `ultrarefiner models promote`, not removed")),
        ("POST", "/reload", _refuse(403, "restart the server instead")),
        *([("POST", "/proxy/dicom/{path:path}", no_store)] if is_folder else []),
    ]


def _refuse(status: int, message: str) -> Callable[[], Any]:
    """A route that says why there is nothing here."""

    async def route() -> None:
        raise HTTPException(status, message)

    route.refuses = True  # type: ignore[attr-defined]
    return route
