"""The studies folder as MONAI Label sees it, made safe and made to understand ultrasound files.

What differs from MONAI Label's LocalDatastore: more extensions, in any case; two images of one stem are two entries;
names that could leave the folder are refused; DICOM images in folders below are images too, called by their SOPInstanceUID;
unreadable files are known; labels are written beside and renamed, and the label before is kept; the index is written atomically and never changed under a reader; read-only studies work.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from ultrarefiner_monai.data.dicomindex import DAMAGED, OTHER, DicomIndex, Header, nested_images
from ultrarefiner_monai.data.study import PICTURES
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import LABEL_EXTENSIONS, WorkFolder

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[^/\\\x00-\x1f\ud800-\udfff]{1,200}")  # surrogates: bytes that are no UTF-8
_NAME_BYTES = 220  # of the 255 that file systems take; extensions come on top
_INFO_DEPTH = 16
_KEPT_VERSIONS = 20
_SETTLE_SECONDS = 0.3


def check_name(value: str, what: str) -> str:
    """``value`` when it is a plain name; InputError for paths, `..`, hidden and empty names: the studies' border."""
    if not _is_name(value):
        raise InputError(f"{what} must be a plain name without path parts, got {value!r:.120}")
    return value


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value.startswith("."):
        return False
    return value == value.strip() and len(value.encode()) <= _NAME_BYTES


def check_info(value: Any, what: str, depth: int = 0) -> None:
    """InputError for what a client sends to be kept in the index and JSON cannot hold: it would spoil every later reply."""
    if depth > _INFO_DEPTH:
        raise InputError(f"{what} is nested more than {_INFO_DEPTH} levels deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{what} holds {value}, which JSON cannot hold")
    if isinstance(value, int) and abs(value) > 1 << 63:
        raise InputError(f"{what} holds a whole number of more than 64 bits")
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{what} holds half a character (a lone surrogate)")
    for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_info(part, what, depth + 1)


def split_name(filename: str, extensions: Iterable[str]) -> tuple[str, str] | None:
    """(stem, extension as written) when the name ends in one of ``extensions``, in any case; the longest one counts."""
    for extension in sorted(extensions, key=len, reverse=True):
        if filename.lower().endswith(extension) and len(filename) > len(extension):
            return filename[: -len(extension)], filename[-len(extension) :]
    return None


class StudiesFolder(LocalDatastore):
    """LocalDatastore over one folder. ``readable(path)`` raises InputError for a file that cannot be decoded."""

    def __init__(
        self,
        studies: str,
        work: WorkFolder,
        extensions: tuple[str, ...],
        readable: Callable[[Path], Any],
        auto_reload: bool = True,
        home: Path | None = None,
    ):
        """home: where index and labels lie; by default the studies themselves, if they can be written."""
        self.work, self.image_extensions, self._readable = work, extensions, readable
        # Around a final label and its entry in the journal: of two who save at once, the same one is the newest in both.
        self.saving = threading.Lock()
        self._mutex = threading.RLock()
        # Around each change as a whole; MONAI Label's own lock is taken anew for each reading and writing within it.
        self._change_lock = FileLock(str(work.root / "change.lock"))
        self._complained: set[str] = set()
        self._checked: dict[tuple, bool] = {}
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
            with _beside(self.work.absent) as temporary:
                temporary.write_text(json.dumps(rows), encoding="utf-8")
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
                if parts and not _is_name(entry.name):
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
                alone = stems[stem] == 1 and stem not in before and _is_name(stem)
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

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on top of what another process (a batch) wrote into the index meanwhile."""
        with self._mutex, self._change_lock:
            self._init_from_datastore_file()
            yield

    def _replace(self, objects: dict[str, ImageLabelModel]) -> None:
        """A new model object: whoever iterates over the old one goes on undisturbed."""
        self._datastore = self._datastore.model_copy(update={"objects": objects})

    def _put(self, image_id: str, entry: ImageLabelModel) -> None:
        before = self._datastore
        self._replace({**before.objects, image_id: entry})
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
            with _beside(Path(self._datastore_config_path)) as temporary:
                temporary.write_text(text, encoding="utf-8")
            self._config_ts = os.stat(self._datastore_config_path).st_mtime

    # --- images -------------------------------------------------------------------------------------------------------

    def entry(self, image_id: str) -> ImageLabelModel:
        """What the index holds of an image; ImageNotFoundException when it is not in it."""
        entry = self._datastore.objects.get(image_id) if isinstance(image_id, str) else None
        if entry is None:
            raise ImageNotFoundException(f"there is no image {image_id!r:.120} in the studies")
        return entry

    def image_path(self, image_id: str) -> Path:
        """The file of an image that is in the index; ImageNotFoundException otherwise. Nothing else is ever opened."""
        entry = self.entry(image_id)
        return Path(self._datastore.image_path(), self._filename(image_id, entry.image.ext)).absolute()

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image, "" when there is none. One in a folder below is handed out through a link that is called
        by its id: clients show and keep file names, and those of folders may hold patients' names."""
        if image_id not in self._nested:
            return super().get_image_uri(image_id)
        path, link = self.image_path(image_id), self.work.nested / f"{image_id}.dcm"
        try:
            if not link.exists() or not link.samefile(path):
                link.parent.mkdir(parents=True, exist_ok=True)
                temporary = link.with_name(f".new-{uuid.uuid4().hex}")
                temporary.symlink_to(path)
                os.replace(temporary, link)
        except OSError as error:  # no links on this file system
            logger.debug("no link to an image: %s", error)
            return str(path)
        return str(link)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info = super().get_image_info(image_id)
        return {**info, "path": self.get_image_uri(image_id)} if image_id in self._nested else info

    def is_readable(self, image_id: str) -> bool:
        """Whether the image can be decoded; looked up once per state of the file."""
        path = self.image_path(image_id)
        try:
            stat = path.stat()
        except OSError:
            return False
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if key not in self._checked:
            try:
                self._readable(path)
                self._checked[key] = True
            except InputError as error:
                logger.warning("%s is not offered: %s", image_id, error)
                self._checked[key] = False
        return self._checked[key]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy a file into the studies under a name that is free; InputError when it is taken or no image."""
        parts = split_name(os.path.basename(image_filename), self.image_extensions)
        if parts is None:
            raise InputError(f"expected a file ending in {', '.join(self.image_extensions)}, got {image_filename}")
        image_id = check_name(image_id or parts[0], "image")
        check_info(image_info, "params")
        self._readable(Path(image_filename))
        name = image_id + parts[1]
        destination = Path(self._datastore.image_path(), name)
        with self._changing():
            if image_id in self._datastore.objects or destination.exists():
                raise InputError(f"there is an image {image_id!r} already; choose another id or remove that one first")
            with _beside(destination) as temporary:
                shutil.copyfile(image_filename, temporary)
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            self._put(image_id, ImageLabelModel(image=DataModel(info=info, ext=parts[1])))
        return image_id

    def remove_image(self, image_id: str) -> None:
        self.entry(image_id)
        with self._mutex:
            super().remove_image(image_id)
            self.refresh()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        check_info(info, "info")
        with self._changing():
            entry = self.entry(image_id).model_copy(deep=True)
            entry.image.info.update(info)
            self._put(image_id, entry)

    # --- labels -------------------------------------------------------------------------------------------------------

    def label_file(self, image_id: str, tag: str, extension: str) -> Path:
        return Path(self._datastore.label_path(check_name(tag, "tag")), image_id + extension)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label losslessly: copied as it is, renamed into place; the label before it is kept."""
        self.entry(image_id)
        check_name(label_tag, "tag")
        check_info(label_info, "params")
        parts = split_name(os.path.basename(label_filename), LABEL_EXTENSIONS)
        if parts is None:
            name = os.path.basename(label_filename)
            raise InputError(f"a label must end in one of {', '.join(LABEL_EXTENSIONS)} (lossless), got {name}")
        extension = parts[1].lower()
        destination = self.label_file(image_id, label_tag, extension)
        with self._changing():
            destination.parent.mkdir(parents=True, exist_ok=True)
            entry = self._datastore.objects[image_id].model_copy(deep=True)
            before = entry.labels.get(label_tag)
            if before is not None:
                self.keep_version(image_id, label_tag, self.label_file(image_id, label_tag, before.ext))
            with _beside(destination) as temporary:
                shutil.copyfile(label_filename, temporary)
            if before is not None and before.ext != extension:
                self.label_file(image_id, label_tag, before.ext).unlink(missing_ok=True)
            info = {**(label_info or {}), "ts": int(time.time()), "name": destination.name}
            entry.labels[label_tag] = DataModel(info=info, ext=extension)
            self._put(image_id, entry)
        return image_id

    def fitted(self, image_id: str, label: Path) -> Path:
        """The label file to keep for one that a client sent; another one where the image has changed under the client."""
        return label

    def keep_version(self, image_id: str, tag: str, label: Path) -> None:
        """Copy a label that is about to be replaced to versions/TAG/IMAGE/TIME.ext; the newest few are kept."""
        if not label.is_file():
            return
        folder = self.work.versions / tag / image_id
        folder.mkdir(parents=True, exist_ok=True)
        extension = label.name[len(image_id) :]
        shutil.copy2(label, folder / f"{time.time_ns()}{extension}")
        for old in sorted(folder.iterdir())[:-_KEPT_VERSIONS]:
            old.unlink()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        self.entry(label_id)
        check_name(label_tag, "tag")
        label = self._datastore.label(label_id, label_tag)
        if label is None:
            raise LabelNotFoundException(f"{label_id!r} has no label {label_tag!r}")
        with self._mutex:
            path = self.label_file(label_id, label_tag, label.ext)
            self.keep_version(label_id, label_tag, path)
            path.unlink(missing_ok=True)
            self.refresh()

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return super().get_label_uri(label_id, check_name(label_tag, "tag"))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        check_info(info, "info")
        with self._changing():
            entry = self.entry(label_id).model_copy(deep=True)
            if label_tag not in entry.labels:
                raise LabelNotFoundException(f"{label_id!r} has no label {label_tag!r:.120}")
            entry.labels[label_tag].info.update(info)
            self._put(label_id, entry)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of the labelled images, their final labels and the index, in the work folder; the caller removes it."""
        labelled = self.get_labeled_images()
        if not labelled:
            raise InputError("there is no final label yet: nothing to download")
        self.work.tmp.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".zip", prefix="dataset-", dir=self.work.tmp)
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for image_id in labelled[: limit_cases if limit_cases and limit_cases > 0 else None]:
                image, label = self.get_image_uri(image_id), self.get_label_uri(image_id, DefaultLabelTag.FINAL.value)
                archive.write(image, f"image/{os.path.basename(image)}")
                archive.write(label, f"label/{os.path.basename(label)}")
            archive.writestr("metadata.json", self._datastore.model_dump_json(exclude={"base_path"}))
        return name


class _beside:  # noqa: N801 (reads like the function it is)
    """A temporary file beside ``path`` that takes its place when the block ends well, and vanishes otherwise."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".new-")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            with open(self.temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(self.temporary, 0o644)
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)
