"""The studies folder as MONAI Label sees it: images are opened, added and removed, and all goes into an archive.

The index is in ``index``, the labels are in ``labels``. What differs from MONAI Label's LocalDatastore besides them:
names that could leave the folder are refused, and files that cannot be read are known and never offered.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
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

from lib.store.labels import Labels
from ultrarefiner_monai.core.files import all_or_nothing, copy_in
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.masks.label_values import is_confirmed
from ultrarefiner_monai.studies import open_saves as opensaves
from ultrarefiner_monai.studies.availability import StudiesAway
from ultrarefiner_monai.studies.client_frames import ClientFrames, is_moving
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.names import check_info, check_name, split_name
from ultrarefiner_monai.studies.open_saves import Drawn
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)


class StudiesFolder(Labels):
    """One folder of studies. ``readable(path)`` raises InputError for a file that cannot be decoded."""

    def __init__(
        self,
        studies: str,
        work: WorkFolder,
        extensions: tuple[str, ...],
        readable: Callable[[Path], Any],
        auto_reload: bool = True,
        home: Path | None = None,
        journal: JournalQueue | None = None,
    ):
        """home: where index and labels lie; by default the studies themselves, if they can be written."""
        self._readable = readable
        self._frames = ClientFrames(work, readable)
        self._checked: dict[tuple, bool] = {}
        super().__init__(studies, work, extensions, auto_reload, home, journal)

    # --- images -------------------------------------------------------------------------------------------------------

    def image_path(self, image_id: str) -> Path:
        """The file of an image that is in the index; ImageNotFoundException otherwise. Nothing else is ever opened.

        One in a folder below is opened and handed out through a link that is called by its id: messages, logs and
        clients repeat file names, and those of exports may hold patients' names.
        """
        path = self.path_in_studies(image_id)
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
        """The file that clients get of an image; of a moving picture, a NIfTI of its frames. Raises as ``image_path``,
        and InputError for a moving picture that cannot be decoded."""
        path = self.image_path(image_id)
        return self._frames.path(image_id, path) if is_moving(path) else path

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image as clients get it, "" when there is none."""
        if image_id not in self._datastore.objects:
            return ""
        path = self.path_in_studies(image_id)
        if image_id in self._nested or is_moving(str(path)):
            return str(self.client_path(image_id))
        return os.path.realpath(path)

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
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            with all_or_nothing() as undo:
                undo.by(lambda: destination.unlink(missing_ok=True))
                copy_in(image_filename, destination)
                entry = ImageLabelModel(image=DataModel(info=info, ext=parts[1]))
                self._put_undoable(undo, image_id, entry)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels, which are kept as versions. All of it or nothing."""
        self.entry(image_id)
        with self._changing():
            self.repair()
            entry = self.entry(image_id)
            image = self.path_in_studies(image_id)  # of a link the link goes, not what it leads to
            with all_or_nothing() as undo:
                undo.set_aside(image, undo.part(image))  # first: where it is cut off, no image has lost its label
                for tag, label in entry.labels.items():
                    self._set_aside(undo, image_id, tag, label.ext)
                self._put_undoable(undo, image_id, None)
                undo.sync()
            with suppress(OSError):
                (self.work.nested / f"{image_id}.dcm").unlink(missing_ok=True)
                self._frames.remove(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        check_info(info, "info")
        with self._changing():
            entry = self.entry(image_id).model_copy(deep=True)
            entry.image.info.update(info)
            self._put(image_id, entry)

    # --- everything ---------------------------------------------------------------------------------------------------

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of the labelled images, their final labels and the index, in the work folder; the caller removes
        it.

        What goes away meanwhile is left out and named in it.
        """
        labelled = self.get_labeled_images()
        labelled = labelled[: limit_cases if limit_cases and limit_cases > 0 else None]
        self.presence.check()
        self.work.make(self.work.tmp)
        handle, name = tempfile.mkstemp(suffix=".zip", prefix="dataset-", dir=self.work.tmp)
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                gone = [image_id for image_id in labelled if not self._add_case(archive, image_id)]
                if len(gone) == len(labelled):
                    raise InputError("there is no final label yet: nothing to download")
                if gone:
                    logger.warning("%d case(s) went away while the archive was made: left out", len(gone))
                    archive.writestr("left_out.txt", "".join(f"{image_id}\n" for image_id in gone))
                archive.writestr("metadata.json", self._datastore.model_dump_json(exclude={"base_path"}))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return name

    def _add_case(self, archive: zipfile.ZipFile, image_id: str) -> bool:
        """Add an image and its final label; whether both are there."""
        try:
            image, label = self.get_image_uri(image_id), self.get_label_uri(image_id, DefaultLabelTag.FINAL.value)
            # Opened first: once a member is begun, it cannot be left out any more. A label is replaced, never changed.
            with open(image, "rb") as image_file, open(label, "rb") as label_file:
                for folder, path, source in (("image", image, image_file), ("label", label, label_file)):
                    member = zipfile.ZipInfo.from_file(
                        path, f"{folder}/{os.path.basename(path)}", strict_timestamps=False
                    )
                    with archive.open(member, "w") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
        except (FileNotFoundError, ImageNotFoundException, LabelNotFoundException):
            return False
        return True


def journal_saved(store: StudiesFolder, image_id: str, label_id: str, open_image_file: Callable[[Path], Any]) -> None:
    """Note, soon, the final label that lies in the studies: somebody saved it without our route.

    open_image_file: an image's file -> what has its ``image_file`` and ``sha256``; InputError where it cannot be read.
    """
    tag = DefaultLabelTag.FINAL.value
    path = store.get_label_uri(label_id, tag)
    if not path:
        return
    image, info = store.image_path(image_id), store.get_label_info(label_id, tag)

    def write(journal: Journal) -> None:
        opened = open_image_file(image)
        mask = read_mask(path, opened.image_file, confirmed=is_confirmed(info))
        opensaves.record(journal, image_id, Drawn(opened.sha256, mask), info)

    store.journal.submit(write)
