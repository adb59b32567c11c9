"""The index of a studies folder: which images and labels there are, in line with the files at any moment.

What differs from MONAI Label's LocalDatastore: more extensions, in any case; two images of one stem are two entries; DICOM
images in folders below are images too, called by their SOPInstanceUID; the index is written atomically and never changed
under a reader; read-only studies work.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException

from lib.names import check_name, is_name, split_name
from ultrarefiner_monai.data.dicomindex import DAMAGED, OTHER, DicomIndex, Header, nested_images
from ultrarefiner_monai.data.study import PICTURES
from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.workfolder import LABEL_EXTENSIONS, WorkFolder

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.3


class StudiesIndex(LocalDatastore):
    """LocalDatastore over one folder, as far as its index goes."""

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
        # Around each change as a whole; MONAI Label's own lock is taken anew for each reading and writing within it.
        self._change_lock = FileLock(str(work.root / "change.lock"))
        self._complained: set[str] = set()
        self._pending: threading.Timer | None = None
        self._headers = DicomIndex(studies, work.headers)
        self._nested: dict[str, str] = {}  # image id -> path below the studies, of those that lie in folders
        # Studies that cannot be written: index and labels go to the work folder, an absolute path wins in os.path.join.
        home = home or (Path(studies) if os.access(studies, os.W_OK) else work.root)
        patterns = [f"*{e}" for e in dict.fromkeys((*extensions, *LABEL_EXTENSIONS))]
        self._datastore: LocalDatastoreModel
        super().__init__(
            studies,
            labels_dir="labels" if home == Path(studies) else str(work.root / "labels"),
            datastore_config=str(home / "datastore_v2.json"),
            extensions=patterns,
            auto_reload=auto_reload,
        )
        if auto_reload:
            self._handler.on_moved = self._on_any_event
            self._handler._patterns = None  # any name, in any folder

    # LocalDatastore puts its lock into the studies; they may be read-only.
    @property
    def _lock_file(self) -> str:
        return str(self.work.root / "datastore.lock")

    @_lock_file.setter
    def _lock_file(self, value: str) -> None:
        pass

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
            known = self._absent()
            absent = {**known, **{i: before[i] for i in before.keys() - objects.keys()}}
            self._remember_absent(absent, known)
            labels_dir = Path(self._datastore.label_path(None))
            for tag in sorted(p.name for p in labels_dir.iterdir() if p.is_dir()):
                self._find_labels(tag, objects, {**absent, **before})
            if objects != before:
                self._replace(objects)
                self._update_datastore_file()
            self._remember_absent({i: entry for i, entry in absent.items() if i not in objects}, absent)

    def _absent(self) -> dict[str, ImageLabelModel]:
        """Entries whose image is not there just now (a PACS that lists nothing for a moment, a disk that is away): who
        made their labels, and whether they still have to be sent, is known again when it is back."""
        try:
            rows = json.loads(self.work.absent.read_text(encoding="utf-8"))
            return {str(i): ImageLabelModel.model_validate(entry) for i, entry in rows.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            logger.warning("%s is unreadable (%s): made anew", self.work.absent.name, type(error).__name__)
            return {}

    def _remember_absent(self, entries: dict[str, ImageLabelModel], before: dict[str, ImageLabelModel]) -> None:
        """Keep ``entries`` in a file where they differ from what it holds, those that have a label only."""
        if entries == before:
            return
        rows = {i: e.model_dump() for i, e in entries.items() if any(self._has_label(i, t, e) for t in e.labels)}
        if rows:
            with replacing(self.work.absent, "w") as file:
                file.write(json.dumps(rows))
        else:
            self.work.absent.unlink(missing_ok=True)

    def _has_label(self, image_id: str, tag: str, entry: ImageLabelModel) -> bool:
        return self.label_file(image_id, tag, entry.labels[tag].ext).is_file()

    def _on_any_event(self, event: Any) -> None:
        """Files came or went: look once when it has calmed down, not once per file of a big copy."""
        if all(self._is_ours(path) for path in (event.src_path, getattr(event, "dest_path", "")) if path):
            return
        with self._mutex:
            if self._pending is None:
                self._pending = threading.Timer(_SETTLE_SECONDS, self._settled)
                self._pending.daemon = True
                self._pending.start()

    def _on_modify_event(self, event: Any) -> None:
        """The index was written, or a DICOM file: its header may be there only now."""
        if event.src_path == self._datastore_config_path:
            super()._on_modify_event(event)
        elif not event.is_directory and not split_name(event.src_path, (*PICTURES, *LABEL_EXTENSIONS)):
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
        except OSError:
            logger.exception("cannot list the studies folder")

    def _find_images(self, before: dict[str, ImageLabelModel]) -> dict[str, ImageLabelModel]:
        ours = (self._datastore.label_path(None), self.work.root, self._datastore_config_path)
        headers = self._headers.scan([Path(p) for p in ours], (*PICTURES, *LABEL_EXTENSIONS))
        files = {}
        known = {self._filename(k, v.image.ext): k for k, v in before.items()}
        with os.scandir(self._datastore.image_path()) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_file():
                    continue
                parts, header = split_name(entry.name, self.image_extensions), headers.get(entry.name)
                if header is not None and header.kind == OTHER:
                    continue
                if not parts and (entry.name in known or (header is not None and header.is_dicom)):
                    parts = (entry.name, "")
                if parts and not is_name(entry.name):
                    self._complain(f"image {entry.name!a} is left out: rename it (odd characters, or too long)")
                elif parts:
                    files[entry.name] = parts
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
        self._add_nested(headers, objects, before)
        return objects

    def _add_nested(
        self, headers: dict[str, Header], objects: dict[str, ImageLabelModel], before: dict[str, ImageLabelModel]
    ) -> None:
        nested = {i: path for i, path in nested_images(headers).items() if i not in objects}
        for image_id in nested:
            image = before[image_id].image if image_id in before else None
            if image is None or image.ext:
                image = DataModel(info={"ts": int(time.time()), "name": f"{image_id}.dcm"})
            objects[image_id] = ImageLabelModel(image=image)
        self._nested = nested
        left_out = Counter(header.kind for path, header in headers.items())
        if left_out[OTHER]:
            self._complain(f"{left_out[OTHER]} DICOM file(s) hold no picture (reports, documents, ...): not offered")
        damaged = sum(header.kind == DAMAGED and "/" in path for path, header in headers.items())
        if damaged:
            self._complain(f"{damaged} DICOM file(s) in folders below cannot be read: not offered")

    def _complain(self, message: str) -> None:
        """Once, not at every look into the folder."""
        if message not in self._complained:
            self._complained.add(message)
            logger.warning("%s", message)

    def _find_labels(self, tag: str, objects: dict[str, ImageLabelModel], before: dict[str, ImageLabelModel]) -> None:
        for entry in sorted(os.scandir(self._datastore.label_path(tag)), key=lambda e: e.name):
            parts = split_name(entry.name, LABEL_EXTENSIONS)
            if not parts or entry.name.startswith(".") or not entry.is_file():
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

    # --- entries and changes ------------------------------------------------------------------------------------------

    def entry(self, image_id: str) -> ImageLabelModel:
        """What the index holds of an image; ImageNotFoundException when it is not in it."""
        entry = self._datastore.objects.get(image_id) if isinstance(image_id, str) else None
        if entry is None:
            raise ImageNotFoundException(f"there is no image {image_id!r:.120} in the studies")
        return entry

    def label_file(self, image_id: str, tag: str, extension: str) -> Path:
        return Path(self._datastore.label_path(check_name(tag, "tag")), image_id + extension)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on top of what another process (a batch) wrote into the index meanwhile."""
        with self._mutex, self._change_lock:
            self._init_from_datastore_file()
            yield

    def _replace(self, objects: dict[str, ImageLabelModel]) -> None:
        """A new model object: whoever iterates over the old one goes on undisturbed."""
        self._datastore = self._datastore.model_copy(update={"objects": objects})

    def _put(self, image_id: str, entry: ImageLabelModel | None) -> None:
        """Change one entry of the index, or remove it (None), in the file and in memory."""
        before = self._datastore
        objects = {i: e for i, e in before.objects.items() if i != image_id or entry is not None}
        self._replace({**objects, image_id: entry} if entry is not None else objects)
        try:
            self._update_datastore_file()
        except BaseException:
            self._datastore = before  # memory and file never tell two stories
            raise

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._mutex:
            try:
                super()._init_from_datastore_file(throw_exception=True)
            except ValueError as error:
                aside = f"{self._datastore_config_path}.broken-{int(time.time())}"
                os.replace(self._datastore_config_path, aside)
                logger.error("the index was unreadable (%s); it is kept as %s and made anew", error, aside)

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._mutex, FileLock(self._lock_file):
            self._ignore_event_config = True
            text = self._datastore.model_dump_json(exclude={"base_path"}, indent=2)
            with replacing(self._datastore_config_path, "w") as file:
                file.write(text)
            self._config_ts = os.stat(self._datastore_config_path).st_mtime
