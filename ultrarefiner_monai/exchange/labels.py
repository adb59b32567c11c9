"""What goes to the PACS and what comes from it: labels as DICOM SEG and SR, and the SEGs that other viewers store.

A final label of a client is marked before it is sent: a server that dies in between sends it after its next start. A SEG
from the PACS becomes a final label like any other, with its proposal beside it in the journal; it is not sent back.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.seg_reader import SegInfo, read_seg
from ultrarefiner_monai.dicomweb.client import Pacs, PacsError
from ultrarefiner_monai.exchange.inbox import Inbox
from ultrarefiner_monai.exchange.mirror import Mirror
from ultrarefiner_monai.exchange.outbox import Outbox
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.masks.label_values import is_confirmed
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.open_saves import Drawn
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

FINAL = "final"
# In a label's info: when it was stored, where that is not its "ts"; that it is to be sent, or the SOPInstanceUIDs under
# which it was; what a SEG of somebody else said about itself.
STORED, MARK, ORIGIN = "stored", "pacs", "from_pacs"
_TRIES = 3


class Opened(Protocol):
    """An image that was read, and the sha256 of its files."""

    @property
    def image_file(self) -> ImageFile: ...
    @property
    def sha256(self) -> str: ...


class PacsLabels(Protocol):
    """The images of a PACS and their labels. saving: held around a final label and what is read of it."""

    pacs: Pacs
    mirror: Mirror
    saving: threading.Lock

    def list_images(self) -> list[str]: ...
    def image_path(self, image_id: str) -> Path: ...
    def label_and_info(self, image_id: str, tag: str) -> tuple[str, dict[str, Any]]: ...
    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...
    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]: ...
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None: ...
    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        drawn: Drawn | None = None,
    ) -> str: ...
    def keep_version(self, image_id: str, tag: str, label: Path, drawn: Drawn | None, info: dict[str, Any]) -> None: ...


class Exchange:
    """The two boxes of one store. Thread-safe. open_image_file: reads an image, InputError where it cannot be read. taken:
    called with an image whose label came from the PACS; it returns at once."""

    def __init__(
        self,
        store: PacsLabels,
        config: PacsConfig,
        work: WorkFolder,
        open_image_file: Callable[[Path], Opened],
        taken: Callable[[str], None] = lambda _: None,
    ):
        self.store, self.mirror, self.config, self.work = store, store.mirror, config, work
        self.open_image_file, self._taken = open_image_file, taken
        folder = work.exchange
        folder.mkdir(mode=0o700, exist_ok=True)
        self.outbox = Outbox(folder / "outbox", store.pacs.store)
        self.inbox = Inbox(store.pacs, folder / "inbox.json", self._known, self._take, self.outbox.holds)
        self._lock = threading.Lock()
        self._tries: Counter[str] = Counter()
        # (SOPInstanceUID, image) of SEGs that are not kept for all their images
        self._kept: set[tuple[str, str]] = set()
        self.refused = 0
        self._maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exchange")

    def start(self) -> None:
        """Send and look in the background; by the process that serves, not by those that train."""
        self.outbox.start()
        self.inbox.start(self.config.poll_seconds, also=self._catch_up)

    def status(self) -> dict[str, Any]:
        """For /info/: what waits to be stored, and why; how many final labels cannot be (their info says why)."""
        return {"waiting": len(self.outbox.waiting), "problem": self.outbox.problem, "refused": self.refused}

    # --- to the PACS --------------------------------------------------------------------------------------------------

    def mark(self, info: dict[str, Any]) -> dict[str, Any]:
        """``info`` of a final label that is about to be saved, with the mark that it has to be sent where configured:
        the time, so that the SEG of what is newest here is the newest there."""
        return {**info, MARK: {"send": datetime.now().astimezone().isoformat()}} if self.config.store else info

    def saved(self, image_id: str) -> None:
        """A client saved a final label: put it into the outbox where that is configured. Returns at once: the objects of
        a long cine take seconds."""
        if self.config.store:
            self._maker.submit(self._make, image_id)

    def _make(self, image_id: str) -> None:
        try:
            self._send_marked(image_id)
        except Exception as error:  # the label is saved and marked: it is tried again
            level = logging.WARNING if isinstance(error, InputError) else logging.ERROR
            logger.log(level, "the label of %s is sent later: %s", image_id, error, exc_info=level == logging.ERROR)

    def send(self, image_id: str, tag: str = FINAL, sr: bool | None = None) -> dict[str, Any]:
        """Put a label into the outbox as a SEG (and an SR; by default as configured), to be sent in the background.

        Raises InputError for a label that cannot be one, PacsError when the image is not here and cannot be fetched, and
        what the store raises where there is no such label.
        """
        with self._lock:  # one label, one mark
            return self._put(image_id, tag, self.config.sr if sr is None else sr)

    def _put(self, image_id: str, tag: str, sr: bool) -> dict[str, Any]:
        from ultrarefiner_monai.dicom.seg import make_seg
        from ultrarefiner_monai.dicom.sr import make_sr

        image_file = self.open_image_file(self.store.image_path(image_id)).image_file
        files = self.mirror.files(image_id)
        with self.store.saving:  # outline and author of one label, not of two
            path, info = self.store.label_and_info(image_id, tag)
            mask = read_mask(path, image_file, confirmed=is_confirmed(info))
        options = self._origin(image_id, tag, info)
        seg = make_seg(mask, files, **options)
        report = make_sr(mask, files, seg, **options) if sr else None
        self.outbox.put(*([seg] if report is None else [seg, report]))
        mark = {"seg": str(seg.SOPInstanceUID)} | ({"sr": str(report.SOPInstanceUID)} if report is not None else {})
        with self.store.saving:
            now = self.store.label_and_info(image_id, tag)[1]
            if (now.get(MARK), now.get("ts")) == (info.get(MARK), info.get("ts")):  # else a newer one has its own mark
                self.store.update_label_info(image_id, tag, {MARK: mark})
        return {"image": image_id, "tag": tag, **mark, **self.status()}

    def _origin(self, image_id: str, tag: str, info: dict[str, Any]) -> dict[str, Any]:
        """Who made the label, in the words of make_seg."""
        journal = Journal(self.work.journal)
        try:
            proposal = journal.newest_proposal(image_id)
        finally:
            journal.close()
        model, version = proposal or (str(info.get("model") or ""), "")
        author = str(info.get("user") or info.get("client_id") or "")
        made = "AUTOMATIC" if tag != FINAL else "SEMIAUTOMATIC" if proposal or model else "MANUAL"
        who = "" if made == "AUTOMATIC" else author
        return {"algorithm_name": model, "version": version, "made": made, "author": who, "time": _time(info)}

    def _send_marked(self, image_id: str) -> None:
        """Send the final label unless that was done: of two saved at once, the newer one goes, once."""
        with self._lock:
            if _marked(self.store.get_label_info(image_id, FINAL)):
                self._put(image_id, FINAL, self.config.sr)

    def _catch_up(self) -> None:
        """Final labels that were saved but did not come into the outbox: a server that died, an image not at hand."""
        if not self.config.store:
            return
        refused = 0
        for image_id in self.store.list_images():
            mark = self.store.get_label_info(image_id, FINAL).get(MARK)
            refused += isinstance(mark, dict) and "problem" in mark
            if not _marked({MARK: mark}):
                continue
            try:
                self._send_marked(image_id)
                self._tries.pop(image_id, None)
            except (PacsError, OSError) as error:
                logger.warning("the label of %s is sent later: %s", image_id, error)
            except Exception as error:
                self._tries[image_id] += 1  # the series may have changed just then
                logger.error("the label of %s cannot be sent: %s", image_id, error)
                if (
                    self._tries[image_id] >= _TRIES
                ):  # it would fail again and again: not tried any more, unless on demand
                    self.store.update_label_info(image_id, FINAL, {MARK: {"problem": str(error)[:500]}})
        self.refused = refused

    # --- from the PACS ------------------------------------------------------------------------------------------------

    def _known(self) -> set[str]:
        listed = set(self.store.list_images())
        images = [image for image_id, image in self.mirror.images.items() if image_id in listed]
        return {uid for i in images for uid in (i.series.study_uid, i.series.uid, i.sop) if uid}

    def _take(self, dataset: Any, info: SegInfo, when: datetime) -> None:
        """A new SEG of somebody else: the final label of each image that it was drawn on."""
        targets = [image_id for uid in info.referenced_series for image_id in self._images(uid, info)]
        if not targets:
            raise InputError("it names no image of ours")
        # All is read before anything is kept; where keeping fails, what was kept before is not kept again.
        masks = {i: self._read(dataset, i, info) for i in targets if not self._is_kept(i, info)}
        for image_id, mask in masks.items():
            self._keep(image_id, mask, info, when)
            self._kept.add((info.sop_uid, image_id))
        self._kept -= {(info.sop_uid, image_id) for image_id in targets}

    def _is_kept(self, image_id: str, info: SegInfo) -> bool:
        told = self.store.get_label_info(image_id, FINAL).get(ORIGIN)
        return (info.sop_uid, image_id) in self._kept or (
            isinstance(told, dict) and told.get("sop_uid") == info.sop_uid
        )

    def _read(self, dataset: Any, image_id: str, info: SegInfo) -> np.ndarray:
        """(T, H, W): what the SEG says of one image."""
        here = self.mirror.images[image_id].series.uid
        siblings = set(self.mirror.split(here)) - {image_id}
        elsewhere = siblings.union(*(sops for uid, sops in info.referenced_series.items() if uid != here))
        try:
            return read_seg(dataset, self.mirror.files(image_id), elsewhere)
        except PacsError:
            raise
        except InputError:
            # The series may have grown since the list was read.
            if not self.mirror.update():
                raise
            return read_seg(dataset, self.mirror.files(image_id), elsewhere)

    def _images(self, series_uid: str, info: SegInfo) -> list[str]:
        if series_uid in self.mirror.images:
            try:
                self.store.image_path(series_uid)
                return [series_uid]
            except PacsError:
                raise
            except InputError:  # it turned out to be several images
                if not self.mirror.split(series_uid):
                    raise
        return sorted(set(self.mirror.split(series_uid)) & info.referenced)

    def _keep(self, image_id: str, mask: np.ndarray, info: SegInfo, when: datetime) -> None:
        try:
            opened = self.open_image_file(self.mirror.open(image_id))
        except PacsError:
            raise
        except InputError as error:  # its files are changing just now: no reason to refuse the segmentation for ever
            raise RuntimeError(str(error)) from error
        told = {**info.to_dict(), "noticed": datetime.now().astimezone().isoformat(timespec="seconds")}
        client = info.model_name or info.manufacturer
        values = {"user": info.author, "client_id": client, ORIGIN: told, STORED: when.timestamp()}
        self.work.make(self.work.tmp)
        with tempfile.TemporaryDirectory(dir=self.work.tmp) as name:
            path = Path(name, f"{image_id}.nii.gz")
            write_mask(path, mask, opened.image_file)
            drawn = Drawn(opened.sha256, mask)
            with self.store.saving:
                newest = self._stored(image_id)
                if newest is not None and when.timestamp() < newest:
                    self.store.keep_version(image_id, FINAL, path, drawn, values)
                    logger.info(
                        "segmentation %s of %s is older than the final label: kept beside", info.sop_uid, image_id
                    )
                else:
                    self.store.save_label(image_id, str(path), FINAL, values, drawn)
                    logger.info("segmentation %s is the final label of %s now", info.sop_uid, image_id)
        self._taken(image_id)

    def _stored(self, image_id: str) -> float | None:
        """When the final label was stored, None where there is none."""
        if not self.store.get_label_uri(image_id, FINAL):
            return None
        info = self.store.get_label_info(image_id, FINAL)
        stored = info.get(STORED, info.get("ts"))
        return float(stored) if isinstance(stored, (int, float)) else None


def _marked(info: dict[str, Any]) -> bool:
    return isinstance(info.get(MARK), dict) and bool(info[MARK].get("send"))


def _time(info: dict[str, Any]) -> datetime | None:
    """When a label was saved."""
    if _marked(info):
        return datetime.fromisoformat(str(info[MARK]["send"]))
    saved = info.get("ts")
    return datetime.fromtimestamp(saved) if isinstance(saved, (int, float)) else None
