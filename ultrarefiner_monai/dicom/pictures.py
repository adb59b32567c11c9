"""Which objects of a series are pictures, and the messages for a series that is not one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ultrarefiner_monai.dicom.file import not_an_image, open_dicom

_NAMED = 5
_KIND_TAGS = ["Rows", "Columns", "SOPClassUID", "Modality"]


def pictures_of(files: Sequence[Path]) -> tuple[dict[Path, tuple[int, int]], Counter[str]]:
    """(file -> rows and columns of those that are pictures, names of what the others are)."""
    pictures, others = {}, Counter[str]()
    for path in files:
        header = open_dicom(path, header_only=True, tags=_KIND_TAGS)
        size = (header.get("Rows", None) or 0, header.get("Columns", None) or 0)
        if min(size) > 0 and not_an_image(header) is None:
            pictures[path] = size
        else:
            uid = header.get("SOPClassUID", None)
            others[str(getattr(uid, "name", "") or "unknown object")] += 1
    return pictures, others


def split_message(series_uid: str, sops: tuple[str, ...]) -> str:
    """What to answer when a series of several sizes is asked for as one image."""
    named = ", ".join(sops[:_NAMED]) + (", ..." if len(sops) > _NAMED else "")
    return (
        f"series {series_uid} holds pictures of several sizes, so each is an image by itself: ask for one of its "
        f"{len(sops)} instances ({named})"
    )


def no_picture_message(series_uid: str, others: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(_NAMED))
    return f"series {series_uid} holds no picture, only {kinds}: there is nothing to outline"
