"""Asks a running server to store a label in its PACS."""

from __future__ import annotations

import os
import urllib.parse
from typing import Any

import requests

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.core.web import WebSession, reason_of

TOKEN_VARIABLE = "ULTRAREFINER_TOKEN"
_SECONDS = 120


def send_label(server: str, image_id: str, tag: str = "final", sr: bool | None = None) -> dict[str, Any]:
    """Let ``server`` put the label ``tag`` of an image into its outbox as a DICOM SEG; its answer, with the SEG's UID.

    sr: with its measurements, or not; None: as the server is configured. A server with a login takes a token from the
    environment (ULTRAREFINER_TOKEN). Raises InputError when the server cannot be reached, or with what it refuses.
    """
    values = {"image": image_id, "tag": tag} | ({} if sr is None else {"sr": str(sr).lower()})
    address = f"{server.rstrip('/')}/ultrarefiner/send?{urllib.parse.urlencode(values)}"
    if not address.startswith(("http://", "https://")):
        raise InputError(f"expected the server's address, http://HOST:PORT, got {server!r:.200}")
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with WebSession(proxies=False) as session:
            # A redirect is refused: nobody asked that other server.
            answer = session.post(address, headers=headers, timeout=_SECONDS, allow_redirects=False)
        if 200 <= answer.status_code < 300:
            return answer.json()
    except (OSError, ValueError) as error:  # of requests, too
        raise InputError(f"{server} cannot be asked ({reason_of(error)}); is the server running?") from error
    raise InputError(f"{server} refuses: {_detail(answer) or answer.reason} ({answer.status_code})")


def _detail(answer: requests.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
