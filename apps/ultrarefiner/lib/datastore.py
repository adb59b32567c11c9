"""The studies folder as MONAI Label sees it, made safe and made to understand ultrasound files.

What differs from MONAI Label's LocalDatastore, besides its index (``studiesindex``): names that could leave the folder are
refused; unreadable files are known; labels are written beside and renamed, and the label before is kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.names import check_info, check_name, split_name
from lib.studiesindex import StudiesIndex
from ultrarefiner_monai.files import copy_in
from ultrarefiner_monai.presence import StudiesAway
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import LABEL_EXTENSIONS, WorkFolder, leaves

logger = logging.getLogger(__name__)

_KEPT_VERSIONS = 20


class StudiesFolder(StudiesIndex):
    """One folder of studies. ``readable(path)`` raises InputError for a file that cannot be decoded.

    own_info: what a label's info holds of ours; clients see it, may send it back, and change nothing by that.
    """

    own_info: tuple[str, ...] = ("ts", "name")

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
        self._readable = readable
        self._checked: dict[tuple, bool] = {}
        # Around a final label and its entry in the journal: of two who save at once, the same one is the newest in both.
        self.saving = threading.Lock()
        super().__init__(studies, work, extensions, auto_reload, home)

    # --- images -------------------------------------------------------------------------------------------------------

    def image_path(self, image_id: str) -> Path:
        """The file of an image that is in the index; ImageNotFoundException otherwise. Nothing else is ever opened.

        One in a folder below is opened and handed out through a link that is called by its id: messages, logs and clients
        repeat file names, and those of exports may hold patients' names.
        """
        path = self.image_file(image_id)
        return self._linked(image_id, path) if image_id in self._nested else path

    def _linked(self, image_id: str, path: Path) -> Path:
        link = self.work.nested / f"{image_id}.dcm"
        try:
            if not link.exists() or not link.samefile(path):
                self.work.make(link.parent)
                temporary = link.with_name(f".new-{uuid.uuid4().hex}")
                temporary.symlink_to(path)
                os.replace(temporary, link)
        except OSError as error:  # no links on this file system
            logger.debug("no link to %s: %s", image_id, error.strerror)
            return path
        return link

    def client_path(self, image_id: str) -> Path:
        """The file that clients get of an image. Raises as ``image_path``."""
        return self.image_path(image_id)

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image as clients get it, "" when there is none."""
        if image_id not in self._datastore.objects:
            return ""
        return (
            str(self.image_path(image_id)) if image_id in self._nested else os.path.realpath(self.image_file(image_id))
        )

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info = super().get_image_info(image_id)
        if image_id in self._nested:
            with suppress(ImageNotFoundException):  # its file is gone: it leaves the index in a moment
                return {**info, "path": self.get_image_uri(image_id)}
        return info

    def is_readable(self, image_id: str) -> bool:
        """Whether the image can be decoded; looked up once per state of the file."""
        try:
            path = self.image_path(image_id)
            stat = path.stat()
        except StudiesAway:
            raise
        except (OSError, ImageNotFoundException):
            return False
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if key not in self._checked:
            try:
                self._readable(path)
                self._checked[key] = True
            except InputError as error:
                logger.warning("%s is not offered: %s", image_id, error)
                self._checked[key] = False
        self.not_offered.opened(self._filename(image_id, self.entry(image_id).image.ext), self._checked[key])
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
            if image_id in self._datastore.objects or os.path.lexists(destination):
                raise InputError(f"there is an image {image_id!r} already; choose another id or remove that one first")
            copy_in(image_filename, destination)
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            self._put(image_id, ImageLabelModel(image=DataModel(info=info, ext=parts[1])))
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels, which are kept as versions. Of a link the link goes, not what it leads to."""
        tags = list(self.entry(image_id).labels)
        with self._mutex:
            path = self.image_file(image_id)
            for tag in tags:
                self.remove_label(image_id, tag)
            path.unlink(missing_ok=True)
            (self.work.nested / f"{image_id}.dcm").unlink(missing_ok=True)
            self.refresh()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        check_info(info, "info")
        with self._changing():
            entry = self.entry(image_id).model_copy(deep=True)
            entry.image.info.update(info)
            self._put(image_id, entry)

    # --- labels -------------------------------------------------------------------------------------------------------

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
            self.require_image(image_id)
            destination.parent.mkdir(parents=True, exist_ok=True)
            entry = self._datastore.objects[image_id].model_copy(deep=True)
            before = entry.labels.get(label_tag)
            if before is not None:
                self.keep_version(image_id, label_tag, self.label_file(image_id, label_tag, before.ext))
            copy_in(label_filename, destination)
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
        self.work.make(folder)
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
        self.presence.check()
        with self._mutex:
            path = self.label_file(label_id, label_tag, label.ext)
            self.keep_version(label_id, label_tag, path)
            path.unlink(missing_ok=True)
            self.refresh()

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        path = super().get_label_uri(label_id, check_name(label_tag, "tag"))
        self.presence.check(recent=os.path.exists(path))
        if path and leaves(path, [self._datastore_path, self.work.root]):
            raise LabelNotFoundException(f"the label of {label_id!r:.120} is a link that leaves the studies")
        return path

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
        self.presence.check()
        self.work.make(self.work.tmp)
        handle, name = tempfile.mkstemp(suffix=".zip", prefix="dataset-", dir=self.work.tmp)
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for image_id in labelled[: limit_cases if limit_cases and limit_cases > 0 else None]:
                image, label = self.get_image_uri(image_id), self.get_label_uri(image_id, DefaultLabelTag.FINAL.value)
                archive.write(image, f"image/{os.path.basename(image)}")
                archive.write(label, f"label/{os.path.basename(label)}")
            archive.writestr("metadata.json", self._datastore.model_dump_json(exclude={"base_path"}))
        return name
