"""Files that clients download, as they were when they were asked for.

A label is saved again while somebody fetches it, and a cache drops a picture. FastAPI's ``FileResponse`` asks for the size
of a path and opens it later: where the file changes in between, the reply breaks off. Here a file is opened first, and what
was opened is what is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import FileResponse, StreamingResponse
from monailabel.utils.others.generic import get_mime_type

_CHUNK = 1 << 20
_TRIES = 3


def sent(file: BinaryIO, name: str) -> StreamingResponse:
    """An open file as a download called ``name``; it is closed when it has been sent."""
    stat = os.fstat(file.fileno())
    headers = {
        "content-length": str(stat.st_size),
        "last-modified": formatdate(stat.st_mtime, usegmt=True),
        "etag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"',
        "content-disposition": f"attachment; filename*=utf-8''{quote(name)}"
        if quote(name) != name
        else f'attachment; filename="{name}"',
    }
    return StreamingResponse(_chunks(file, stat.st_size), media_type=get_mime_type(name), headers=headers)


def sent_at_once(find: Callable[[], FileResponse]) -> StreamingResponse:
    """What ``find`` names, opened now. ``find`` is asked again where the file is gone already."""
    for _ in range(_TRIES):
        path = Path(find().path)
        with suppress(FileNotFoundError):
            return sent(path.open("rb"), path.name)
    raise HTTPException(503, "the file is being replaced; ask again", headers={"Retry-After": "1"})


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """``size`` bytes, also of a file that grows."""
    with file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            size -= len(chunk)
            yield chunk
