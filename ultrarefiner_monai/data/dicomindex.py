"""Which files of a studies folder are DICOM images, in any folder below it and under any name.

A header is read once for each state (size, time) of a file and remembered in one file in the work folder. Images in
folders below are called by their SOPInstanceUID: their files and folders often carry patients' names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.data.dicomfile import has_mark, not_an_image, open_dicom
from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import leaves

logger = logging.getLogger(__name__)

IMAGE, OTHER, DAMAGED, FOREIGN = "image", "other", "damaged", "foreign"
_TAGS = ["SOPInstanceUID", "SOPClassUID", "Modality", "Rows", "Columns"]
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64
_EXTENSIONS = (".dcm", ".dicom")


@dataclass(frozen=True)
class Header:
    """kind: "image"; "other" (a report, a DICOMDIR, ...); "damaged" (DICOM, but cannot be read); "foreign" (no DICOM)."""

    size: int
    time_ns: int
    kind: str
    uid: str = ""

    @property
    def is_dicom(self) -> bool:
        return self.kind != FOREIGN


class DicomIndex:
    """The headers below ``root``, remembered in the file ``store``. Not thread-safe: the caller holds a lock.

    unopened, links: paths below ``root`` that the last scan passed over, by their names, and as links that leave the
    root, lead to a folder or nowhere.
    """

    def __init__(self, root: str | Path, store: Path):
        self.root, self.store = Path(root), store
        self.unopened: list[str] = []
        self.links: list[str] = []
        self._known = _load(store)

    def scan(self, leave_out: Collection[Path] = (), known_names: tuple[str, ...] = ()) -> dict[str, Header]:
        """path below ``root`` (parts joined by "/") -> header, for all files that are there now, sorted by path.

        Hidden files and folders, links to folders or out of ``root`` and the paths ``leave_out`` are passed over, and
        names that end in one of ``known_names`` (lower case, no DICOM) are not opened.
        """
        skipped = {os.path.abspath(folder) for folder in leave_out}
        names = tuple(e for e in known_names if e not in _EXTENSIONS)
        found = {}
        self.unopened, self.links = [], []
        for entry, path in _walk(os.path.abspath(self.root), "", skipped):
            if entry.is_symlink() and (not entry.is_file() or leaves(entry.path, [self.root])):
                self.links.append(path)
                continue
            if entry.name.lower().endswith(names):
                self.unopened.append(path)
                continue
            try:
                stat = entry.stat()
            except OSError:  # gone meanwhile, or a link to nowhere
                continue
            header = self._known.get(path)
            if header is None or (header.size, header.time_ns) != (stat.st_size, stat.st_mtime_ns):
                kind, uid = _look(Path(entry.path))
                header = Header(stat.st_size, stat.st_mtime_ns, kind, uid)
            found[path] = header
        found = dict(sorted(found.items()))
        if found != self._known:
            self._known = found
            self._save()
        return found

    def _save(self) -> None:
        rows = {path: [h.size, h.time_ns, h.kind, h.uid] for path, h in self._known.items()}
        try:
            with replacing(self.store, "w") as file:
                json.dump(rows, file)
        except OSError as error:  # they are read anew at the next start
            logger.warning("cannot remember the DICOM headers: %s", error)


def nested_images(found: dict[str, Header]) -> dict[str, str]:
    """image id -> path of the images that lie in folders below; of copies of one instance only the first path counts,
    and none where the instance lies at the top too."""
    taken = {h.uid for path, h in found.items() if "/" not in path and h.kind == IMAGE and h.uid}
    images: dict[str, str] = {}
    for path, header in found.items():
        if "/" in path and header.kind == IMAGE and not (header.uid and header.uid in taken):
            images.setdefault(header.uid or f"dicom-{_digest(path)}", path)
    return images


def remembered_images(store: Path) -> dict[str, str]:
    """``nested_images`` of what a server has remembered in ``store``; nothing where there is no such file."""
    return nested_images(_load(store))


def _walk(folder: str, below: str, skipped: set[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        logger.warning("a folder of the studies cannot be listed: %s", error.strerror)
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.path in skipped:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{below}{entry.name}/", skipped)
        elif entry.is_file() or entry.is_symlink():
            yield entry, below + entry.name


def _look(path: Path) -> tuple[str, str]:
    """(kind, UID) of a file. A UID that is none (it may hold anything, names too) becomes a digest of itself."""
    if path.name.upper() == "DICOMDIR":
        return OTHER, ""
    if not has_mark(path) and not path.name.lower().endswith(_EXTENSIONS):
        return FOREIGN, ""
    try:
        header = open_dicom(path, header_only=True, tags=_TAGS)
        if not_an_image(header) is not None:
            return OTHER, ""
        if not header.get("Rows") or not header.get("Columns"):  # cut off, or a kind of object that we do not know
            return DAMAGED, ""
        uid = str(header.get("SOPInstanceUID", "") or "").strip("\0 ")
    except InputError:
        return DAMAGED, ""
    except Exception as error:  # a damaged header makes pydicom raise anything
        logger.debug("a DICOM header cannot be read: %s", type(error).__name__)
        return DAMAGED, ""
    if uid and not (_UID.fullmatch(uid) and len(uid) <= _UID_LENGTH):
        uid = f"dicom-{_digest(uid)}"
    return IMAGE, uid


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _load(store: Path) -> dict[str, Header]:
    try:
        rows = json.loads(store.read_text(encoding="utf-8"))
        return {str(path): Header(int(s), int(t), str(kind), str(uid)) for path, (s, t, kind, uid) in rows.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("the remembered DICOM headers are unreadable (%s): they are read anew", type(error).__name__)
        return {}
