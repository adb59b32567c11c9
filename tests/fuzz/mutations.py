"""Damage to files, and malice: a pure function of a sound file and of a number.

Blind changes for all (``blind``), and changes of what the header counts for each kind (``bykind``).
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib

import numpy as np
from blind import BLIND, bomb
from bykind import nrrd_parts, of_kind, png_chunks, png_of


def mutate(name: str, content: bytes, number: int) -> bytes:
    """``content`` of a file called ``name``, changed once or a few times; the same number gives the same bytes.

    The first numbers are what such files are attacked with before anything else.
    """
    first = _first(name, content)
    if number < len(first):
        return first[number]
    rng = np.random.default_rng([number, zlib.crc32(name.encode())])
    known = of_kind(name)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        apart = known if known and rng.random() < 0.65 else BLIND
        content = apart[rng.integers(len(apart))](rng, content)
    return content


def _first(name: str, content: bytes) -> list[bytes]:
    """Nothing at all, a cut in the middle, and counts that no file can hold."""
    found = [b"", content[: len(content) // 2]]
    if name.endswith(".nrrd"):
        head, body = nrrd_parts(content)
        for line in (b"line skip: 1000000000000000000", b"byte skip: 1000000000000000000", b"byte skip: -1"):
            found.append(head[:-1] + line + b"\n\n" + body)
        found.append(re.sub(rb"sizes: .*", b"sizes: 20000 20000 20000", head) + body)
        found.append(re.sub(rb"sizes: .*", b"sizes: 1000000000000000000 1 1", head) + body)
        found.append(head + bomb())
    if name.endswith((".nii", ".nii.gz")):
        inner = gzip.decompress(content) if name.endswith(".gz") else content
        sizes = [
            struct.pack("<4h", 3, *three) for three in ((20000, 20000, 1), (32767, 32767, 32767), (-1, 5, 5), (0, 0, 0))
        ]
        changed = [inner[:40] + size + inner[48:] for size in sizes]
        found += [gzip.compress(c, 1, mtime=0) if name.endswith(".gz") else c for c in changed]
        found.append(content + bomb())
    if name.endswith(".png"):
        (kind, header), *rest = png_chunks(content)
        for side in (20000, 2**31 - 1, 0):
            found.append(png_of([(kind, struct.pack(">II", side, side) + header[8:]), *rest]))
    if name.endswith(".dcm"):
        for tag, value in ((b"\x28\0\x10\0US\2\0", b"\xff\xff"), (b"\x28\0\x11\0US\2\0", b"\xff\xff")):
            found += [
                content.replace(tag + content[at + 8 : at + 10], tag + value) for at in [content.find(tag)] if at > 0
            ]
        at = content.find(b"\x28\0\x08\0IS")
        if at > 0:
            size = struct.unpack("<H", content[at + 6 : at + 8])[0]
            for count in (b"2147483647", b"0", b"-1", b"99999999999"):
                count += b" " * (len(count) % 2)
                found.append(content[: at + 6] + struct.pack("<H", len(count)) + count + content[at + 8 + size :])
    return found
