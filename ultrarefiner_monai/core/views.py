"""How the probe was held: names of views as people, tables and scanners write them, and the one name that each has here."""

from __future__ import annotations

import re

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


def canonical_view(text: str) -> str:
    """``Anti Radial``, ``ANTIRADIAL`` and ``arad`` -> ``anti-radial``; the empty text stays empty."""
    name = re.sub(r"[^0-9a-z]+", "-", text.strip().lower()).strip("-")[:_LONGEST]
    name = re.sub(r"-(view|plane|section|projection|scan)$", "", name)
    return _ALSO.get(name.replace("-", ""), name)


def coded_view(code: str, meaning: str) -> str:
    """The view that a coded entry of DICOM means: by its code where that is known here, else by its words."""
    return _CODES.get(code.strip()) or canonical_view(meaning)
