"""What lies in a studies folder: the files that are offered as images, and why the others are not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ultrarefiner_monai.studies import not_offered as reasons
from ultrarefiner_monai.studies.dicom_index import DAMAGED, FOREIGN, IMAGE, OTHER, DicomIndex, Header, nested_images
from ultrarefiner_monai.studies.names import is_name, split_name
from ultrarefiner_monai.studies.not_offered import NotOffered
from ultrarefiner_monai.studies.work_folder import LABEL_EXTENSIONS

_WHY_BELOW = {DAMAGED: reasons.DAMAGED, FOREIGN: reasons.FORMAT, IMAGE: reasons.COPY}


@dataclass
class Found:
    """files: name in the studies folder itself -> (stem, extension, "" for DICOM files that have none). nested: image id
    -> path below the studies, of DICOM images in folders. left: path -> why it is not offered."""

    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    nested: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


class Listing:
    """Looks through ``studies``. extensions: of images. Not thread-safe: the caller holds a lock."""

    def __init__(self, studies: str, headers: Path, extensions: tuple[str, ...]):
        self.studies, self.extensions = os.path.abspath(studies), extensions
        self.not_offered = NotOffered()
        self._headers = DicomIndex(studies, headers)
        self._filled: set[str] = set()  # pictures that were seen not to be empty: their size is not asked for again

    def look(self, ours: Sequence[Path]) -> Found:
        """What is there now. ours: the app's own files and folders, which are nobody's images."""
        headers = self._headers.scan(ours, (*self.extensions, *LABEL_EXTENSIONS))
        found = Found(nested=nested_images(headers))
        found.left = self._left_below(headers, set(found.nested.values()))
        own = {path.name for path in ours if str(path.parent) == self.studies}
        with os.scandir(self.studies) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in found.left and entry.is_file():
                    self._sort_in(entry, headers.get(entry.name), own, found)
        self.not_offered.listed(found.left, {*found.files, *found.nested.values()})
        return found

    def _sort_in(self, entry: os.DirEntry[str], header: Header | None, own: set[str], found: Found) -> None:
        """A file of the folder itself."""
        parts = split_name(entry.name, self.extensions)
        if not parts and header is not None and header.is_dicom:
            parts = (entry.name, "")
        if not parts:
            if not any(entry.name.startswith(name) for name in own):  # the index, and what was set aside of it
                found.left[entry.name] = reasons.FORMAT
        elif not is_name(entry.name):
            found.left[entry.name] = reasons.NAME
        else:
            found.files[entry.name] = parts
            if header is not None or entry.name not in self._filled:
                if (reason := _useless(entry, header)) is not None:
                    found.left[entry.name] = reason  # listed all the same: it may be on its way
                else:
                    self._filled.add(entry.name)

    def _left_below(self, headers: dict[str, Header], nested: set[str]) -> dict[str, str]:
        """What the look at the headers passed over: all files in folders, links and DICOM without a picture."""
        left = dict.fromkeys((p for p in self._headers.unopened if "/" in p), reasons.FOLDER)
        left |= dict.fromkeys(self._headers.links, reasons.LINK)
        for path, header in headers.items():
            if header.kind == OTHER:
                left[path] = reasons.NO_PICTURE
            elif "/" in path and path not in nested:
                left[path] = _WHY_BELOW[header.kind]
        return left


def _useless(entry: os.DirEntry[str], header: Header | None) -> str | None:
    """Why a file that is listed holds no picture, as far as that shows without decoding it."""
    size = entry.stat().st_size if header is None else header.size
    if not size:
        return reasons.EMPTY
    return reasons.DAMAGED if header is not None and header.kind == DAMAGED else None
