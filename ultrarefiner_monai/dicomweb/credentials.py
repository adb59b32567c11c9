"""Credentials for a DICOMweb store: none, a user with a password, or a bearer token."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.auth import AuthBase

from ultrarefiner_monai.config import ConfigError, PacsConfig

USER = "ULTRAREFINER_PACS_USER"
PASSWORD = "ULTRAREFINER_PACS_PASSWORD"
TOKEN = "ULTRAREFINER_PACS_TOKEN"
# What MONAI Label itself knows is understood too.
_STOCK = ("MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD")


@dataclass(frozen=True, repr=False)
class Credentials(AuthBase):
    """Puts itself on each request; its text never shows a secret. A file is read anew each time: tokens expire.

    user, password: basic authentication (UTF-8). token: bearer. password_file, token_file: where they stand instead.
    """

    user: str = ""
    password: str = ""
    token: str = ""
    password_file: Path | None = None
    token_file: Path | None = None

    @classmethod
    def of(cls, config: PacsConfig, environment: Mapping[str, str] = os.environ) -> Credentials:
        """From the configuration and the environment; ConfigError for a file that is not there, or half of a pair."""
        user = config.user or environment.get(USER, "") or environment.get(_STOCK[0], "")
        password = environment.get(PASSWORD, "") or environment.get(_STOCK[1], "")
        token = environment.get(TOKEN, "")
        files = []
        for name in ("password_file", "token_file"):
            value = getattr(config, name)
            path = Path(value).expanduser() if value else None
            if path is not None:
                _first_line(path, f"pacs.{name}")
            files.append(path)
        if config.token_file or (token and not user):
            return cls(token=token, token_file=files[1])
        if files[0] is not None and not user:
            raise ConfigError("pacs.password_file needs pacs.user beside it")
        if user and not (password or files[0]):
            raise ConfigError(
                f"pacs.user is {user!r}, but there is no password: name a file in pacs.password_file, or set {PASSWORD}"
            )
        return cls(user=user, password=password, password_file=files[0])

    def __bool__(self) -> bool:
        return bool(self.user or self.token or self.token_file)

    def __repr__(self) -> str:
        kind = "basic" if self.user else "bearer" if self else "none"
        return f"Credentials({kind})"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.user:
            password = _first_line(self.password_file, "pacs.password_file") if self.password_file else self.password
            # requests would write Latin-1.
            pair = base64.b64encode(f"{self.user}:{password}".encode()).decode()
            request.headers["Authorization"] = f"Basic {pair}"
        elif self:
            token = _first_line(self.token_file, "pacs.token_file") if self.token_file else self.token
            request.headers["Authorization"] = f"Bearer {token}"
        return request


def _first_line(path: Path, option: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: {path} cannot be read ({type(error).__name__})") from error
    if not lines or not lines[0].strip():
        raise ConfigError(f"{option}: {path} is empty; expected the secret in its first line")
    return lines[0].strip()
