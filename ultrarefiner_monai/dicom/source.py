"""What objects made from a series have to know of it: the headers of its instances, frame by frame, without pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Two frames closer than this lie in the same place: cines of a probe that stands still; mm.
_APART_MM = 1e-3


@dataclass(frozen=True)
class SourceFrame:
    """One frame: the header of its instance, and its number there counted from 1 (0: the instance is a single frame)."""

    header: Any
    number: int

    @property
    def key(self) -> tuple[str, int]:
        """(SOPInstanceUID, number); a single frame counts as number 1."""
        return str(self.header.SOPInstanceUID), max(self.number, 1)


@dataclass(frozen=True)
class Source:
    """The instances that make one image, in the order of its frames. headers: one pydicom Dataset each."""

    headers: tuple[Any, ...]

    @cached_property
    def frames(self) -> tuple[SourceFrame, ...]:
        found = []
        for header in self.headers:
            count = int(header.get("NumberOfFrames", None) or 1)
            found += [SourceFrame(header, k if count > 1 else 0) for k in range(1, count + 1)]
        return tuple(found)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return len(self.frames), int(self.headers[0].Rows), int(self.headers[0].Columns)

    @cached_property
    def spacings_mm(self) -> tuple[tuple[float, float] | None, ...]:
        """(row, column) distance of pixel centres of each frame, None where its file does not say."""
        from ultrarefiner_monai.dicom.reader import pixel_spacing_mm

        known = {id(header): pixel_spacing_mm(header, []) for header in self.headers}
        return tuple(known[id(frame.header)] for frame in self.frames)

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """The one that all frames have, else None."""
        return self.spacings_mm[0] if len(set(self.spacings_mm)) == 1 else None

    @cached_property
    def positions(self) -> list[tuple[list[float], list[float]]] | None:
        """(position, orientation) of each frame in the patient, mm; None where one lacks it or two share a place.

        Ultrasound hardly ever has them.
        """
        found = []
        for frame in self.frames:
            position, orientation = (_numbers(frame, k) for k in ("ImagePositionPatient", "ImageOrientationPatient"))
            if "FrameOfReferenceUID" not in frame.header or len(position) != 3 or len(orientation) != 6:
                return None
            found.append((position, orientation))
        places = np.array([position for position, _ in found])
        steps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places)) * _APART_MM
        turned = any(orientation != found[0][1] for _, orientation in found)
        return None if turned or (steps < _APART_MM).any() else found


def _numbers(frame: SourceFrame, keyword: str) -> list[float]:
    value = frame.header.get(keyword, None) if frame.number == 0 else None
    return [] if value is None or isinstance(value, (str, float, int)) else [float(v) for v in value]


def read_source(files: Sequence[Path]) -> Source:
    """The headers of DICOM ``files``, in the order of the image's frames.

    Raises InputError for files that are no DICOM images, and for sizes or series that differ.
    """
    if not files:
        raise InputError("expected at least one DICOM file")
    headers = []
    for path in files:
        try:
            header = open_dicom(Path(path), header_only=True)
        except InputError:
            raise
        except Exception as error:  # pydicom raises anything from struct.error to its own classes
            raise InputError(f"{Path(path).name} cannot be read as DICOM ({type(error).__name__}: {error})") from error
        missing = [k for k in (*_UIDS, "Rows", "Columns") if not header.get(k)]
        if missing:
            raise InputError(
                f"{Path(path).name} is no DICOM image that can be referenced: it lacks {', '.join(missing)}"
            )
        header.filename = str(path)
        headers.append(header)
    for keyword in ("SeriesInstanceUID", "Rows", "Columns"):
        values = sorted({str(h[keyword].value) for h in headers})
        if len(values) > 1:
            raise InputError(f"the files differ in {keyword} ({', '.join(values)}): expected instances of one image")
    return Source(tuple(headers))
