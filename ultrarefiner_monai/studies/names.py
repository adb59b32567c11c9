"""The names that clients may give to images, labels and tags, and the values that may be kept with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ultrarefiner_monai.core.types import InputError

_NAME = re.compile(r"[^/\\\x00-\x1f\ud800-\udfff]{1,200}")  # surrogates: bytes that are no UTF-8
_NAME_BYTES = 220  # of the 255 that file systems take; extensions come on top
_INFO_DEPTH = 16
_HALF = re.compile("[\ud800-\udfff]")


def check_name(value: str, what: str) -> str:
    """``value`` when it is a plain name; InputError for paths, `..`, hidden and empty names: the studies' border."""
    if not is_name(value):
        raise InputError(f"{what} must be a plain name without path parts, got {value!r:.120}")
    return value


def is_name(value: Any) -> bool:
    """Whether it is a plain name that any file system takes."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value.startswith("."):
        return False
    return value == value.strip() and len(value.encode()) <= _NAME_BYTES


def check_info(value: Any, what: str, depth: int = 0) -> None:
    """InputError for what a client sends to be kept in the index and JSON cannot hold: it would spoil every later reply."""
    if depth > _INFO_DEPTH:
        raise InputError(f"{what} is nested more than {_INFO_DEPTH} levels deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{what} holds {value}, which JSON cannot hold")
    if isinstance(value, int) and abs(value) > 1 << 63:
        raise InputError(f"{what} holds a whole number of more than 64 bits")
    if isinstance(value, str) and is_broken(value):
        raise InputError(f"{what} holds half a character (a lone surrogate)")
    for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_info(part, what, depth + 1)


def is_broken(text: str) -> bool:
    """Whether it holds half a character (a lone surrogate), which no file, log or database can hold."""
    return _HALF.search(text) is not None


@lru_cache(16)
def _longest_first(extensions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(extensions, key=len, reverse=True))


def split_name(filename: str, extensions: Iterable[str]) -> tuple[str, str] | None:
    """(stem, extension as written) when the name ends in one of ``extensions``, in any case; the longest one counts."""
    lower = filename.lower()
    for extension in _longest_first(tuple(extensions)):
        if lower.endswith(extension) and len(filename) > len(extension):
            return filename[: -len(extension)], filename[-len(extension) :]
    return None
