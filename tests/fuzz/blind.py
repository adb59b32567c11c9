"""Damage that asks nothing of a file: bits, cuts, insertions, numbers anywhere."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from functools import cache

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[Rng, bytes], bytes]

NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    8,
    16,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    10**18,
    2**63 - 1,
    -1,
    -2,
    -(2**31),
)


def flip(rng: Rng, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        if out:
            out[rng.integers(len(out))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def flip_header(rng: Rng, content: bytes) -> bytes:
    return flip(rng, content[:600]) + content[600:]


def cut(rng: Rng, content: bytes) -> bytes:
    return content[: place(rng, content)]


def insert(rng: Rng, content: bytes) -> bytes:
    at = place(rng, content)
    return content[:at] + rng.bytes(int(rng.choice([1, 2, 16, 4096]))) + content[at:]


def remove(rng: Rng, content: bytes) -> bytes:
    at = place(rng, content)
    return content[:at] + content[at + int(rng.integers(1, 64)) :]


def repeat(rng: Rng, content: bytes) -> bytes:
    at = place(rng, content)
    piece = content[at : at + int(rng.integers(1, 512))]
    return content[:at] + piece * int(rng.integers(2, 40)) + content[at:]


def blank(rng: Rng, content: bytes) -> bytes:
    at, size = place(rng, content), int(rng.integers(1, 64))
    return content[:at] + bytes([int(rng.choice([0, 255, 32]))]) * len(content[at : at + size]) + content[at + size :]


def number(rng: Rng, content: bytes, end: int = 600) -> bytes:
    """A binary number of the first bytes, of any size and order."""
    kind = str(rng.choice(["b", "h", "i", "q", "f", "d"]))
    order, size = str(rng.choice(["<", ">"])), struct.calcsize(kind)
    at = int(rng.integers(max(1, min(len(content), end))))
    return content[:at] + packed(rng, order, kind) + content[at + size :]


BLIND: tuple[Mutation, ...] = (flip, flip_header, cut, insert, remove, repeat, blank, number)


# --- what all changes share -------------------------------------------------------------------------------------------


def place(rng: Rng, content: bytes) -> int:
    """Anywhere, more often near the begin, where headers are."""
    end = len(content) if rng.random() < 0.5 else min(len(content), 600)
    return int(rng.integers(end + 1))


def packed(rng: Rng, order: str, kind: str) -> bytes:
    if kind in "fd":
        value = float(rng.choice([0, -1, 1, 1e18, -1e30, 1e-40, np.nan, np.inf, -np.inf, 3e38, 2**31, 0.5]))
        return struct.pack(order + kind, value)
    size = struct.calcsize(kind)
    value = NUMBERS[int(rng.integers(len(NUMBERS)))] % (1 << (8 * size))
    return value.to_bytes(size, "little" if order == "<" else "big")


@cache
def bomb() -> bytes:
    """What unpacks to a thousand times its size."""
    return gzip.compress(b"\0" * 50_000_000, 1, mtime=0)
