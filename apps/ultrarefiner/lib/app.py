"""What the parts of the app use of it. They are given it as an argument: none of them asks MONAI Label for its
instance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import anyio

from lib.store.datastore import StudiesFolder
from lib.store.sessions import SessionStore
from lib.tasks.answers import Engine
from lib.tasks.background import Background
from lib.tasks.infers import Outline
from lib.tasks.learner import Learner
from lib.tasks.prepare import Preparer
from lib.tasks.progress import ProgressKeeper
from lib.tasks.scoring import Scorer
from lib.tasks.served import Served
from lib.tasks.strategies import Sampler
from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.dicomweb.client import Pacs
from ultrarefiner_monai.exchange.labels import Exchange
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.watch import Watch
from ultrarefiner_monai.studies.work_folder import WorkFolder


class App(Protocol):
    """``main.UltraRefinerApp`` as its parts see it.

    limiter: a place for each thread that computes. savers: one for each that reads an upload. pacs, exchange: None
    where the studies are a folder. watch: None in processes that do not serve. _infers, _trainers: MONAI Label's
    tables of tasks, by name.
    """

    app_dir: str
    studies: str
    config: ServeConfig
    work: WorkFolder
    pacs: Pacs | None
    exchange: Exchange | None
    watch: Watch | None
    journal: JournalQueue
    served: Served
    engine: Engine
    preparer: Preparer
    progress: ProgressKeeper
    scorer: Scorer
    sampler: Sampler
    trainings: Background
    batches: Background
    learner: Learner
    limiter: anyio.CapacityLimiter
    savers: anyio.CapacityLimiter
    _infers: Mapping[str, Any]
    _trainers: Mapping[str, Any]

    def datastore(self) -> StudiesFolder: ...
    def sessions(self) -> SessionStore | None: ...
    def info(self) -> dict[str, Any]: ...
    def outline(
        self, model: str, path: Path, image_id: str, request: dict[str, Any] | None = None, as_file: bool = True
    ) -> Outline: ...
    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]: ...
    def prepare(self, image_id: str) -> None: ...
    def note_shown(self, image_id: str, client: str, file: Path | None = None) -> None: ...
