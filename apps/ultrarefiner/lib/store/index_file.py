"""The index and its file. The file is read and checked as a whole before anybody sees it, and written atomically.

Somebody may have edited the file. So its entries must be plain names, and it does not decide where images and labels
lie: the app knows these places itself.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel

from ultrarefiner_monai.core.damaged import set_aside
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.readers import IMAGE_EXTENSIONS
from ultrarefiner_monai.studies.availability import Presence
from ultrarefiner_monai.studies.names import check_info, is_name
from ultrarefiner_monai.studies.work_folder import LABEL_EXTENSIONS, WorkFolder

logger = logging.getLogger(__name__)


class IndexFile(LocalDatastore):
    """LocalDatastore with an index that is never changed under a reader, in memory or in its file.

    What is built on it sets, before it calls LocalDatastore's own constructor: work, presence, index_file, and
    image_extensions.
    """

    work: WorkFolder
    presence: Presence
    index_file: Path
    image_extensions: tuple[str, ...]
    _mutex: threading.RLock
    # Around each change as a whole; MONAI Label's own lock is taken anew for each reading and writing within it.
    _change_lock: FileLock
    _datastore: LocalDatastoreModel
    _config_ts: Any

    # LocalDatastore puts its lock into the studies; they may be read-only.
    @property
    def _lock_file(self) -> str:
        return str(self.work.root / "datastore.lock")

    @_lock_file.setter
    def _lock_file(self, value: str) -> None:
        pass

    @property
    def _any_extension(self) -> tuple[str, ...]:
        return (*self.image_extensions, *IMAGE_EXTENSIONS)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on top of what another process (a batch) wrote into the index meanwhile."""
        self.presence.check()  # before the lock: a lock makes the folder it lies in
        with self._mutex, self._change_lock:
            self.presence.check()
            self._init_from_datastore_file()
            yield

    def _replace(self, objects: dict[str, ImageLabelModel]) -> None:
        """Put a new model object in place of the old one: threads that iterate over the old one are not disturbed."""
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
        """Take what another process wrote: read, checked and complete before it is published in one assignment."""
        with self._mutex:
            try:
                state = _state(os.stat(self.index_file))
                if state == self._config_ts:
                    return
                text = self.index_file.read_text(encoding="utf-8")
                self._datastore = read_index(text, self._datastore, self._any_extension)
                self._config_ts = state
            except FileNotFoundError:
                return
            except ValueError as error:
                aside = set_aside(self.index_file)
                logger.error("the index was unreadable (%s); it is kept as %s and made anew", error, aside.name)
                if self._datastore.objects:  # what is known goes on
                    self._update_datastore_file()

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._mutex:
            text = self._datastore.model_dump_json(exclude={"base_path"}, indent=2)
            with replacing(self.index_file, "w") as file:
                file.write(text)
            self._config_ts = _state(os.stat(self.index_file))


def read_index(text: str, own: LocalDatastoreModel, extensions: tuple[str, ...]) -> LocalDatastoreModel:
    """``own`` with the entries of an index file; extensions: of images. ValueError where it is no index at all."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(values, dict) or not isinstance(values.get("objects", {}), dict):
        raise ValueError("not the index of a studies folder")
    objects = read_entries(values.get("objects", {}), extensions)
    return own.model_copy(update={"objects": objects})


def read_entries(rows: dict[str, Any], extensions: tuple[str, ...]) -> dict[str, ImageLabelModel]:
    """image id -> entry. Entries that are not plain names or not valid are dropped, and the log names them."""
    objects, dropped = {}, []
    for image_id, row in rows.items():
        try:
            entry = ImageLabelModel.model_validate(row)
        except (ValueError, RecursionError):
            dropped.append(image_id)
            continue
        ext = entry.image.ext
        if not is_name(image_id) or (ext and (ext.lower() not in extensions or not is_name(image_id + ext))):
            dropped.append(image_id)
            continue
        labels = {t: _data(v, image_id + v.ext) for t, v in entry.labels.items() if _is_label(image_id, t, v)}
        dropped += [f"{image_id} ({tag})" for tag in entry.labels.keys() - labels.keys()]
        objects[image_id] = ImageLabelModel(image=_data(entry.image, ""), labels=labels)
    if dropped:
        shown = ", ".join(ascii(name)[:80] for name in dropped[:5])
        logger.error(
            "the index was edited or damaged: %d entries are no plain names and dropped: %s", len(dropped), shown
        )
    return objects


def _is_label(image_id: str, tag: str, label: DataModel) -> bool:
    return is_name(tag) and label.ext.lower() in LABEL_EXTENSIONS and is_name(image_id + label.ext)


def _data(found: DataModel, name: str) -> DataModel:
    """``found`` with an info that JSON can hold and a plain "name" in it. name: the only one allowed, empty for any."""
    info = found.info
    try:
        check_info(info, "info")
        json.dumps(info, allow_nan=False)
    except (InputError, ValueError, RecursionError):
        info = {}
    if "name" in info and (info["name"] != name if name else not is_name(info["name"])):
        info = {key: value for key, value in info.items() if key != "name"} | ({"name": name} if name else {})
    return found if info is found.info else DataModel(ext=found.ext, info=info)


def _state(found: os.stat_result) -> tuple[int, int, int]:
    """A value that changes whenever the file is written or replaced."""
    return found.st_mtime_ns, found.st_ino, found.st_size
