"""How errors are answered: in words without paths of the server. The status says whose fault it is."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

import requests
from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.exceptions import HTTPException as StarletteHTTPException

from lib.routes.saving import saved_by
from ultrarefiner_monai.core.messages import public, public_values
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.failures import explain

logger = logging.getLogger(__name__)


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
    """An HTTPException, as it was raised. But where the disk for uploads is full, FastAPI says that the body cannot be
    parsed: then the disk is answered."""
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
    """Bad input. Where the cause is an error of a disk, that is answered instead: the file itself may be good."""
    cause = error.__cause__
    # Decoders have errors with the system's numbers too (PyAV): those tell of the file, not of a disk.
    if isinstance(cause, OSError) and type(cause).__module__ == "builtins" and explain(cause) is not None:
        return await _storage(request, cause)
    return await _answer(400)(request, error)


async def _away(request: Request, error: Exception) -> JSONResponse:
    """The login server, which this server asks, does not answer. (A PACS has errors of its own.)"""
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": f"the login server does not answer ({type(error).__name__}): try again"}, 503)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"detail": f"internal error ({type(error).__name__}); the server's log has the details"}, 500)
