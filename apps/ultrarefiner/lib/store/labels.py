"""The labels of a studies folder.

A save changes four things: the label's file, its entry in the index, the copy of the label before, and the correction
in the journal. All four change, or none. The plan of a save is written into the journal first. A failure in the middle
takes everything back. After a kill, the next change of a label (at the latest the next start) completes the save or
takes it back: ``repair``.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.exception import LabelNotFoundException

from lib.store.index import StudiesIndex
from ultrarefiner_monai.core.files import Undo, all_or_nothing, copy_in, sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies import open_saves as opensaves
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.journal_rows import BESIDE
from ultrarefiner_monai.studies.names import check_info, check_name, split_name
from ultrarefiner_monai.studies.open_saves import Drawn, OpenSave, Plan
from ultrarefiner_monai.studies.versions import Versions
from ultrarefiner_monai.studies.work_folder import LABEL_EXTENSIONS, WorkFolder, leaves

logger = logging.getLogger(__name__)


class Labels(StudiesIndex):
    """The labels and their journal. own_info: keys of a label's info that only the server sets. Clients see them; what
    they send under these keys is ignored."""

    own_info: tuple[str, ...] = ("ts", "name", "confirmed")

    def __init__(
        self,
        studies: str,
        work: WorkFolder,
        extensions: tuple[str, ...],
        auto_reload: bool = True,
        home: Path | None = None,
        journal: JournalQueue | None = None,
    ):
        # Around a final label and what is read of it: outline and author of one label, not of two.
        self.saving = threading.Lock()
        self.journal = journal or JournalQueue(work.journal)
        self.versions = Versions(work)
        self._taken_back: set[int] = set()  # saves that were refused while the journal could not be written
        super().__init__(studies, work, extensions, auto_reload, home)
        try:
            if work.journal.exists():
                with self._changing():
                    self.repair()
        except (sqlite3.Error, OSError, RuntimeError):  # until it works, saving says so
            logger.exception("the journal cannot be read")

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        drawn: Drawn | None = None,
    ) -> str:
        """Store a label losslessly, copied as it is; the label before it is kept. drawn: for the journal, with a final
        label that a clinician made. All of it or nothing: what is raised has changed nothing."""
        self.entry(image_id)
        check_name(label_tag, "tag")
        check_info(label_info, "params")
        name = os.path.basename(label_filename)
        parts = split_name(name, LABEL_EXTENSIONS)
        if parts is None:
            raise InputError(f"a label must end in one of {', '.join(LABEL_EXTENSIONS)} (lossless), got {name}")
        extension = parts[1].lower()
        destination = self.label_file(image_id, label_tag, extension)
        self.journal.flush()  # before the lock: others need not wait for what is queued
        with self._changing():
            self.require_image(image_id)
            self.repair()
            entry = self.entry(image_id).model_copy(deep=True)
            for folder in (destination.parent.parent, destination.parent):  # never the studies, which may be away
                folder.mkdir(exist_ok=True)
            before = entry.labels.get(label_tag)
            info = {**(label_info or {}), "ts": int(time.time()), "name": destination.name}
            after = entry.labels[label_tag] = DataModel(info=info, ext=extension)
            others = [self.label_file(image_id, label_tag, before.ext)] if before and before.ext != extension else []
            with all_or_nothing() as undo:
                staged, former = undo.part(destination), undo.part(destination)
                copy_in(label_filename, staged)
                asides = {path: undo.part(path) for path in others if path.exists()}
                versions = self.versions.next_of(image_id, label_tag, [destination, *asides])
                plan = _plan(label_tag, before, after, staged, destination, former, versions.values(), asides)
                save = self.journal.ask(lambda journal: opensaves.begin(journal, image_id, plan, drawn))
                undo.by(lambda: self._drop(save))
                self.versions.keep(undo, versions)
                undo.keep(destination, former)
                os.replace(staged, destination)
                for path, part in asides.items():
                    undo.set_aside(path, part)
                self._put_undoable(undo, image_id, entry)
                undo.sync()
                self.journal.ask(lambda journal: opensaves.finish(journal, save))
            self.versions.prune(image_id, label_tag)
        return image_id

    def _drop(self, save: OpenSave) -> None:
        self._taken_back.add(save.id)
        self.journal.ask(lambda journal: opensaves.drop(journal, save))
        self._taken_back.discard(save.id)

    def _put_undoable(self, undo: Undo, image_id: str, entry: ImageLabelModel | None) -> None:
        """``_put``, so that ``undo`` brings back the one before, in the file and in memory."""
        index, before = Path(self._datastore_config_path), self._datastore

        def back() -> None:
            self._datastore = before
            self._config_ts = 0.0  # read again by whoever changes it next

        undo.by(back)
        undo.keep(index, undo.part(index))
        self._put(image_id, entry)

    # --- after a kill -------------------------------------------------------------------------------------------------

    def repair(self) -> None:
        """Complete saves that were cut off when the new label was already in its place, and take the others back.

        Called within ``_changing``: nobody else saves at that time."""
        for save in self.journal.ask(opensaves.found):
            if self._datastore.objects.get(save.image_id) is None:
                continue  # it may come back (a PACS that lists nothing for a moment)
            done = save.id not in self._taken_back and self._is_in_place(save)
            outcome = "completed" if done else "taken back"
            logger.warning("the save of label %s of %s was cut off: %s", save.plan.tag, save.image_id, outcome)
            self._settle(save, done)
            end = opensaves.finish if done else opensaves.drop
            self.journal.ask(lambda journal, end=end, save=save: end(journal, save))  # type: ignore[misc]
            self._taken_back.discard(save.id)
            self.versions.prune(save.image_id, save.plan.tag)

    def _is_in_place(self, save: OpenSave) -> bool:
        path = self.label_file(save.image_id, save.plan.tag, save.plan.extension)
        if not path.is_file() or save.plan.inode not in (0, path.stat().st_ino):
            return False
        return sha256_of(path) == save.plan.sha256

    def _settle(self, save: OpenSave, done: bool) -> None:
        """Bring files and index to the state after the save (``done``), or to the state before it."""
        plan, image_id = save.plan, save.image_id
        folder = self.label_file(image_id, plan.tag, plan.extension).parent
        for part, name in plan.aside:
            if done:
                (folder / name).unlink(missing_ok=True)  # a version since before the new label came
            elif (folder / part).exists():
                os.replace(folder / part, folder / name)
        for part in [*plan.parts, *(aside[0] for aside in plan.aside)]:
            (folder / part).unlink(missing_ok=True)
        if not done:
            for version in plan.versions:
                (self.versions.folder(image_id, plan.tag) / version).unlink(missing_ok=True)
        entry = self.entry(image_id).model_copy(deep=True)
        label = plan.after if done else plan.before
        if label is None:
            if not self.label_file(image_id, plan.tag, plan.extension).exists():
                entry.labels.pop(plan.tag, None)
        elif self.label_file(image_id, plan.tag, label["ext"]).exists():
            entry.labels[plan.tag] = DataModel.model_validate(label)
        if entry != self.entry(image_id):
            self._put(image_id, entry)

    # --- the labels before --------------------------------------------------------------------------------------------

    def fitted(self, image_id: str, label: Path) -> Path:
        """The label file to keep for the one that a client sent. It differs where the image changed while the client
        drew."""
        return label

    def keep_version(self, image_id: str, tag: str, label: Path, drawn: Drawn | None, info: dict[str, Any]) -> None:
        """Keep a label as a version, with its correction (``drawn``): it arrived late, and a newer label is in
        place."""
        with self._changing(), all_or_nothing() as undo:
            folder = self.versions.folder(image_id, tag)
            self.work.make(folder)
            version = folder / self.versions.name(image_id, tag, label.name[len(image_id) :])
            undo.by(lambda: version.unlink(missing_ok=True))
            copy_in(label, version)
            if drawn is not None:
                self.journal.ask(lambda journal: opensaves.record(journal, image_id, drawn, {**info, BESIDE: True}))
        self.versions.prune(image_id, tag)

    # --- removing, info -----------------------------------------------------------------------------------------------

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; it is kept as a version."""
        check_name(label_tag, "tag")
        with self._changing():
            self.repair()
            entry = self.entry(label_id).model_copy(deep=True)
            label = entry.labels.pop(label_tag, None)
            if label is None:
                raise LabelNotFoundException(f"{label_id!r} has no label {label_tag!r}")
            with all_or_nothing() as undo:
                self._set_aside(undo, label_id, label_tag, label.ext)
                self._put_undoable(undo, label_id, entry)
                undo.sync()
            self.versions.prune(label_id, label_tag)

    def _set_aside(self, undo: Undo, image_id: str, tag: str, extension: str) -> None:
        """Move a label to the versions."""
        path = self.label_file(image_id, tag, extension)
        self.versions.keep(undo, self.versions.next_of(image_id, tag, [path]))
        if os.path.lexists(path):
            undo.set_aside(path, undo.part(path))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        path = super().get_label_uri(label_id, check_name(label_tag, "tag"))
        self.presence.check(recent=os.path.exists(path))
        if path and leaves(path, [self._datastore_path, self.work.root]):
            raise LabelNotFoundException(f"the label of {label_id!r:.120} is a link that leaves the studies")
        return path

    def open_label(self, label_id: str, label_tag: str) -> tuple[BinaryIO, str]:
        """(the label's file, opened; its name). What is read of it stays one label, also when a new one is saved
        meanwhile. Raises LabelNotFoundException."""
        waits: list[AbstractContextManager[Any]] = [nullcontext(), self._changing()]
        for wait in waits:  # it may be on its way: a save of another type moves the old one
            with wait:
                path = self.get_label_uri(label_id, label_tag)
                with suppress(FileNotFoundError):
                    if path:
                        return open(path, "rb"), os.path.basename(path)
        raise LabelNotFoundException(f"{label_id!r:.120} has no label {label_tag!r:.120}")

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        check_info(info, "info")
        with self._changing():
            self.repair()
            entry = self.entry(label_id).model_copy(deep=True)
            if label_tag not in entry.labels:
                raise LabelNotFoundException(f"{label_id!r} has no label {label_tag!r:.120}")
            entry.labels[label_tag].info.update(info)
            self._put(label_id, entry)


def _plan(
    tag: str,
    before: DataModel | None,
    after: DataModel,
    staged: Path,
    destination: Path,
    former: Path,
    versions: Iterable[Path],
    asides: dict[Path, Path],
) -> Plan:
    sha256 = sha256_of(staged)
    same = destination.is_file() and sha256_of(destination) == sha256
    return Plan(
        tag,
        after.ext,
        sha256,
        inode=staged.stat().st_ino if same else 0,
        before=before.model_dump() if before else None,
        after=after.model_dump(),
        versions=[path.name for path in versions],
        aside=[[part.name, path.name] for path, part in asides.items()],
        parts=[staged.name, former.name],
    )
