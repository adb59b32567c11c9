"""The model that answers.

A running server follows the registry: after `models promote` the next request is answered by the model that was chosen.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import torch

from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry, Start
from ultrarefiner_monai.models.checkpoints import load_system, read_header
from ultrarefiner_monai.models.weights.pretrained import resolve
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.work_folder import WorkFolder

logger = logging.getLogger(__name__)


class Served:
    """The predictor, loaded when it is first asked for and exchanged when the registry's pointer changes. Thread-safe.

    problem: why what the pointer names is not what is served, else empty; the model before goes on then.
    """

    def __init__(self, app_dir: Path, config: ServeConfig, work: WorkFolder):
        self.app_dir, self.config, self.registry = app_dir, config, Registry(work)
        self.cache = EmbeddingCache(config.ram_cache_mb << 20, work.embeddings, config.disk_cache_mb << 20)
        self.name, self.problem = CONFIGURED, ""
        self._predictor: Predictor | None = None
        self._state: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def latest(self) -> Predictor:
        """The predictor of what the registry points to; waits while it is loaded."""
        found = self._predictor
        if found is not None and self.registry.state() == self._state:
            return found
        with self._lock:
            state = self.registry.state()
            if self._predictor is None or state != self._state:
                self._predictor = self._load(self._predictor)
                self._state = state
            return self._predictor

    def now(self) -> Predictor:
        """The predictor that is loaded, without waiting (for /info/). A newer one is loaded in a thread meanwhile."""
        found = self._predictor
        if found is None:
            return self.latest()
        if self.registry.state() != self._state and not self._lock.locked():
            threading.Thread(target=self.latest, name="model", daemon=True).start()
        return found

    def _load(self, present: Predictor | None) -> Predictor:
        pointer = self.registry.pointer()
        # At the start anything that was served once is better than no server.
        names = [pointer.name] if present is not None else [pointer.name, *pointer.before, CONFIGURED]
        problem = pointer.problem
        if problem:
            logger.error("%s", problem)
        for name in names:
            try:
                predictor = self._predictor_of(name)
            except (InputError, OSError) as error:
                if name == CONFIGURED and present is None:
                    raise
                problem = problem or f"{name} cannot be served: {error}"
                logger.error("%s cannot be served: %s", name, error)
                continue
            self.name, self.problem = name, problem
            return predictor
        assert present is not None
        self.problem = f"{problem}; {self.name} is still served"
        return present

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
            shipped = self.app_dir / "model" / f"{self.config.weights}.safetensors"
            return Start(name, shipped if shipped.is_file() else resolve(self.config.weights), refiner)
        path = self.registry.get(name).path
        # A candidate that brings a refiner of its own was made to be served with it.
        return Start(name, path, None if refiner is None or read_header(path)[0].sam is not None else refiner)


def device_of(name: str) -> str:
    """The option ``device`` as torch knows it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
