"""multipart/related as DICOMweb uses it: taken apart while it arrives (a cine is hundreds of MB), put together to send."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

_HEADERS_BYTES = 64 << 10


class MultipartError(ValueError):
    """The message is not what its headers say, or ends too early."""


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart message; None for any other content type. MultipartError when it is missing."""
    if not content_type.lower().lstrip().startswith("multipart/"):
        return None
    found = re.search(r'boundary=(?:"([^"]+)"|([^\s;,]+))', content_type, re.IGNORECASE)
    if found is None:
        raise MultipartError(f"a multipart answer without a boundary: {content_type!r:.120}")
    return (found[1] or found[2]).encode("latin-1")


def write_parts(blocks: Iterable[bytes], boundary: bytes, files: Iterator[IO[bytes]]) -> int:
    """Write the body of each part into the next of ``files`` as it comes; returns how many there were.

    blocks: the message in pieces of any size. Raises MultipartError where the closing boundary does not come.
    """
    mark = b"\r\n--" + boundary
    source = iter(blocks)
    # The first boundary may stand at the very beginning, without a line end before it.
    buffer, count, at_end = b"\r\n", 0, False

    def more() -> None:
        nonlocal buffer, at_end
        block = next(source, None)
        if block is None:
            at_end = True
            raise MultipartError("the answer ends in the middle")
        buffer += block

    while mark not in buffer:  # what stands before the first boundary is no part
        buffer = buffer[-len(mark) :] if len(buffer) > _HEADERS_BYTES else buffer
        more()
    buffer = buffer.split(mark, 1)[1]
    while True:
        while len(buffer) < 2:
            more()
        if buffer.startswith(b"--"):
            return count
        while b"\r\n\r\n" not in buffer:
            if len(buffer) > _HEADERS_BYTES:
                raise MultipartError("the headers of a part do not end")
            more()
        buffer = buffer.split(b"\r\n\r\n", 1)[1]
        file = next(files)
        while (end := buffer.find(mark)) < 0:
            keep = len(mark) - 1  # a boundary may lie across two blocks
            if len(buffer) > keep:
                file.write(buffer[:-keep])
                buffer = buffer[-keep:]
            more()
        file.write(buffer[:end])
        buffer = buffer[end + len(mark) :]
        count += 1


def related(parts: Sequence[bytes], media_type: str) -> tuple[bytes, str]:
    """(body, content type) of a multipart/related message of ``parts``."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return body, f'multipart/related; type="{media_type}"; boundary={boundary}'
