"""The images of a DICOMweb store on this disk: the list as it was last seen, and the series that were opened.

A series whose pictures have one size is one image, named by its SeriesInstanceUID. One of several sizes is as many images
as it has pictures, named by their SOPInstanceUIDs; that shows when it is opened first. Below ``folder``:

list.json           the list, so that a start without the store knows its images
series/SERIES/      the files as the store holds them, SOPInstanceUID.dcm     nifti/IMAGE.nii.gz   for clients
images/IMAGE/       the pictures among them (links): what is read as one image
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.pictures import no_picture_message, pictures_of, split_message
from ultrarefiner_monai.dicom.series import dicom_files, sort_instances
from ultrarefiner_monai.dicomweb.client import Pacs, PacsError, SeriesInfo, check_uid
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_frames

logger = logging.getLogger(__name__)

_IN_TURN = 5
_LEFT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class MirrorImage:
    """One image. sop: the instance that it is, None for a whole series."""

    series: SeriesInfo
    sop: str | None = None

    @property
    def id(self) -> str:
        return self.sop or self.series.uid


class Mirror:
    """Thread-safe. ``problem``: why the store could not be asked the last time, else empty."""

    def __init__(self, pacs: Pacs, folder: Path, config: PacsConfig):
        self.pacs, self.folder, self.config = pacs, folder, config
        self.problem, self.asked = "", 0.0
        self._lock = threading.RLock()
        self._series_locks: dict[str, threading.Lock] = {}
        # Series -> (instances it was listed with, when it was compared with the store).
        self._verified: dict[str, tuple[int, float]] = {}
        self._compared: dict[str, float] = {}
        self._listed: dict[str, SeriesInfo] = {}
        self._splits: dict[str, tuple[str, ...]] = {}
        self._images: dict[str, MirrorImage] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for kind in ("series", "images"):
            for left in (folder / kind).glob(".part-*"):  # of a process that was killed; younger ones may be of one
                with contextlib.suppress(OSError):  # that fetches: trainings open the mirror too
                    if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                        shutil.rmtree(left)
        self._load()

    # --- the list -----------------------------------------------------------------------------------------------------

    @property
    def images(self) -> dict[str, MirrorImage]:
        """By id, as the store was last seen. A new dict after each change; never changed itself."""
        return self._images

    def split(self, series_uid: str) -> tuple[str, ...]:
        """The images that a series of several sizes is listed as; empty for any other."""
        return self._splits.get(series_uid, ())

    def update(self) -> bool:
        """Ask the store for its list; whether it changed. Raises PacsError, and ``problem`` says so until it answers."""
        found: dict[str, SeriesInfo] = {}
        try:
            for modality in self.config.modality:
                for info in self.pacs.series({"Modality": modality, **self.config.filters}):
                    # Stores differ in what they make of a filter.
                    if info.modality in ("", modality):
                        found[info.uid] = info
        except PacsError as error:
            if not self.problem:
                count = len(self._images)
                logger.warning("%s. The %d images listed before stay; those on this disk can be used", error, count)
            self.problem = str(error)
            raise
        if self.problem:
            logger.warning("%s answers again", self.pacs.host)
        self.problem, self.asked = "", time.time()
        with self._lock:
            before = self._listed
            self._splits = {uid: sops for uid, sops in self._splits.items() if uid in found}
            if found == before:
                return False
            grown = [u for u in self._splits if u in before and found[u].instances != before[u].instances]
            self._listed = found
            self._publish()
        logger.info("%s lists %d series", self.pacs.host, len(found))
        for uid in grown:
            try:
                with self._series_lock(uid):
                    self._bring(found[uid])
            except InputError as error:
                logger.warning("series %s: %s", uid, error)
        return True

    def compare(self) -> None:
        """Compare a few of the series that lie here with the store, in turn: an instance may have been replaced by another,
        and the list shows only how many there are. Never raises: nobody waits for it."""
        if self.problem:
            return
        here = [uid for uid in self._listed if (self.folder / "series" / uid).is_dir()]
        for uid in sorted(here, key=lambda uid: self._compared.get(uid, 0.0))[:_IN_TURN]:
            self._compared[uid] = time.monotonic()
            try:
                with self._series_lock(uid):
                    if (self.folder / "series" / uid).is_dir():  # not pruned or forgotten meanwhile
                        self._bring(self._listed[uid])
            except (InputError, KeyError) as error:  # KeyError: not listed any more
                logger.info("series %s is compared later: %s", uid, error)
                if isinstance(error, PacsError) and error.transient:
                    return
            except Exception:  # a damaged header makes pydicom raise anything
                logger.exception("series %s cannot be compared", uid)

    def _publish(self) -> None:
        images = {}
        for uid in sorted(self._listed):
            for image_id in self._splits.get(uid) or (uid,):
                images[image_id] = MirrorImage(self._listed[uid], None if image_id == uid else image_id)
        self._images = images
        state = {"series": [dataclasses.asdict(s) for s in self._listed.values()], "splits": self._splits}
        with replacing(self.folder / "list.json", "w") as file:
            json.dump(state, file)

    def _load(self) -> None:
        path = self.folder / "list.json"
        if not path.is_file():
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            listed = [SeriesInfo(**entry) for entry in state["series"]]
            splits = {check_uid(u): tuple(check_uid(s) for s in sops) for u, sops in state["splits"].items()}
            self._listed = {check_uid(info.uid): info for info in listed}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is damaged (%s): the list starts empty until the store answers", path, error)
            return
        self._splits = {uid: sops for uid, sops in splits.items() if uid in self._listed}
        self._publish()

    # --- images -------------------------------------------------------------------------------------------------------

    def cached(self, image_id: str) -> bool:
        """Whether the image can be opened without the store."""
        return (self.folder / "images" / image_id).is_dir()

    def open(self, image_id: str) -> Path:
        """The folder with the DICOM files of an image, fetched when they are not there or the series has changed.

        Raises KeyError for an image that is not listed; InputError for a series without pictures, and for one of several
        sizes; PacsError when the store fails and nothing is cached.
        """
        image = self._images[image_id]
        info, folder = image.series, self.folder / "images" / image_id
        with self._series_lock(info.uid):
            if not (folder.is_dir() and self._is_current(info)):
                try:
                    self._bring(info)
                except PacsError as error:
                    if not folder.is_dir():
                        raise
                    logger.warning("%s is used as it was fetched before: %s", image_id, error)
        if not folder.is_dir():
            sops = self._splits.get(info.uid, ())
            if image_id == info.uid and sops:
                raise InputError(split_message(image_id, sops))
            raise PacsError(f"{self.pacs.host} has no instance {image_id} (any more); reload the list", False, 404)
        with contextlib.suppress(OSError):  # when it was used last, for _prune
            os.utime(folder, ns=(time.time_ns(), folder.stat().st_mtime_ns))
        return folder

    def files(self, image_id: str) -> list[Path]:
        """The files of an image in the order of its frames; raises as ``open``."""
        return sort_instances(dicom_files(self.open(image_id)))

    def nifti(self, image_id: str, limits: Limits | None = None) -> Path:
        """The image for clients: uint8 luminance on the grid and with the geometry of ``read_image_file(open(image_id))``."""
        folder = self.open(image_id)
        path = self.folder / "nifti" / f"{image_id}.nii.gz"
        with self._series_lock(self._images[image_id].series.uid):
            if not path.is_file():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                with replacing(path) as file:
                    write_frames(file, read_image_file(folder, limits))
        return path

    def _series_lock(self, uid: str) -> threading.Lock:
        with self._lock:
            return self._series_locks.setdefault(uid, threading.Lock())

    def _is_current(self, info: SeriesInfo) -> bool:
        """Whether as many files lie here as the store lists. Where it lists none, or a wrong number, it is asked now and
        then."""
        if info.instances and len(list((self.folder / "series" / info.uid).glob("*.dcm"))) == info.instances:
            return True
        count, when = self._verified.get(info.uid, (-1, 0.0))
        return count == info.instances and time.monotonic() - when < self.config.poll_seconds

    def _bring(self, info: SeriesInfo) -> None:
        """Fetch what is missing of a series and sort it into images; the caller holds the series' lock."""
        source = self.folder / "series" / info.uid
        try:
            files = self.pacs.fetch_series(info.study_uid, info.uid, source, self.config.mirror_mb << 20)
            pictures, others = pictures_of(files)
            sizes = set(pictures.values())
            if not pictures:
                raise InputError(no_picture_message(info.uid, others))
            sops = tuple(sorted(path.stem for path in pictures)) if len(sizes) > 1 else ()
            if sops:
                for path in pictures:
                    self._link(path.stem, [path])
                shutil.rmtree(self.folder / "images" / info.uid, ignore_errors=True)
            else:
                self._link(info.uid, list(pictures))
        except OSError as error:
            raise PacsError(f"series {info.uid} cannot be kept in {self.folder}: {error}", transient=False) from error
        self._verified[info.uid] = (info.instances, time.monotonic())
        with self._lock:
            if self._splits.get(info.uid, ()) != sops and info.uid in self._listed:
                self._splits.pop(info.uid, None)
                self._splits |= {info.uid: sops} if sops else {}
                self._publish()
        self._prune(keep=info.uid)

    def _link(self, image_id: str, files: list[Path]) -> None:
        """``images/IMAGE`` with these files and no others; the NIfTI made from those before is gone."""
        folder = self.folder / "images" / image_id
        before = {p.name: p.stat().st_ino for p in folder.glob("*.dcm")} if folder.is_dir() else None
        if before == {p.name: p.stat().st_ino for p in files}:
            return
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        for path in files:
            try:
                os.link(path, part / path.name)
            except OSError:  # no hard links here
                shutil.copy2(path, part / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(part, folder)
        (self.folder / "nifti" / f"{image_id}.nii.gz").unlink(missing_ok=True)

    def _prune(self, keep: str) -> None:
        """Keep the mirror within ``mirror_mb``: the series used longest ago go, never ``keep``."""
        used: list[tuple[float, int, str]] = []
        for source in (self.folder / "series").glob("[0-9]*"):
            ids = self._splits.get(source.name) or (source.name,)
            folders = [f for f in (self.folder / "images" / i for i in ids) if f.is_dir()]
            niftis = [self.folder / "nifti" / f"{i}.nii.gz" for i in ids]
            size = sum(p.stat().st_size for p in (*source.glob("*.dcm"), *niftis) if p.is_file())
            when = max((f.stat().st_atime for f in folders), default=source.stat().st_mtime)
            used.append((when, size, source.name))
        over = sum(size for _, size, _ in used) - (self.config.mirror_mb << 20)
        for _, size, uid in sorted(used):
            if over <= 0:
                return
            lock = self._series_lock(uid)
            if uid != keep and lock.acquire(blocking=False):  # else it is being fetched just now
                try:
                    for image_id in self._splits.get(uid) or (uid,):
                        shutil.rmtree(self.folder / "images" / image_id, ignore_errors=True)
                        (self.folder / "nifti" / f"{image_id}.nii.gz").unlink(missing_ok=True)
                    shutil.rmtree(self.folder / "series" / uid, ignore_errors=True)
                finally:
                    lock.release()
                over -= size
