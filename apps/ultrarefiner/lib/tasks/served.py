"""The model that answers: the champion, and on top of it a quick model where there is one.

A running server follows the registry: after `models promote` the next request is answered by the model that was chosen.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.tasks.pins import Pins
from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.quick.overlay import load_quick
from ultrarefiner_monai.learning.registry import CONFIGURED, Pointer, Registry, Start
from ultrarefiner_monai.models.checkpoints import load_system, read_header
from ultrarefiner_monai.models.weights.pretrained import resolve, shipped_or_resolved
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)

# What loading a model may end with: a file that is damaged or gone, and a memory that does not hold it.
_FAULTS = (InputError, OSError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Serving:
    """One model that answers. quick: the quick model on top of ``name``, or empty. problem: why this is not what the pointer
    names, else empty. state: of the pointer file when it was loaded; decisions: how often a person had chosen by then."""

    champion: Predictor
    predictor: Predictor
    name: str
    quick: str
    problem: str
    state: tuple[int, ...]
    decisions: int


class Served:
    """The predictor, loaded when it is first asked for and exchanged when the registry's pointer changes. Thread-safe.

    What a person chose answers the next request, which waits while it is loaded. What quick and slow learning promote is
    loaded in a thread, and the model before answers meanwhile; an image under a user's hand keeps its model (``Pins``).
    """

    def __init__(self, app_dir: Path, config: ServeConfig, work: WorkFolder):
        self.app_dir, self.config, self.registry = app_dir, config, Registry(work)
        self.cache = EmbeddingCache(config.ram_cache_mb << 20, work.embeddings, config.disk_cache_mb << 20)
        self._serving: Serving | None = None
        self._pins = Pins()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    @property
    def name(self) -> str:
        """The champion's name."""
        found = self._serving
        return CONFIGURED if found is None else found.name

    @property
    def quick(self) -> str:
        """The quick model that is served on top of the champion, or empty."""
        found = self._serving
        return "" if found is None else found.quick

    @property
    def problem(self) -> str:
        """Why what the pointer names is not what is served, else empty; the model before goes on then."""
        found = self._serving
        return "" if found is None else found.problem

    def latest(self) -> Predictor:
        """The predictor of what the registry points to; waits while it is loaded for the first time, or for a person."""
        found = self._serving
        if found is not None and self.registry.state() == found.state:
            return found.predictor
        if found is None or not _by_itself(self.registry.pointer(), found):
            return self._load().predictor
        self._load_behind()
        return found.predictor

    def of_image(self, client: str, image: str) -> Predictor:
        """The predictor for an image that a client works on: while it does, promotions without a person change nothing."""
        generation = self._pins.generation
        return self._pins.predictor(client, image, self.latest(), generation)

    def now(self) -> Predictor:
        """The predictor that is loaded, without waiting (for /info/). A newer one is loaded in a thread meanwhile."""
        found = self._serving
        if found is None:
            return self.latest()
        if self.registry.state() != found.state:
            self._load_behind()
        return found.predictor

    def champion(self) -> Predictor:
        """The champion's predictor without a quick model on top of it, as it is loaded."""
        self.now()
        assert self._serving is not None
        return self._serving.champion

    def _load_behind(self) -> None:
        if self._loading.locked():
            return
        with suppress(RuntimeError):  # no thread can be started just now: the next one who asks tries again
            threading.Thread(target=self._load_once, name="model", daemon=True).start()

    def _load_once(self) -> None:
        if self._loading.acquire(blocking=False):
            try:
                self._load()
            finally:
                self._loading.release()

    def _load(self) -> Serving:
        with self._lock:
            state, present = self.registry.state(), self._serving
            if present is not None and state == present.state:
                return present
            pointer = self.registry.pointer()
            found = self._with_quick(self._champion(pointer, present), pointer, state)
            self._serving = found
            if present is not None and not _by_itself(pointer, present):
                self._pins.clear()
            return found

    def _champion(self, pointer: Pointer, present: Serving | None) -> tuple[Predictor, str, str]:
        """(predictor, name, problem) of the model that the pointer names, or of one that can be served in its place."""
        problem = pointer.problem
        if present is not None and present.name == pointer.name and not problem and not present.problem:
            return present.champion, present.name, ""
        # At the start anything that was served once is better than no server.
        names = [pointer.name] if present is not None else [pointer.name, *pointer.before, CONFIGURED]
        if problem:
            logger.error("%s", problem)
        for name in names:
            try:
                return self._predictor_of(name), name, problem
            except _FAULTS as error:
                if name == CONFIGURED and present is None:
                    raise
                problem = problem or f"{name} cannot be served: {error}"
                logger.error("%s cannot be served: %s", name, error)
        assert present is not None
        return present.champion, present.name, f"{problem}; {present.name} is still served"

    def _with_quick(self, champion: tuple[Predictor, str, str], pointer: Pointer, state: tuple[int, ...]) -> Serving:
        predictor, name, problem = champion
        if not pointer.quick or name != pointer.name or not self.config.learning.quick:
            return Serving(predictor, predictor, name, "", problem, state, pointer.decisions)
        try:
            system = load_quick(predictor.system, self.registry.quick_path(pointer.quick))
            own = predictor.with_decoder(system)
        except _FAULTS as error:
            logger.error("%s cannot be served: %s", pointer.quick, error)
            problem = problem or f"{pointer.quick} cannot be served: {error}; {name} answers alone"
            return Serving(predictor, predictor, name, "", problem, state, pointer.decisions)
        logger.info("serving %s on top of %s, version %s", pointer.quick, name, system.version)
        return Serving(predictor, own, name, pointer.quick, problem, state, pointer.decisions)

    def _predictor_of(self, name: str) -> Predictor:
        device = device_of(self.config.device)
        threads = self.config.threads or _cores()
        if threads:
            torch.set_num_threads(threads)
        files = self.files(name)
        system = load_system(files.path, files.refiner, device)
        if name != CONFIGURED and system.version.partition("+")[0] != self.registry.get(name).version:
            raise InputError(f"{files.path} changed since it was made")
        logger.info("serving %s, version %s, on %s with %d threads", name, system.version, device, threads)
        return Predictor(system, self.cache, device)

    def files(self, name: str) -> Start:
        """The files of a model by its name."""
        refiner = resolve(self.config.refiner_weights) if self.config.refiner_weights else None
        if name == CONFIGURED:
            return Start(name, shipped_or_resolved(self.app_dir / "model", self.config.weights), refiner)
        path = self.registry.get(name).path
        # A candidate that brings a refiner of its own was made to be served with it.
        return Start(name, path, None if refiner is None or read_header(path)[0].sam is not None else refiner)


def _by_itself(pointer: Pointer, present: Serving) -> bool:
    """Whether all that changed since ``present`` was loaded was promoted without a person."""
    return pointer.by in ("quick", "slow") and pointer.decisions == present.decisions


def device_of(name: str) -> str:
    """The option ``device`` as torch knows it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
