"""The file of a quick model: ``models/quick-N.safetensors`` holds tuned tensors by their names in a checkpoint, and in its
metadata under ``base`` the version of the champion that they belong to."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.pointer import Pointer

_NAME = re.compile(r"quick-([1-9]\d{0,8})")


def number_of(name: str) -> int:
    """N of quick-N; 0 for what is no quick model's name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0


def quick_base(path: Path) -> str:
    """The version of the champion that a quick model was tuned on, "" where its file does not say. InputError for a file
    that is gone or cannot be read."""
    if not path.is_file():
        raise InputError(f"there is no quick model {path.stem}")
    try:
        with safe_open(str(path), framework="pt") as file:
            return str((file.metadata() or {}).get("base", ""))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name} is damaged: {error}") from error


def remove_others(folder: Path, pointer: Pointer) -> None:
    """Remove quick models that the pointer does not name; newer ones, which are written just now, stay."""
    for path in folder.glob("quick-*.safetensors"):
        if path.stem != pointer.quick and 0 < number_of(path.stem) <= pointer.quicks:
            path.unlink(missing_ok=True)
