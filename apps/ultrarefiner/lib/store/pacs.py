"""A DICOMweb store as studies. The list comes from the store; images are fetched when they are opened; labels lie here.

Index, labels, their versions and the journal are those of a studies folder (``lib.store.datastore``), in the work
folder. MONAI Label's own DICOMWebDatastore is not used: it lists CT, keeps lists for two hours, and downloads tools at
its start.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.store.datastore import StudiesFolder
from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.messages import public
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.pictures import split_message
from ultrarefiner_monai.dicomweb.client import Pacs, PacsError
from ultrarefiner_monai.exchange.frame_orders import FRAMES, FrameOrders, fit_label, is_stale, write_moved
from ultrarefiner_monai.exchange.labels import MARK, ORIGIN, STORED
from ultrarefiner_monai.exchange.mirror import Mirror, MirrorImage
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.open_saves import Drawn
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

# Who asks for a list waits so long for a new one, then gets the one before.
PATIENCE_SECONDS = 10
# A list that takes longer is only looked for every poll_seconds and, so that the store can do something else, ten times
# as long as it took.
_SLOW_SECONDS = 5.0
_NAMES_SECONDS = 60.0
# While the store is away: the pause until it is tried again, doubled up to poll_seconds.
_FIRST_PAUSE_SECONDS = 2.0


class PacsStudies(StudiesFolder):
    """The images of ``pacs``. Its list is asked for every ``poll_seconds``, and when a client asks for it."""

    own_info = (*StudiesFolder.own_info, FRAMES, STORED, MARK, ORIGIN)

    def __init__(
        self,
        pacs: Pacs,
        work: WorkFolder,
        config: PacsConfig,
        extensions: tuple[str, ...],
        readable: Callable[[Path], Any],
        limits: Limits | None = None,
        journal: JournalQueue | None = None,
    ):
        self.pacs, self.config, self.limits = pacs, config, limits
        self.mirror = Mirror(pacs, work.mirror, config)
        self._refused: dict[str, MirrorImage] = {}
        self._published: dict[str, MirrorImage] | None = None
        self._wake, self._state, self._begun = threading.Event(), threading.Condition(), 0.0
        self._took = 0.0
        self._naming = threading.Lock()
        self._named: tuple[float, Mapping[str, Mapping[str, str]], str] | None = None
        self._thread: threading.Thread | None = None
        self._orders = FrameOrders()
        super().__init__(str(work.mirror), work, extensions, readable, False, home=work.root, journal=journal)

    def name(self) -> str:
        return self.pacs.url

    # --- the list -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch the store, in a thread; a store that is away does not stop the server."""
        self._thread = threading.Thread(target=self._watch, name="pacs", daemon=True)
        self._thread.start()

    def fresh(self) -> None:
        """Wait until the list is new. Returns at once where the store is known to be away or slow, or nobody
        watches."""
        now = time.monotonic()
        if self._thread is None or self.mirror.problem or self._took > _SLOW_SECONDS:
            return
        self._wake.set()
        with self._state:
            self._state.wait_for(lambda: self._begun >= now, PATIENCE_SECONDS)

    def _watch(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._wake.clear()
            begun = time.monotonic()
            try:
                self.mirror.update()
                pause = _FIRST_PAUSE_SECONDS
            except PacsError:
                pause = min(2 * pause, self.config.poll_seconds)
            except Exception:
                logger.exception("the list of %s cannot be brought up to date", self.pacs.host)
            try:
                self._follow()
            except OSError:
                logger.exception("the index cannot be written")
            with self._state:
                self._begun, self._took = begun, time.monotonic() - begun
                self._state.notify_all()
            self.mirror.compare()
            self._wake.wait(pause if self.mirror.problem else max(self.config.poll_seconds, 10 * self._took))

    def _follow(self) -> None:
        """Bring the index in line with the mirror's list."""
        if self._published is not self.mirror.images:
            self.refresh()

    def _find_images(self, before: dict[str, ImageLabelModel]) -> dict[str, ImageLabelModel]:
        images = self.mirror.images
        objects = {}
        for image_id, image in images.items():
            known = {
                "name": image_id,
                "SeriesInstanceUID": image.series.uid,
                "StudyInstanceUID": image.series.study_uid,
                "StudyDate": image.series.date,
                "Modality": image.series.modality,
                "SeriesDescription": image.series.description,
                "instances": 1 if image.sop else image.series.instances,
            }
            info = before[image_id].image.info if image_id in before else {"ts": int(time.time())}
            objects[image_id] = ImageLabelModel(image=DataModel(info={**info, **known}, ext=""))
        self._published = images
        return objects

    def names(self) -> tuple[Mapping[str, Mapping[str, str]], str]:
        """(StudyInstanceUID -> what the store says of the study, why that is nothing). Kept in memory alone, for a minute."""
        with self._naming:
            if self._named is None or time.monotonic() - self._named[0] > _NAMES_SECONDS:
                shown = {image.series.study_uid for image in self.mirror.images.values()}
                found: dict[str, dict[str, str]] = {}
                problem = ""
                try:
                    for modality in self.config.modality:
                        told = self.pacs.studies({"ModalitiesInStudy": modality, **self.config.filters})
                        found |= {uid: words for uid, words in told.items() if uid in shown}
                except PacsError as error:
                    problem = f"The names of the patients are missing: {public(str(error))}"
                self._named = (time.monotonic(), found, problem)
            return self._named[1], self._named[2]

    def contact(self) -> dict[str, Any]:
        """For /info/: whether the store answers."""
        asked, problem = int(self.mirror.asked) or None, self.mirror.problem
        return {"url": self.pacs.url, "reachable": not problem, "problem": problem, "asked": asked}

    # --- images -------------------------------------------------------------------------------------------------------

    def entry(self, image_id: str) -> ImageLabelModel:
        """As in a folder; InputError for a series whose pictures are images by themselves."""
        try:
            return super().entry(image_id)
        except ImageNotFoundException:
            sops = self.mirror.split(image_id) if isinstance(image_id, str) else ()
            if sops:
                raise InputError(split_message(image_id, sops)) from None
            raise

    def image_path(self, image_id: str) -> Path:
        """The folder with the DICOM files of an image, fetched when they are not there. Raises as ``Mirror.open``."""
        self.entry(image_id)
        self.presence.check(recent=True)
        try:
            folder = self.mirror.open(image_id)
        except KeyError:
            raise ImageNotFoundException(f"there is no image {image_id!r:.120} in the PACS any more") from None
        finally:
            self._follow()  # it may have turned out to be several images
        self._align(image_id, folder)
        return folder

    def require_image(self, image_id: str) -> None:
        """As in a folder: the store lists it, and its files are in the mirror, fetched where they are not."""
        self.presence.check()
        self.entry(image_id)
        if not (self.mirror.folder / "images" / image_id).is_dir():
            self.mirror.open(image_id)

    def client_path(self, image_id: str) -> Path:
        """The NIfTI file that clients get of an image, made when it is not there. Raises as ``image_path``."""
        self.image_path(image_id)
        return self.mirror.nifti(image_id, self.limits)

    def get_image_uri(self, image_id: str) -> str:
        return str(self.client_path(image_id))

    def is_readable(self, image_id: str) -> bool:
        """As in a folder. While the store is away, only what is on this disk can be read."""
        image = self.mirror.images.get(image_id)
        if image is None or self._refused.get(image_id) == image:
            return False
        if self.mirror.problem and not self.mirror.cached(image_id):
            return False
        try:
            return super().is_readable(image_id)
        except PacsError as error:
            logger.warning("%s is not offered: %s", image_id, error)
        except InputError as error:
            logger.warning("%s is not offered: %s", image_id, error)
            self._refused[image_id] = image
        return False

    # --- labels of a series that grows --------------------------------------------------------------------------------

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        drawn: Drawn | None = None,
    ) -> str:
        """As in a folder. The info also keeps the frames that the label was drawn on."""
        order = self._orders.of(image_id, self.mirror.folder / "images" / image_id)
        info = {**(label_info or {}), FRAMES: list(order)} if order else label_info
        return super().save_label(image_id, label_filename, label_tag, info, drawn)

    def fitted(self, image_id: str, label: Path) -> Path:
        """A label that came from a client who was shown the series before it grew: on the frames that it has now."""
        return fit_label(label, self.mirror.folder / "images" / image_id, self._orders.known(image_id), self.limits)

    def _align(self, image_id: str, folder: Path) -> None:
        """Labels that were drawn before the series changed follow their frames; those before are kept as versions."""
        order = self._orders.of(image_id, folder)
        if not any(is_stale(label.info.get(FRAMES), order) for label in self.entry(image_id).labels.values()):
            return
        with self._changing():  # not twice, by another process
            for tag, label in self.entry(image_id).labels.items():
                if not is_stale(label.info.get(FRAMES), order):
                    continue
                before = label.info[FRAMES]
                with tempfile.TemporaryDirectory(dir=self.work.root) as name:
                    path = Path(name, f"{image_id}.nii.gz")
                    try:
                        old = self.label_file(image_id, tag, label.ext)
                        whole = write_moved(old, folder, before, order, path, self.limits)
                    except InputError as error:
                        logger.error("label %s of %s cannot follow its frames: %s", tag, image_id, error)
                        self.update_label_info(image_id, tag, {FRAMES: []})
                        continue
                    info = {STORED: label.info.get("ts"), **label.info}  # moving it makes it no newer
                    super().save_label(image_id, str(path), tag, {**info, FRAMES: list(order)})
                logger.log(
                    logging.INFO if whole else logging.ERROR,
                    "series %s has changed: its label %s follows its frames%s",
                    image_id,
                    tag,
                    "" if whole else "; of those that are gone it is kept in versions/ only",
                )

    def label_and_info(self, image_id: str, tag: str) -> tuple[str, dict[str, Any]]:
        """A label's file and its info; LabelNotFoundException where there is none."""
        info = self.get_label_info(image_id, tag)
        path = self.get_label_uri(image_id, tag)
        if not path:
            raise LabelNotFoundException(f"{image_id!r} has no label {tag!r:.120}: save one first")
        return path, info

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Final labels and their images as clients get them; with ``full_path`` the images are fetched."""
        pairs = []
        for image_id in self.get_labeled_images():
            label = self.get_label_uri(image_id, DefaultLabelTag.FINAL.value)
            image = self.get_image_uri(image_id) if full_path else f"nifti/{image_id}.nii.gz"
            pairs.append({"image": image, "label": label if full_path else f"labels/final/{Path(label).name}"})
        return pairs

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise InputError("the studies are those of the PACS: store the image there, or upload it as a session")

    def remove_image(self, image_id: str) -> None:
        self.entry(image_id)
        raise InputError("the images are the PACS's own: remove it there; `ultrarefiner forget` removes what lies here")
