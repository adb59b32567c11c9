"""The doors that every request comes through, one behind the other.

counted   each request, for /metrics
origins   under which name the server may be asked, and by which web pages
access    who may come in
guard     which names and parameters may be sent, and how large an upload may be
saving    nothing is saved while the studies are away
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from monailabel.config import settings
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path

from lib.app import App
from lib.commandline import listens_on
from lib.routes.access import Access, kept_token
from lib.routes.guard import Guard, Query
from lib.routes.login import keycloak_routes, token_routes
from lib.routes.metrics import Counted
from lib.routes.origins import Origins, is_loopback
from lib.routes.routing import describe, put_first
from lib.routes.saving import SavingDoor

logger = logging.getLogger(__name__)

# Addresses whose query is somebody else's: of a viewer's pages, of DICOMweb.
_FREE = ("/ohif/", "/proxy/")
_ASKS_FOR_TOKEN = """
This machine can use the server at once. Others need this TOKEN, as the password with any user name:

    {token}

It stays the same; it is kept in {file}. Another way: a login, or --host 127.0.0.1 behind a proxy that has one, or
--conf open_to_network true for a network in which everybody may see the studies (docs/it/security.md).
"""


def close_doors(server: FastAPI, app: App) -> None:
    """Decide who may come in from where, print it once, and put up the doors."""
    host, login = listens_on(sys.argv)[0], settings.MONAI_LABEL_AUTH_ENABLE
    token = ""
    if not is_loopback(host) and not login:
        if app.config.open_to_network:
            logger.warning(
                "open_to_network: everybody who reaches this machine (%s) can read the studies and save labels", host
            )
        else:
            token = kept_token(app.work.token)
            # Not to the log, which clients can read.
            print(_ASKS_FOR_TOKEN.format(token=token, file=app.work.token), flush=True)
    put_up(server, app, host, token, login)


def put_up(server: FastAPI, app: App, host: str, token: str, login: bool) -> None:
    """Put the doors in front of all routes, once these are there.

    host: what the server listens on; token: what others than this machine have to bring; login: whether MONAI Label's
    own decides instead. Web pages of other origins are only those that are configured: MONAI Label's default is all.
    """
    put_first(server, keycloak_routes() if login else token_routes(token))
    describe(server)
    origins = [str(o).rstrip("/") for o in settings.MONAI_LABEL_CORS_ORIGINS] or list(app.config.cors_origins)
    name = socket.gethostname()
    front = [
        Middleware(Counted, metrics=server.state.metrics),
        Middleware(
            Origins, hosts=[host, *app.config.allowed_hosts], origins=origins, machine=[name, name.partition(".")[0]]
        ),
    ]
    if origins:
        front.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    if not login and not app.config.open_to_network:
        front.append(Middleware(Access, token=token, prefix=settings.MONAI_LABEL_API_STR))
    front.append(Middleware(Guard, limit=app.config.max_upload_mb << 20, queries=tuple(_queries(server))))
    front.append(Middleware(SavingDoor, check=app.datastore().presence.check))
    ours = (Counted, CORSMiddleware, Origins, Access, Guard, SavingDoor)
    server.user_middleware[:] = [*front, *(m for m in server.user_middleware if m.cls not in ours)]
    server.middleware_stack = server.build_middleware_stack()


def _queries(server: FastAPI) -> Iterator[Query]:
    """The query parameters of each route, in the order in which routes are tried."""
    for context in iter_route_contexts(server.routes):
        route = context.original_route
        path = str(context.path)
        free = path == "/" or path.removeprefix(settings.MONAI_LABEL_API_STR).startswith(_FREE)
        if isinstance(route, APIRoute) and not free:
            names = tuple(field.alias for field in route.dependant.query_params)
            yield Query(frozenset(context.methods or ()), compile_path(path)[0], names)
