"""The parameters of each route: their names and the types of their values. Others are refused, with the known ones
named.

Nothing that a client sends becomes an environment variable, a module, a folder or a device: the server decides these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.names import is_broken, is_name

_LONGEST = 200
# What would break a line of a log, or no file can hold.
_ODD = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029\ud800-\udfff]")
_MOST_IMAGES = 100_000


@dataclass(frozen=True)
class Kind:
    """A type of values: ``fits(value)``, and its name in a refusal ("must be ...")."""

    fits: Callable[[Any], bool]
    words: str


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and not _ODD.search(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


ID = Kind(lambda v: isinstance(v, str) and 0 < len(v) <= 512, "the id of an image")
TEXT = Kind(_is_text, f"a text of at most {_LONGEST} characters in one line")
FLAG = Kind(lambda v: isinstance(v, bool), "true or false")
COUNT = Kind(lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 31, "a whole number from 0")
NAME = Kind(is_name, "a plain name without path parts")
# What the task itself looks into (``lib.tasks.clicks``).
POINTS = Kind(lambda v: isinstance(v, list) or v == "", "a list")
FRAME = Kind(lambda v: _is_number(v) or isinstance(v, str), "a whole number, or all")
INFO = Kind(lambda v: isinstance(v, (list, dict)), "a list or an object")
IMAGES = Kind(
    lambda v: (
        v in ("all", "labeled", "unlabeled")
        if isinstance(v, str)
        else isinstance(v, list) and len(v) <= _MOST_IMAGES and all(isinstance(i, str) for i in v)
    ),
    "all, labeled, unlabeled or a list of ids",
)

# 3D Slicer's module, MONAI Label's client and the OHIF of its wheel send these; those without a use here change nothing.
INFER: dict[str, Kind] = {
    "foreground": POINTS,
    "background": POINTS,
    "roi": POINTS,
    "frame": FRAME,
    "view": TEXT,
    "label": TEXT,
    "client_id": TEXT,
    "session_id": TEXT,
    "image": Kind(lambda v: isinstance(v, str), "the id that the address names"),
    "result_extension": TEXT,
    "result_dtype": TEXT,
    "result_compress": FLAG,
    "restore_label_idx": FLAG,
    "largest_cc": FLAG,
    "label_info": INFO,
}
BATCH: dict[str, Kind] = {
    "images": IMAGES,
    "label_tag": NAME,
    "max_batch_size": COUNT,
    "frame": FRAME,
    "result_extension": TEXT,
    "client_id": TEXT,
}
NEXT_SAMPLE: dict[str, Kind] = {"client_id": TEXT, "skip": ID}


def checked(params: Mapping[str, Any] | None, known: Mapping[str, Kind], what: str) -> dict[str, Any]:
    """``params`` without its nulls, when each name is in ``known`` and each value of its kind; else InputError, which
    names the known ones. what: whose parameters, for the message."""
    params = params or {}
    check_names(params, known, what)
    check_whole(params, what)
    for name, value in params.items():
        if value is not None and not known[name].fits(value):
            raise InputError(f"{name} must be {known[name].words}, got {value!r:.80}")
    return {name: value for name, value in params.items() if value is not None}


def check_names(names: Collection[str], known: Collection[str], what: str) -> None:
    """InputError for names that are not known, with those that are."""
    unknown = sorted(repr(str(name))[:60] for name in names if name not in known)
    if unknown:
        raise InputError(f"{what}: there is no parameter {', '.join(unknown[:5])}; known: {', '.join(known) or 'none'}")


def check_whole(value: Any, what: str) -> None:
    """InputError for a text with a lone surrogate, at any depth (``is_broken``)."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str) and is_broken(part):
            raise InputError(f"{what}: a text holds half a character (a lone surrogate)")
        if isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list):
            left += part
