"""A model that is served without a server, and its registry as another process sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app_server import APP, eventually

from lib.tasks.answers import Engine
from lib.tasks.served import Served
from ultrarefiner_monai.config import LearningConfig, ServeConfig
from ultrarefiner_monai.learning.quick.overlay import write_quick
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.work_folder import WorkFolder


class Desk:
    """Empty studies in ``folder``, served with ``checkpoint``. learning: options of learning."""

    def __init__(self, folder: Path, checkpoint: Path, **learning: Any):
        self.studies = folder / "studies"
        self.studies.mkdir()
        self.checkpoint, self.work = checkpoint, WorkFolder.of(self.studies)
        self.config = config = ServeConfig(
            weights=str(checkpoint), threads=1, device="cpu", learning=LearningConfig(**learning)
        )
        self.served = Served(APP, config, self.work)
        self.engine = Engine(self.served, config, self.work, JournalQueue(self.work.journal))
        self.registry = Registry(self.work)
        self.base = load_system(checkpoint).version

    def again(self, **learning: Any) -> Served:
        """As a server serves that starts now."""
        config = ServeConfig(weights=str(self.checkpoint), threads=1, device="cpu", learning=LearningConfig(**learning))
        served = Served(APP, config, self.work)
        served.latest()
        return served

    def of_image(self, client: str, image: str) -> str:
        """The version that answers."""
        return self.served.of_image(client, image).system.version

    def set_quick(self, scale: float) -> str:
        """Promote a quick model that answers otherwise, on top of the champion."""
        name = self.registry.pointer().name
        base = self.base if name == CONFIGURED else self.registry.get(name).version
        state = load_system(self.checkpoint).refiner.state_dict()  # type: ignore[union-attr]
        tensors = {k: v * scale for k, v in state.items() if k.startswith("sam.mask_decoder.output_hypernetworks")}
        name = self.registry.free_quick()
        write_quick(self.registry.quick_path(name), tensors, base, {})
        self.registry.set_quick(name, base)
        return name

    def follow(self) -> str:
        """What is promoted without a person is loaded behind the requests: wait for it."""
        self.served.now()
        eventually(lambda: self.served._serving.state == self.registry.state())
        return self.served.latest().system.version
