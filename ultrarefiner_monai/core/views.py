"""How the probe was held: names of views as people, tables and scanners write them, and the one name that each has here."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Other spellings -> the name; what is not here is its own name.
_ALSO = {
    "antiradial": "anti-radial",
    "antirad": "anti-radial",
    "arad": "anti-radial",
    "ar": "anti-radial",
    "rad": "radial",
    "trans": "transverse",
    "trv": "transverse",
    "axial": "transverse",
    "long": "longitudinal",
    "lon": "longitudinal",
    "sagittal": "longitudinal",
    "sag": "longitudinal",
}
# SNOMED CT codes that DICOM's context groups name for planes (PS3.16); SRT is their older name.
_CODES = {"62824007": "transverse", "38717003": "longitudinal", "30730003": "longitudinal"}
_LONGEST = 40
KNOWN = frozenset({"radial", *_ALSO.values()})


def canonical_view(text: str) -> str:
    """``Anti Radial``, ``ANTIRADIAL`` and ``arad`` -> ``anti-radial``; the empty text stays empty."""
    name = re.sub(r"[^0-9a-z]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-")
    name = re.sub(r"(-(view|plane|section|projection|scan))+$", "", name)
    return _ALSO.get(name.replace("-", ""), name)


def coded_view(entries: Iterable[tuple[str, str]]) -> str:
    """The view that coded entries of DICOM (code, meaning) mean: the first one whose code or words are a view that is known here;
    else the first one's words, which a site may have trained with."""
    said = [(_CODES.get(code.strip(), ""), canonical_view(meaning)) for code, meaning in entries]
    known = [code or name for code, name in said if code or name in KNOWN]
    return next(iter([*known, *(name for _, name in said if name)]), "")
