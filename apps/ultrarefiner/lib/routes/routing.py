"""What the app's routes share.

The login's roles, as defaults of a route's parameter. JSON from form fields. Uploaded files, stored for a while. And
the place of our routes: before MONAI Label's own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, File, HTTPException, UploadFile
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib.routes.access import visitor
from lib.routes.parameters import check_whole
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.names import check_name, split_name
from ultrarefiner_monai.studies.work_folder import WorkFolder

Route = tuple[str, str, Callable[..., Any]]  # method, path below MONAI Label's prefix, endpoint
OneFile = Annotated[UploadFile, File()]
MaybeFile = Annotated[UploadFile | None, File()]
JsonBody = Annotated[dict | None, Body()]

# What is kept with a label or an image stays in the index and in memory for good; a thousand points take 40 kB.
_PARAMS_CHARS = 256 << 10

user_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
admin_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
annotator_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


def put_first(server: FastAPI, routes: Sequence[Route]) -> None:
    """Let (method, path, endpoint) answer before the routes that are there; paths are below MONAI Label's prefix."""
    before = len(server.router.routes)
    for method, path, endpoint in routes:
        prefix = "" if path in ("/", "/docs", "/reload") else settings.MONAI_LABEL_API_STR
        told = not getattr(endpoint, "refuses", False)  # one that only says that there is nothing here
        server.add_api_route(prefix + path, endpoint, methods=[method], include_in_schema=told, response_model=None)
    added = server.router.routes[before:]
    server.router.routes[:] = [*added, *server.router.routes[:before]]


def describe(server: FastAPI) -> None:
    """Let /openapi.json show the routes that answer. Of two routes with one address FastAPI shows the last, which
    never answers."""

    def openapi() -> dict[str, Any]:
        if server.openapi_schema is None:
            routes = server.routes[::-1]
            schema = get_openapi(
                title=server.title, version=server.version, openapi_version=server.openapi_version, routes=routes
            )
            for route in routes:
                if isinstance(route, APIRoute) and not route.include_in_schema:
                    for method in route.methods or ():
                        schema["paths"].get(route.path_format, {}).pop(method.lower(), None)
            schema["paths"] = {path: operations for path, operations in schema["paths"].items() if operations}
            server.openapi_schema = schema
        return server.openapi_schema

    server.openapi_schema = None
    server.openapi = openapi  # type: ignore[method-assign]


def check_known(name: str, names: Collection[str], what: str) -> None:
    """404 for a ``name`` that is none of ``names``, and what these are."""
    if name not in names:
        raise HTTPException(404, f"there is no {what} {name!r:.80}; known: {', '.join(names) or 'none'}")


def params_of(text: str, what: str = "params") -> dict[str, Any]:
    """A JSON object from a form field, of at most 256 kB; InputError for anything else."""
    if len(text) > _PARAMS_CHARS:
        raise InputError(f"{what} must be at most {_PARAMS_CHARS >> 10} kB of text, got {len(text) >> 10} kB")
    try:
        value = json.loads(text) if text and text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object {{...}}, got {type(value).__name__}")
    check_whole(value, what)
    return value


def author(user: User) -> dict[str, str]:
    """The author of a label: the user of the login, or the name that came with the token. Nobody without both: MONAI
    Label then calls everybody admin."""
    name = user.username if settings.MONAI_LABEL_AUTH_ENABLE else visitor.get()
    return {"user": name} if name else {}


def name_of(user: User) -> str:
    """The author's name, empty where there is none."""
    return author(user).get("user", "")


def basename(upload: UploadFile) -> str:
    """Clients send whole paths, of any system: only the last part counts."""
    return (upload.filename or "").replace("\\", "/").rsplit("/", 1)[-1]


@contextmanager
def stored_upload(
    work: WorkFolder, upload: UploadFile, extensions: tuple[str, ...], default: str = ""
) -> Iterator[Path]:
    """The upload as a file with a safe name in the work folder, removed afterwards; InputError for other extensions."""
    name = basename(upload)
    parts = split_name(name, extensions) or (("label", default) if default and "." not in name else None)
    if parts is None:
        raise InputError(f"expected a file ending in {', '.join(extensions)}, got {name!r:.120}")
    work.make(work.tmp)
    with tempfile.TemporaryDirectory(dir=work.tmp) as folder:
        try:
            path = Path(folder, check_name(parts[0] + parts[1].lower(), "file name"))
        except InputError:
            path = Path(folder, f"image{parts[1].lower()}")
        with path.open("wb") as target:
            shutil.copyfileobj(upload.file, target)
        yield path
