"""A DICOMweb store as studies: the list comes from the store, images are fetched when they are opened, labels lie here.

Index, labels, their versions and the journal are those of a studies folder (``lib.datastore``), in the work folder.
MONAI Label's own DICOMWebDatastore is not used: it lists CT, keeps lists for two hours, and downloads tools at its start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.datastore import StudiesFolder
from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.data.study import Limits
from ultrarefiner_monai.pacs.client import Pacs, PacsError
from ultrarefiner_monai.pacs.mirror import Mirror, MirrorImage, split_message
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import WorkFolder

logger = logging.getLogger(__name__)

# Who asks for a list waits so long for a new one, then gets the one before.
PATIENCE_SECONDS = 10
# A list that takes longer is only looked for every poll_seconds and, so that the store can do something else, ten times
# as long as it took.
_SLOW_SECONDS = 5.0
# While the store is away: the pause until it is tried again, doubled up to poll_seconds.
_FIRST_PAUSE_SECONDS = 2.0


class PacsStudies(StudiesFolder):
    """The images of ``pacs``. Its list is asked for every ``poll_seconds``, and when a client asks for it."""

    def __init__(
        self,
        pacs: Pacs,
        work: WorkFolder,
        config: PacsConfig,
        extensions: tuple[str, ...],
        readable: Callable[[Path], Any],
        limits: Limits | None = None,
    ):
        self.pacs, self.config, self.limits = pacs, config, limits
        self.mirror = Mirror(pacs, work.mirror, config)
        self._refused: dict[str, MirrorImage] = {}
        self._published: dict[str, MirrorImage] | None = None
        self._wake, self._state, self._begun = threading.Event(), threading.Condition(), 0.0
        self._took = 0.0
        self._thread: threading.Thread | None = None
        super().__init__(str(work.mirror), work, extensions, readable, auto_reload=False, home=work.root)

    def name(self) -> str:
        return self.pacs.url

    # --- the list -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch the store, in a thread; a store that is away does not stop the server."""
        self._thread = threading.Thread(target=self._watch, name="pacs", daemon=True)
        self._thread.start()

    def fresh(self) -> None:
        """Wait until the list is new. Returns at once where the store is known to be away or slow, or nobody watches."""
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

    def contact(self) -> dict[str, Any]:
        """For /info/: how the store does."""
        asked = int(self.mirror.asked) or None
        return {
            "url": self.pacs.url,
            "reachable": not self.mirror.problem,
            "problem": self.mirror.problem,
            "asked": asked,
        }

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
        try:
            return self.mirror.open(image_id)
        except KeyError:
            raise ImageNotFoundException(f"there is no image {image_id!r:.120} in the PACS any more") from None
        finally:
            self._follow()  # it may have turned out to be several images

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
