"""Series and instances as a DICOMweb store lists them; its DICOM JSON is checked, not trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ultrarefiner_monai.core.types import InputError

# Numbers with zeros in front are against the standard, and old machines write them.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


@dataclass(frozen=True)
class SeriesInfo:
    """A series as the store lists it; empty texts and 0 where it does not say. No name of a patient."""

    uid: str
    study_uid: str
    modality: str = ""
    instances: int = 0
    description: str = ""
    date: str = ""
    time: str = ""
    number: int = 0

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> SeriesInfo:
        """From a row of a search; InputError for one without usable UIDs."""
        return cls(
            uid=check_uid(text(item, "0020000E"), "SeriesInstanceUID"),
            study_uid=check_uid(text(item, "0020000D"), "StudyInstanceUID"),
            modality=text(item, "00080060"),
            instances=number(item, "00201209"),
            description=text(item, "0008103E"),
            date=text(item, "00080020"),
            time=text(item, "00080030"),
            number=number(item, "00200011"),
        )


@dataclass(frozen=True)
class InstanceInfo:
    """An instance as the store lists it; rows and columns are 0 where it has no pixels or does not say."""

    uid: str
    sop_class: str = ""
    number: int = 0
    rows: int = 0
    columns: int = 0
    frames: int = 1

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> InstanceInfo:
        """From a row of a search; InputError for one without a usable UID."""
        return cls(
            uid=check_uid(text(item, "00080018"), "SOPInstanceUID"),
            sop_class=text(item, "00080016"),
            number=number(item, "00200013"),
            rows=number(item, "00280010"),
            columns=number(item, "00280011"),
            frames=number(item, "00280008") or 1,
        )


def check_uid(value: Any, what: str = "UID") -> str:
    """``value`` when it is a DICOM UID: UIDs become file names and parts of addresses. InputError for anything else."""
    if not isinstance(value, str) or len(value) > 64 or not _UID.fullmatch(value):
        raise InputError(f"{what} must be a DICOM UID (numbers and dots), got {value!r:.80}")
    return value


def values(item: Any, tag: str) -> list[Any]:
    """The values of an attribute, none where there is none."""
    entry = item.get(tag) if isinstance(item, dict) else None
    found = entry.get("Value") if isinstance(entry, dict) else None
    return found if isinstance(found, list) else []


def text(item: Any, tag: str) -> str:
    """The attribute's first value as text, "" where it is none."""
    first = next(iter(values(item, tag)), None)
    return first.strip() if isinstance(first, str) else ""


def person(item: Any, tag: str) -> str:
    """The attribute's first name, as it is written in letters; "" where it is none."""
    first = next(iter(values(item, tag)), None)
    name = first.get("Alphabetic") if isinstance(first, dict) else None
    return name.strip() if isinstance(name, str) else ""


def number(item: Any, tag: str) -> int:
    """The attribute's first value as a whole number, 0 where it is none."""
    try:
        return int(next(iter(values(item, tag)), None) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0
