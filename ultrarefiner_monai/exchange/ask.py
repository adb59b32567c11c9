"""Asks a running server to store a label in its PACS."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ultrarefiner_monai.core.types import InputError

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
    request = urllib.request.Request(address, method="POST", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise InputError(f"{server} refuses: {_detail(error.read(4096)) or error.reason} ({error.code})") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{server} cannot be asked ({getattr(error, 'reason', error)}); is the server running?"
        ) from error


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
