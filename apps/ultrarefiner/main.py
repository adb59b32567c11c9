"""The MONAI Label app: it connects MONAI Label with the package. In the order of the data's way:

studies        ``lib.store``    a folder, or a PACS
tasks          ``lib.tasks``    an image and clicks -> an outline; final labels -> a new model
saved labels   ``lib.store``    labels, and the journal of corrections
next sample    ``lib.tasks``    which image is labelled next
server         ``lib.startup``  the routes (``lib.routes``), and the exchange with the PACS

Research use only. Not a medical device.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import anyio
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

import ultrarefiner_monai
from lib.information import completed
from lib.store.datastore import StudiesFolder, journal_saved
from lib.store.pacs import PacsStudies
from lib.store.sessions import SessionStore
from lib.tasks.answers import Engine
from lib.tasks.background import Background
from lib.tasks.infers import LesionTask, Outline, make_tasks
from lib.tasks.learner import Learner
from lib.tasks.mistakes import MistakesKeeper
from lib.tasks.prepare import Preparer
from lib.tasks.progress import ProgressKeeper
from lib.tasks.quick import QuickWorker
from lib.tasks.scoring import Scorer
from lib.tasks.served import Served
from lib.tasks.strategies import Sampler, choose, make_strategies
from lib.tasks.trainers import make_trainers
from ultrarefiner_monai.config import serve_config
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import LABELS, NOTICE
from ultrarefiner_monai.dicom.series import sha256_of_image
from ultrarefiner_monai.dicomweb.client import Pacs
from ultrarefiner_monai.exchange.labels import Exchange
from ultrarefiner_monai.masks.label_values import is_confirmed
from ultrarefiner_monai.studies.availability import MARK_VARIABLE
from ultrarefiner_monai.studies.corrections import Labelled
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.names import check_name
from ultrarefiner_monai.studies.watch import Watch
from ultrarefiner_monai.studies.work_folder import WorkFolder, is_address

logger = logging.getLogger(__name__)

_SAVES_AT_ONCE = 4


class UltraRefinerApp(MONAILabelApp):
    """Outlines breast lesions on ultrasound images: coarse network, prompts from it, SAM, safety net."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str] | None):
        self.config = serve_config(Path(app_dir, "config.yaml"), conf)
        for name in ("ultrarefiner_monai", "lib"):
            logging.getLogger(name).setLevel(self.config.log_level)
        # First: an address with a password in it is refused before it is written down.
        self.pacs = Pacs.of(studies, self.config.pacs) if is_address(studies) else None
        # A process that the server started: where the work folder is gone, it does not begin another one.
        self.work = (WorkFolder.existing if MARK_VARIABLE in os.environ else WorkFolder.of)(
            studies, self.config.work_dir
        )
        self.watch: Watch | None = None
        if self.config.work_dir or is_address(studies):
            self.work.note_studies(studies)
        self.journal = JournalQueue(self.work.journal)
        self.exchange: Exchange | None = None
        self.trainings = Background("train", self._training_failed)
        self.batches = Background("batch_infer")
        self.served = Served(Path(app_dir), self.config, self.work)
        self.engine = Engine(self.served, self.config, self.work, self.journal)
        self.preparer = Preparer(self.engine, self.config.prepare)
        self.progress = ProgressKeeper(self.work.journal, MistakesKeeper(self.work.journal, self._pair_of))
        self.scorer = Scorer(self.engine, self.preparer, self.datastore, self.config.prepare)
        self.sampler = Sampler(self.scorer, self.config.learning)
        self.learner = Learner(
            self.config.learning,
            self.work,
            self.journal,
            self.served,
            self.preparer,
            self.trainings,
            lambda: self._trainers,
            quick=QuickWorker(self.config, self.work, studies, self.served),
        )
        # Threads that compute; all others (saving, next sample, /info/) never wait for them.
        self.limiter = anyio.CapacityLimiter(self.config.workers)
        # Labels, uploads and sessions that are read and written: twenty at once cost the memory of a few.
        self.savers = anyio.CapacityLimiter(_SAVES_AT_ONCE)
        super().__init__(
            app_dir,
            studies,
            conf or {},
            name="UltraRefiner",
            description=f"Breast lesions on ultrasound: automatic outline, clicks and boxes to refine it. {NOTICE}",
            version=ultrarefiner_monai.__version__,
            labels=dict(LABELS),
        )

    # --- studies and tasks --------------------------------------------------------------------------------------------

    def init_datastore(self) -> StudiesFolder:
        if self.pacs is not None:
            limits = Limits(total_pixels=self.config.max_pixels)
            return PacsStudies(
                self.pacs, self.work, self.config.pacs, self.config.extensions, self.engine.read, limits, self.journal
            )
        reload = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        return StudiesFolder(
            self.studies, self.work, self.config.extensions, self.engine.read, reload, journal=self.journal
        )

    def _download_dcmqi_tools(self) -> None:
        """MONAI Label's base class fetches programs at its start; SEGs are written without them, and nothing is fetched here."""

    def init_infers(self) -> dict[str, Any]:
        return make_tasks(self.engine)

    def init_trainers(self) -> dict[str, Any]:
        return make_trainers(Path(self.app_dir), self.served, self.config, self.work)

    def _training_failed(self, task: dict[str, Any], reason: str) -> str:
        trainer = self._trainers.get(task["request"].get("model"))
        return reason if trainer is None else trainer.failed(task, reason)

    def info(self) -> dict[str, Any]:
        return completed(super().info(), self)

    def outline(
        self, model: str, path: Path, image_id: str, request: dict[str, Any] | None = None, as_file: bool = True
    ) -> Outline:
        """Run ``model`` on one image file; request: what the client sent besides; as_file: see ``LesionTask.outline``."""
        with self.preparer.request():
            return self._task(model).outline({**(request or {}), "image": str(path), "image_id": image_id}, as_file)

    def _task(self, model: str) -> LesionTask:
        if model not in self._infers:
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"there is no model {model!r:.80}")
        return self._infers[model]

    def infer(self, request: dict[str, Any], datastore: StudiesFolder | None = None) -> dict[str, Any]:
        """MONAI Label's entry for batches and scripts. ``image`` is an id of the studies, never a path."""
        store = datastore or self.datastore()
        image_id = request.get("image", "")
        tag = check_name(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value, "label_tag")
        path = str(store.image_path(image_id))
        with self.preparer.request():
            file, reply = self._task(request.get("model", ""))({**request, "image": path, "image_id": image_id})
        label = file
        if request.get("save_label"):
            label = store.save_label(image_id, file, tag, {"model": request["model"], "params": reply})
        return {"label": label, "tag": tag, "file": file, "params": reply}

    # --- what the clinician saves -------------------------------------------------------------------------------------

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Called by whoever saves a final label without our route: the journal gets what lies in the studies, soon."""
        journal_saved(self.datastore(), image_id, label_id, self.engine.open)
        self.learner.saved(image_id)

    def _pair_of(self, image_id: str) -> Labelled | None:
        """An image with its final label; None where it has none."""
        store, tag = self.datastore(), DefaultLabelTag.FINAL.value
        label = store.get_label_uri(image_id, tag)
        if not label:
            return None
        confirmed = is_confirmed(store.get_label_info(image_id, tag))
        return Labelled(image_id, store.image_path(image_id), Path(label), confirmed)

    # --- next sample, sessions ----------------------------------------------------------------------------------------

    def init_strategies(self) -> dict[str, Any]:
        return make_strategies(self.sampler)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The next image (``id``), or why there is none (``message``); see ``Sampler.sample``."""
        found = choose(self._strategies, request, self.datastore())
        if "id" not in found:
            return found
        self.prepare(found["id"])
        self.note_shown(found["id"], str(request.get("client_id") or ""))
        return {**found, "path": str(self.datastore().image_path(found["id"]))}

    def prepare(self, image_id: str) -> None:
        """An image of the studies was handed out: compute, behind it, what the first click will need."""
        self.scorer.opened(image_id)
        self.preparer.open(image_id, lambda: self.datastore().image_path(image_id))

    def note_shown(self, image_id: str, client: str, file: Path | None = None) -> None:
        """An image was handed out: the journal notes when and to whom, behind the answer. file: of an image that is not in
        the studies, and may come into them under another id."""
        self.journal.note(
            lambda journal: journal.note_shown(image_id, client, "" if file is None else sha256_of_image(file))
        )

    def _load_sessions(self, load: bool = False) -> SessionStore | None:
        if not load:
            return None
        # Uploaded images are patients' images: they lie in the work folder, not in the home of whoever runs the server.
        return SessionStore(
            settings.MONAI_LABEL_SESSION_PATH or str(self.work.sessions), settings.MONAI_LABEL_SESSION_EXPIRY
        )

    # --- server -------------------------------------------------------------------------------------------------------

    def on_init_complete(self) -> None:
        """The start of the process that serves; those of batches and trainings do not come here."""
        from monailabel.app import app as server

        from lib import startup  # late: the other processes need no routes

        self.only, self.watch = startup.take_studies(self)
        startup.put_routes(server, self)
        self.exchange = startup.start_exchange(self)
        super().on_init_complete()
        startup.run_tasks(self)
        self.scorer.start()
        startup.close_doors(server, self)
        logger.info("ready: %s; work folder %s. %s", self.studies, self.work.root, NOTICE)
