"""Texts for clients hold no path of the server: a path is cut to its last part, the name of the file.

Messages should be made without paths. This catches the paths that are left.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_PART = r"[^\s'\"<>|:;,()\[\]{}]"
_QUOTED = re.compile(r"(['\"])((?:/|[A-Za-z]:\\)[^'\"\n]+)\1")
_WINDOWS = re.compile(rf"(?<![\w\\])[A-Za-z]:\\{_PART}+")
# Folders that are known, though spaces or commas in their names would end a path for the pattern below.
_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(*folders: str | os.PathLike[str]) -> None:
    """Folders whose names may hold spaces: with them a path is known as a whole."""
    global _pattern
    for folder in folders:
        _known.update({str(Path(folder).absolute()), os.path.realpath(folder)} - {"/"})
    _pattern = None


def public(text: str) -> str:
    """``text`` in which each path of this machine is only its last part."""
    text = _QUOTED.sub(lambda found: found[1] + _shown(found[2]) + found[1], text)
    return _WINDOWS.sub(lambda found: _last(found[0]), _paths().sub(lambda found: _last(found[0]), text))


def public_values(value: Any) -> Any:
    """A JSON value in which no text holds a path of the server."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, dict):
        return {key: public_values(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [public_values(v) for v in value]
    return value


def _paths() -> re.Pattern[str]:
    global _pattern
    if _pattern is None:
        # Only what can be a path here: /datastore/image in a message is an address of ours.
        tops = ["/" + name for name in sorted(os.listdir("/"))] if os.path.isdir("/") else []
        roots = sorted([*_known, *tops], key=len, reverse=True) or ["/"]
        _pattern = re.compile(rf"(?<![\w/.~-])(?:{'|'.join(map(re.escape, roots))})(?![\w-])(?:/{_PART}*)*")
    return _pattern


def _shown(path: str) -> str:
    return _last(path) if _paths().match(path) or _WINDOWS.match(path) else path


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
