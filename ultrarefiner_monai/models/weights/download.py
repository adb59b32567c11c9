"""One resumable download over HTTP: Range requests into a ``.part`` file, taken up again where a connection broke.

Why not pooch: it begins a broken download again from the start, which over a hospital's line may never end for 2.5 GB. A
resuming downloader plugged into it would be this module, and pins, licences and progress (``pretrained``) ours as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError as ConnectionTrouble
from urllib3.exceptions import ProtocolError

from ultrarefiner_monai.core.locks import locked
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.core.web import WebSession, reason_of

log = logging.getLogger(__name__)

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT_S = 30.0

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes that lie on disk, total bytes or None where the host does not say)."""


class FetchError(InputError):
    """The network or the remote host failed; what has come so far is kept and the next fetch goes on from there."""


def download(url: str, part: Path, size: int | None = None, progress: Progress | None = None) -> None:
    """Bring ``part`` to its full length; a cut connection is taken up again where it broke.

    size: the expected bytes where they are known. What came is not verified here. Raises FetchError.
    """
    problem: Exception | None = None
    idle = 0
    for attempt in range(ATTEMPTS):
        before = _length(part)
        try:
            if _stream(url, part, size, progress):
                return
            problem = ConnectionError("the connection ended early")
        except requests.HTTPError as error:
            status, words = error.response.status_code, error.response.reason
            if status == 416 and before:  # what lies here is as long as the file, or longer: begin again
                discard(part)
            elif status < 500:
                raise FetchError(f"{url} answered {status} {words}: try again later") from error
            problem = error
        except requests.TooManyRedirects as error:
            raise FetchError(f"{url} cannot be fetched: its host redirects in a circle; try again later") from error
        except ProtocolError:
            problem = ConnectionError("the connection ended early")
        except (OSError, ConnectionTrouble) as error:  # OSError: those of requests, too
            problem = error
        log.info("%s: try %d of %d: %s", part.name, attempt + 1, ATTEMPTS, problem)
        idle = 0 if _length(part) > before else idle + 1
        if idle == 2:  # nothing came twice in a row: no use in hammering
            break
    assert problem is not None
    raise FetchError(
        f"cannot fetch {url}: {reason_of(problem)}. Is this machine offline, or behind a proxy (set https_proxy)? "
        "What has come so far is kept: try again later"
    ) from problem


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _stream(url: str, part: Path, size: int | None, progress: Progress | None) -> bool:
    """One connection. True when the file is complete by its Content-Length (or the known size)."""
    have = _length(part)
    if size is not None and have > size:
        discard(part)
        have = 0
    if size is not None and have == size:
        return True
    tag_path = _tag_path(part)
    headers = {"User-Agent": "ultrarefiner", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag_path.exists():  # if the host has another version by now it sends the whole, not the rest of a mixture
            headers["If-Range"] = tag_path.read_text(encoding="utf-8")
    with (
        WebSession(proxies=True) as session,
        session.get(url, headers=headers, timeout=TIMEOUT_S, stream=True) as response,
    ):
        if response.status_code not in (200, 206):  # redirects were followed: one that leads nowhere is no file either
            raise requests.HTTPError(f"HTTP Error {response.status_code}: {response.reason}", response=response)
        # Where a connection breaks, what came before is written, too: the length is checked below.
        response.raw.enforce_content_length = False
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        tag = response.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):
            tag_path.write_text(tag, encoding="utf-8")
        else:
            tag_path.unlink(missing_ok=True)
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else size
        with part.open("ab" if have else "wb") as stream:
            # As it is sent: a host that packs it although not asked to would break the lengths and the next Range.
            for block in response.raw.stream(CHUNK, decode_content=False):
                stream.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)
    return total is None or have == total


@contextmanager
def only_one(part: Path) -> Iterator[None]:
    """Refuse a second fetch of the same file while one runs (a lock that dies with its process)."""
    busy = f"another process is fetching {part.stem}: wait for it, or stop it"
    with locked(part.with_name(part.name + ".lock"), busy, FetchError):
        yield


def discard(part: Path) -> None:
    """Remove the part file and what is remembered about it."""
    for path in (part, _tag_path(part)):
        path.unlink(missing_ok=True)


def _tag_path(part: Path) -> Path:
    return part.with_name(part.name + ".tag")
