"""The index of a studies folder: its images and labels, in line with the files at any moment.

What differs from MONAI Label's LocalDatastore:

* More extensions are known, in upper and lower case. Two images of one stem are two entries.
* DICOM images in folders below are images too; their ids are their SOPInstanceUIDs.
* The index is written atomically, and never changed while somebody reads it.
* An edited index cannot name files outside the studies, and links that leave the studies are not followed.
* Read-only studies work. While the studies are away, nothing is written and the index in memory stays.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.store.absent import Absent
from lib.store.index_file import IndexFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import has_mark
from ultrarefiner_monai.studies.availability import MARK_VARIABLE, Presence, StudiesAway
from ultrarefiner_monai.studies.listing import Listing
from ultrarefiner_monai.studies.names import check_name, is_name, split_name
from ultrarefiner_monai.studies.work_folder import INDEX, LABEL_EXTENSIONS, WorkFolder, leaves

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.3


class StudiesIndex(IndexFile):
    """The index of one folder, kept in line with its files. ``IndexFile`` reads and writes it."""

    def __init__(
        self,
        studies: str,
        work: WorkFolder,
        extensions: tuple[str, ...],
        auto_reload: bool = True,
        home: Path | None = None,
    ):
        """home: where index and labels lie; by default the studies themselves, if they can be written."""
        self.work, self.image_extensions = work, extensions
        self._mutex = threading.RLock()
        self._change_lock = FileLock(str(work.root / "change.lock"))
        self._absent = Absent(work.absent, self._any_extension, self._has_label)
        self._complained: set[str] = set()
        self._listing = Listing(studies, work.headers, extensions)
        self.not_offered = self._listing.not_offered
        self._pictures = tuple(e for e in (*extensions, *LABEL_EXTENSIONS) if e not in (".dcm", ".dicom"))
        mirrored = Path(studies) == work.mirror
        self.presence = Presence(None if mirrored else Path(studies), work, os.environ.get(MARK_VARIABLE, ""))
        self._pending: threading.Timer | None = None
        self._nested: dict[str, str] = {}  # image id -> path below the studies, of those that lie in folders
        # Studies that cannot be written: index and labels go to the work folder, an absolute path wins in os.path.join.
        home = home or (Path(studies) if os.access(studies, os.W_OK) else work.root)
        self.index_file = home / INDEX
        for path in (home / "labels", self.index_file):
            if leaves(path, [studies, work.root]):
                raise InputError(
                    f"{path} is a link to a place outside the studies, which is not followed: put the files themselves "
                    "there, or set work_dir to the folder where labels are to lie and make the studies read-only"
                )
        patterns = [f"*{e}" for e in dict.fromkeys((*extensions, *LABEL_EXTENSIONS))]
        self._observer: Any
        super().__init__(
            studies,
            labels_dir="labels" if home == Path(studies) else str(work.root / "labels"),
            datastore_config=str(self.index_file),
            extensions=patterns,
            auto_reload=auto_reload,
        )
        if auto_reload:
            self._handler.on_moved = self._on_any_event
            self._handler._patterns = None  # any name, in any folder

    # --- what is there ------------------------------------------------------------------------------------------------

    def _to_id(self, file: str) -> tuple[str, str]:
        return split_name(file, (*self.image_extensions, *LABEL_EXTENSIONS)) or os.path.splitext(file)

    def _filename(self, id: str, ext: str) -> str:
        return self._nested.get(id, id) if not ext else id + ext  # labels always have an extension

    def _reconcile_datastore(self) -> None:
        """Bring the index in line with the files: a new index replaces the old one, readers never see half of it."""
        with self._changing():
            before = self._datastore.objects
            objects = self._find_images(before)
            self.presence.check()  # they may have gone just now: what is not seen is not removed
            known = self._absent.read()
            absent = {**known, **{i: before[i] for i in before.keys() - objects.keys()}}
            self._absent.keep(absent, known)
            labels_dir = Path(self._datastore.label_path(None))
            labels_dir.mkdir(exist_ok=True)
            for tag in sorted(p.name for p in labels_dir.iterdir() if p.is_dir() and is_name(p.name)):
                if self._follows(labels_dir / tag):
                    self._find_labels(tag, objects, {**absent, **before})
            if objects != before:
                self._replace(objects)
                self._update_datastore_file()
            self._absent.keep({i: entry for i, entry in absent.items() if i not in objects}, absent)

    def _on_any_event(self, event: Any) -> None:
        """Files came or went. The folder is looked through when that has stopped, once for all files of a big copy."""
        if all(self._is_ours(path) for path in (event.src_path, getattr(event, "dest_path", "")) if path):
            return
        with self._mutex:
            if self._pending is None:
                self._pending = threading.Timer(_SETTLE_SECONDS, self._settled)
                self._pending.daemon = True
                self._pending.start()

    def _on_modify_event(self, event: Any) -> None:
        """A file was written: the index, or one that may be an image now (a DICOM header came, a picture was empty
        before)."""
        if event.src_path == self._datastore_config_path:
            try:
                self._init_from_datastore_file()  # nothing where we wrote it ourselves
            except OSError as error:
                self._complain(f"the index cannot be read: {error.strerror}")
            return
        below = os.path.relpath(os.fsdecode(event.src_path), self._datastore_path)
        if not event.is_directory and (not split_name(below, self._pictures) or self.not_offered.holds(below)):
            self._on_any_event(event)

    def _is_ours(self, path: str | bytes) -> bool:
        """Whether it is one of the app's own files: hidden ones, the index, the work folder."""
        name = os.path.relpath(os.fsdecode(path), self._datastore_path)
        below = os.path.relpath(os.fsdecode(path), self.work.root)
        hidden = any(part.startswith(".") and part != ".." for part in Path(name).parts)
        return hidden or not below.startswith("..") or os.fsdecode(path) == self._datastore_config_path

    def _settled(self) -> None:
        with self._mutex:
            self._pending = None
        try:
            self.refresh()
        except StudiesAway as error:
            self._complain(str(error))
        except OSError as error:
            logger.error("cannot list the studies folder: %s", error.strerror or error)

    def watch_anew(self) -> None:
        """The studies are back after they were away: look through them, and watch this folder, not the one before."""
        if self._auto_reload:
            observer = type(self._observer)()
            try:
                observer.schedule(self._handler, recursive=True, path=self._datastore_path)
                observer.start()
                before, self._observer = self._observer, observer
                before.stop()
            except OSError as error:
                logger.error("the studies folder cannot be watched: %s", error.strerror or error)
        self._complained.clear()
        self._settled()

    def _find_images(self, before: dict[str, ImageLabelModel]) -> dict[str, ImageLabelModel]:
        found = self._listing.look([Path(self._datastore.label_path(None)), self.work.root, self.index_file])
        files = found.files
        known = {self._filename(k, v.image.ext): k for k, v in before.items()}
        stems = Counter(stem for stem, _ in files.values())
        objects: dict[str, ImageLabelModel] = {}
        for name in sorted(files):
            stem, extension = files[name]
            if name in known:
                image_id, image = known[name], before[known[name]].image
            else:
                # A stem that two files share names neither of them: a label must never change its image.
                alone = stems[stem] == 1 and stem not in before and is_name(stem)
                image_id = stem if alone else name
                info = {"ts": int(time.time()), "name": name}
                image = DataModel(info=info, ext=extension if alone else "")
                logger.info("new image %s", image_id)
            objects[image_id] = ImageLabelModel(image=image)
        self._nested = {i: path for i, path in found.nested.items() if i not in objects}
        for image_id in self._nested:
            image = before[image_id].image if image_id in before else None
            if image is None or image.ext:
                image = DataModel(info={"ts": int(time.time()), "name": f"{image_id}.dcm"})
            objects[image_id] = ImageLabelModel(image=image)
        return objects

    def _complain(self, message: str) -> None:
        """Log a message once, not at every look into the folder."""
        if message not in self._complained:
            self._complained.add(message)
            logger.warning("%s", message)

    def _find_labels(self, tag: str, objects: dict[str, ImageLabelModel], before: dict[str, ImageLabelModel]) -> None:
        for entry in sorted(os.scandir(self._datastore.label_path(tag)), key=lambda e: e.name):
            parts = split_name(entry.name, LABEL_EXTENSIONS)
            if not parts or entry.name.startswith(".") or not entry.is_file() or not is_name(entry.name):
                continue
            if entry.is_symlink() and not self._follows(Path(entry.path)):
                continue
            image_id, extension = parts
            if image_id not in objects and extension.lower() == ".seg.nrrd":  # the .nrrd of an image called x.seg
                image_id, extension = entry.name[:-5], entry.name[-5:]
            if image_id not in objects:
                self._complain(f"label {tag}/{entry.name!a} belongs to no image")
                continue
            old = before[image_id].labels.get(tag) if image_id in before else None
            if tag in objects[image_id].labels and not (old and old.ext == extension):
                continue
            new = DataModel(info={"ts": int(entry.stat().st_mtime), "name": entry.name}, ext=extension)
            objects[image_id].labels[tag] = old if old and old.ext == extension else new

    def pool(self) -> tuple[set[str], dict[str, float]]:
        """(images with a final label, the others -> when one was last offered as a next sample, 0 for never)."""
        objects = self._datastore.objects
        labelled = {i for i, entry in objects.items() if entry.labels.get(DefaultLabelTag.FINAL)}
        return labelled, {i: _last_offer(entry.image.info) for i, entry in objects.items() if i not in labelled}

    # --- entries and their files ------------------------------------------------------------------------------------------

    def entry(self, image_id: str) -> ImageLabelModel:
        """What the index holds of an image; ImageNotFoundException when it is not in it."""
        entry = self._datastore.objects.get(image_id) if isinstance(image_id, str) else None
        if entry is None:
            raise ImageNotFoundException(f"there is no image {image_id!r:.120} in the studies")
        return entry

    def path_in_studies(self, image_id: str) -> Path:
        """The image's file in the studies, checked at this moment.

        Raises ImageNotFoundException where the file is gone, is a link that leaves the studies, or is no image any
        more; StudiesAway while the studies are away."""
        entry = self.entry(image_id)
        self.presence.check(recent=True)
        name = self._filename(image_id, entry.image.ext)
        path = os.path.join(os.path.abspath(self._datastore_path), name)
        try:
            is_link = any(stat.S_ISLNK(os.lstat(part).st_mode) for part in _steps(path, name.count("/")))
            gone = is_link and not os.path.exists(path)
        except (FileNotFoundError, NotADirectoryError):
            gone, is_link = True, False
        if gone:
            self.presence.check()
            raise ImageNotFoundException(f"the file of {image_id!r:.120} is not in the studies any more")
        if is_link and leaves(path, [self._datastore_path]):
            raise ImageNotFoundException(f"{image_id!r:.120} is a link that leaves the studies: it is not followed")
        if (
            not entry.image.ext
            and not split_name(os.path.basename(path), self.image_extensions)
            and not has_mark(Path(path))
        ):
            raise ImageNotFoundException(f"{image_id!r:.120} is no image")
        return Path(path)

    def require_image(self, image_id: str) -> None:
        """Before something of an image is saved: raises as ``path_in_studies`` unless the image still is where it was."""
        self.presence.check()
        self.path_in_studies(image_id)

    def label_file(self, image_id: str, tag: str, extension: str) -> Path:
        """Where a label lies. InputError where its folder is a link that leaves studies and work folder."""
        folder = Path(self._datastore.label_path(check_name(tag, "tag")))
        if (folder.is_symlink() or folder.parent.is_symlink()) and not self._follows(folder):
            raise InputError("the labels' folder is a link that leaves the studies: it is not followed")
        return folder / (image_id + extension)

    def _has_label(self, image_id: str, tag: str, entry: ImageLabelModel) -> bool:
        return self.label_file(image_id, tag, entry.labels[tag].ext).is_file()

    def _follows(self, path: Path) -> bool:
        """Whether a file or folder of labels lies in the studies or the work folder, its links followed."""
        if not path.is_symlink() and not path.parent.is_symlink():
            return True
        if not leaves(path, [self._datastore_path, self.work.root]):
            return True
        self._complain(f"{path.name!a} among the labels is a link that leaves the studies: it is not followed")
        return False


def _last_offer(info: dict[str, Any]) -> float:
    """When any strategy offered the image last (MONAI Label keeps that with the image), 0 for never."""
    offers = info.get("strategy")
    times = [o.get("ts", 0) for o in offers.values() if isinstance(o, dict)] if isinstance(offers, dict) else []
    return max((t for t in times if isinstance(t, (int, float))), default=0)


def _steps(path: str, folders: int) -> Iterator[str]:
    """``path``, then each of the ``folders`` folders above it."""
    yield path
    for _ in range(folders):
        path = os.path.dirname(path)
        yield path
