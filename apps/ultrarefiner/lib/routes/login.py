"""MONAI Label's login routes: with the token of ``access`` as the password, or with Keycloak where that is
configured."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

import anyio
import jwt
import requests
from fastapi import Depends, Form, HTTPException, Request
from fastapi.security import OAuth2PasswordRequestForm
from monailabel.config import settings
from monailabel.endpoints import login as stock_login
from monailabel.endpoints.user import auth as stock_auth

from lib.routes.access import WORDS, is_local, is_token, visitor
from lib.routes.parameters import TEXT
from lib.routes.routing import Route
from ultrarefiner_monai.core.types import InputError

# Signed with a private key: a public one is no secret.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]


def token_routes(token: str) -> list[Route]:
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
        if not is_token(password.strip(), token):
            raise HTTPException(401, f"this is not the token: {WORDS}")
        coded = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
        return {"access_token": f"{token}.{coded}" if coded else token, "token_type": "bearer"}

    async def valid() -> dict[str, Any]:
        return {"username": visitor.get(), "email": None, "name": visitor.get(), "roles": []}

    return [("GET", "/auth/", asked_for), ("POST", "/auth/token", log_in), ("GET", "/auth/token/valid", valid)]


def keycloak_routes() -> list[Route]:
    """The login with Keycloak, in a thread: MONAI Label's own keeps all others waiting, and answers 500 to a wrong
    password."""

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
    """The user of a Keycloak token. It replaces MONAI Label's function, which names no algorithms: PyJWT 2 then
    refuses all.

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
