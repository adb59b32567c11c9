"""Which files of a studies folder are DICOM images, in any folder below it and under any name.

A header is read once for each state (size, time) of a file and remembered in one file in the work folder. Images in
folders below are called by their SOPInstanceUID: their files and folders often carry patients' names. Different pictures
that carry one UID (some exports do that) are called by it and a digest, all but the one that had the UID first; which one
that is, is remembered in a file of its own, since a label must never move to another picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import has_mark, not_an_image, open_dicom, pixel_digest
from ultrarefiner_monai.dicom.header import element
from ultrarefiner_monai.studies.work_folder import leaves

logger = logging.getLogger(__name__)

IMAGE, OTHER, DAMAGED, FOREIGN = "image", "other", "damaged", "foreign"
_TAGS = ["SOPInstanceUID", "SOPClassUID", "Modality", "Rows", "Columns"]
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64
_EXTENSIONS = (".dcm", ".dicom")
_MOST_NAMES = 5  # in a line of the log


@dataclass(frozen=True)
class Header:
    """kind: "image"; "other" (a report, a DICOMDIR, ...); "damaged" (DICOM, but cannot be read); "foreign" (no DICOM).

    digest: of an image's pixels (``pixel_digest``). id: what an image in a folder below is called, "" for all others and for
    a copy of an image at the top.
    """

    size: int
    time_ns: int
    kind: str
    uid: str = ""
    digest: str = ""
    id: str = ""

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
        self._names = PictureNames(store.with_name(f"{store.stem}-uids.json"))

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
            old = header is not None and header.kind == IMAGE and not header.digest  # of a version before
            if header is None or old or (header.size, header.time_ns) != (stat.st_size, stat.st_mtime_ns):
                kind, uid = _look(Path(entry.path))
                digest = pixel_digest(entry.path) if kind == IMAGE else ""
                kind = DAMAGED if kind == IMAGE and not digest else kind
                header = Header(stat.st_size, stat.st_mtime_ns, kind, uid, digest)
            found[path] = header
        found = self._names.given(self.root, dict(sorted(found.items())), self._known)
        if found != self._known:
            self._known = found
            self._save()
        return found

    def _save(self) -> None:
        rows = {path: [h.size, h.time_ns, h.kind, h.uid, h.digest, h.id] for path, h in self._known.items()}
        try:
            with replacing(self.store, "w") as file:
                json.dump(rows, file)
        except OSError as error:  # they are read anew at the next start
            logger.warning("cannot remember the DICOM headers: %s", error)


def nested_images(found: dict[str, Header]) -> dict[str, str]:
    """image id -> path of the images that lie in folders below; of copies of one picture only the first path counts, and
    none where the picture lies at the top too."""
    top = {h.uid for path, h in found.items() if "/" not in path and h.kind == IMAGE and h.uid}
    images: dict[str, str] = {}
    for path, header in found.items():
        if "/" in path and header.kind == IMAGE:
            name = header.id
            if not name and not header.digest and header.uid not in top:  # as a version before remembered it
                name = header.uid or f"dicom-{_digest(path)}"
            if name:
                images.setdefault(name, path)
    return images


class PictureNames:
    """What DICOM images in folders are called. file: remembers which picture has an UID for itself."""

    def __init__(self, file: Path):
        self._file = file
        self._owners: dict[str, str] | None = self._load()
        self._whole: dict[tuple[str, int, int], str] = {}
        self._said: set[str] = set()

    def given(self, root: Path, found: dict[str, Header], before: dict[str, Header]) -> dict[str, Header]:
        """``found`` with the ids of images in folders; ``before``: what was found the time before."""
        named = {p: h.id for p, h in before.items() if h.id and h.id == h.uid}
        if self._owners is None:  # lost: those that had it the time before keep it
            self._owners = {before[path].uid: before[path].digest for path in named}
        owners = dict(self._owners)
        groups: dict[str, list[str]] = {}
        out = dict(found)
        for path, header in found.items():
            if header.kind == IMAGE and header.uid:
                groups.setdefault(header.uid, []).append(path)
            elif header.kind == IMAGE and "/" in path:
                out[path] = replace(header, id=f"dicom-{_digest(path)}")
        for uid, paths in groups.items():
            pictures = self._pictures(root, paths, found)
            top = {pictures[path] for path in paths if "/" not in path}
            nested = [path for path in paths if "/" in path]
            if nested and (uid not in owners or self._overwritten(nested, pictures, owners[uid], named)):
                # These have an id of their own.
                other = {p for p in nested if p in before and before[p].id not in ("", uid)}
                free = [p for p in nested if p in named] or [p for p in nested if p not in other]
                owners[uid] = pictures[free[0]] if free else ""
            for path in nested:
                picture = pictures[path]
                name = uid if picture == owners[uid] else f"{uid}-{picture[:8]}"
                out[path] = replace(found[path], id="" if picture in top else name)
            self._say(uid, sorted({out[path].id for path in nested} - {""}))
        if owners != self._owners:
            self._owners = owners
            self._save()
        return out

    @staticmethod
    def _overwritten(nested: list[str], pictures: dict[str, str], owner: str, named: dict[str, str]) -> bool:
        """Whether the only picture of an UID is another one now, in the same file: it is that file, as at the top."""
        return len({pictures[p] for p in nested}) == 1 and pictures[nested[0]] != owner and nested[0] in named

    def _pictures(self, root: Path, paths: list[str], found: dict[str, Header]) -> dict[str, str]:
        """path -> digest of its picture; of pictures that look alike in pieces the whole is compared."""
        pictures = {path: found[path].digest for path in paths}
        for digest in {d for d, count in Counter(pictures.values()).items() if count > 1}:
            alike = {p: self._whole_of(root, p, found[p]) for p, d in pictures.items() if d == digest}
            if len(set(alike.values())) > 1:
                pictures |= alike
        return pictures

    def _whole_of(self, root: Path, path: str, header: Header) -> str:
        key = (path, header.size, header.time_ns)
        if key not in self._whole:
            self._whole[key] = pixel_digest(root / path, whole=True) or header.digest
        return self._whole[key]

    def _say(self, uid: str, names: list[str]) -> None:
        if len(names) > 1 and (what := f"{uid} {_digest(' '.join(names))}") not in self._said:
            self._said.add(what)
            shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
            logger.warning("%d different pictures carry the SOPInstanceUID %s: offered as %s", len(names), uid, shown)

    def _load(self) -> dict[str, str] | None:
        try:
            rows = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(uid): str(digest) for uid, digest in rows.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            logger.warning("which picture has which UID is unreadable (%s): made anew", type(error).__name__)
            return None

    def _save(self) -> None:
        try:
            with replacing(self._file, "w") as file:
                json.dump(self._owners, file)
        except OSError as error:
            logger.warning("cannot remember which picture has which UID: %s", error.strerror)


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
        if not element(header, "Rows") or not element(header, "Columns"):
            # Cut off, or a kind of object that we do not know.
            return DAMAGED, ""
        uid = str(element(header, "SOPInstanceUID", "")).strip("\0 ")
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
        return {str(path): Header(int(s), int(t), *map(str, rest)) for path, (s, t, *rest) in rows.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("the remembered DICOM headers are unreadable (%s): they are read anew", type(error).__name__)
        return {}
