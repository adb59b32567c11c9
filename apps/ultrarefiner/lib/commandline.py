"""The host and the port that `monailabel start_server` was given: MONAI Label does not tell them to its app."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence


def listens_on(arguments: Sequence[str]) -> tuple[str, int]:
    """(host, port) by the process's arguments, as MONAI Label itself reads them; every interface and 8000 by
    default."""
    if "start_server" in arguments:
        from monailabel.main import Main

        with contextlib.suppress(SystemExit):
            found = Main().args_parser().parse_known_args(list(arguments[1:]))[0]
            return str(found.host), int(found.port)
    return "0.0.0.0", 8000
