"""The images of a studies folder by the UIDs under which DICOMweb knows them.

DICOM files keep theirs; all other images get a study, a series and an instance of their own, whose UIDs stay the same as long as the
studies folder is the same. Nothing is decoded for a list.
"""

from __future__ import annotations

import fnmatch
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cachetools import LRUCache
from monailabel.interfaces.exception import ImageNotFoundException

from lib.store.datastore import StudiesFolder
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import MULTI_FRAME, SINGLE_FRAME, has_mark, open_dicom
from ultrarefiner_monai.dicom.header import element
from ultrarefiner_monai.dicomweb.wrapped import derived_uid, uids_of
from ultrarefiner_monai.studies.client_frames import is_moving

logger = logging.getLogger(__name__)

_MOST_ROWS = 20_000
_TAGS = [
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientName", "PatientID", "PatientBirthDate",
    "PatientSex", "StudyDate", "StudyTime", "StudyDescription", "SeriesDescription", "AccessionNumber", "Modality",
    "Rows", "Columns", "NumberOfFrames", "InstanceNumber", "SeriesNumber",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One image as DICOMweb lists it. values: keyword -> text. own: whether the UIDs are the DICOM file's."""

    image_id: str
    study: str
    series: str
    instance: str
    values: Mapping[str, str]
    own: bool

    def matches(self, asked: Mapping[str, str]) -> bool:
        """asked: keyword -> what a query says: exact, with * and ?, a list with commas (UIDs), or a range of dates."""
        return all(_fits(self.values.get(name, ""), wanted, name) for name, wanted in asked.items())


class Instances:
    """The rows of a folder, made from its index and, of DICOM files, from their headers; thread-safe."""

    def __init__(self, store: StudiesFolder):
        self.store = store
        self._headers: LRUCache[tuple, dict[str, str]] = LRUCache(_MOST_ROWS)
        self._images: dict[str, str] = {}  # instance -> image id, as they were listed last
        self._lock = threading.Lock()

    def rows(self) -> list[Row]:
        """One row an image, by id; without those that went away meanwhile."""
        found: list[Row] = []
        taken: set[str] = set()
        for image_id in sorted(self.store.list_images()):
            try:
                row = self._row(image_id, taken)
            except (OSError, InputError, ImageNotFoundException) as error:
                logger.debug("%s is not listed: %s", image_id, error)
                continue
            taken.add(row.instance)
            found.append(row)
        with self._lock:
            self._images = {row.instance: row.image_id for row in found}
        return found

    def row(self, image_id: str) -> Row:
        """The row of one image. Raises ImageNotFoundException."""
        with suppress(OSError, InputError, ImageNotFoundException):
            row = self._row(image_id, set())
            with self._lock:
                first = self._images.get(row.instance, image_id)
            if first == image_id:  # else another file has the same UID, and this one got another
                return row
        found = next((row for row in self.rows() if row.image_id == image_id), None)
        if found is None:
            raise ImageNotFoundException(f"{image_id!r:.120} is not in the studies any more")
        return found

    def find(self, study: str, series: str = "", instance: str = "") -> list[Row]:
        """The rows of a study, of one of its series, or one image."""
        wanted = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance}
        asked = {k: v for k, v in wanted.items() if v}
        # A frame or a thumbnail: its own file tells whether the image is still the one that was listed under this UID.
        with self._lock:
            image_id = self._images.get(instance)
        if image_id is not None:
            with suppress(OSError, InputError, ImageNotFoundException):
                row = self._row(image_id, set())
                if row.matches(asked):
                    return [row]
        return [row for row in self.rows() if row.matches(asked)]

    def _row(self, image_id: str, taken: set[str]) -> Row:
        path = self.store.image_path(image_id)
        stat = path.stat()
        owner, state = self.store.presence.text, f"{stat.st_size:x}-{stat.st_mtime_ns:x}"
        values = self._header(path, (str(path), stat.st_size, stat.st_mtime_ns))
        own = bool(values)
        if own:
            study, series, instance = (values[k] for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
            if instance in taken:  # another picture under the same UID: some exports do that
                instance, own = derived_uid(owner, image_id, "instance", state), False
        else:
            study, series, instance = uids_of(owner, image_id, state)
            values = {
                "PatientName": image_id[:64], "PatientID": image_id[:64], "StudyDescription": path.name[:64], "Modality": "US",
                "SOPClassUID": MULTI_FRAME if is_moving(path) else SINGLE_FRAME,
                "SeriesNumber": "1", "InstanceNumber": "1",
            }  # fmt: skip
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance}
        return Row(image_id, study, series, instance, {**values, **uids}, own)

    def _header(self, path: Path, state: tuple) -> dict[str, str]:
        """What the header of a DICOM file says; empty for other files, and for one whose UIDs are none."""
        with self._lock:
            found = self._headers.get(state)
        if found is None:
            is_dicom = path.suffix.lower() in (".dcm", ".dicom") or has_mark(path)
            found = _read_header(path) if is_dicom else {}
            with self._lock:
                self._headers[state] = found
        return found


def _read_header(path: Path) -> dict[str, str]:
    header = open_dicom(path, header_only=True, tags=_TAGS)
    found = {name: str(element(header, name, "") or "") for name in _TAGS}
    uids = [found[name] for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    return found if all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in uids) else {}


def grouped(rows: list[Row], level: str) -> Iterator[tuple[Row, list[Row]]]:
    """(its first row, all its rows) of each study or series, in the order of ``rows``."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.study,) if level == "studies" else (row.study, row.series), []).append(row)
    for own in groups.values():
        yield own[0], own


def _fits(value: str, wanted: str, name: str) -> bool:
    if name.endswith("UID"):
        return value in re.split(r"[,\\]", wanted)
    if name.endswith("Date") and "-" in wanted:
        low, _, high = wanted.partition("-")
        return (not low or value >= low) and (not high or value <= high) and bool(value)
    if any(c in wanted for c in "*?"):
        return fnmatch.fnmatchcase(value.lower(), wanted.lower().replace("[", "[[]"))
    return value.lower() == wanted.lower()
