"""The learning half of ``department.py``: a studies folder of its own for one arm, and what is learnt from its labels.

Labels, journal, split, registry, quick and slow learning are the package's own, called one after another in this process
instead of in the server's workers: so nothing depends on how busy the machine is, but for the quick run's time limit.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hospital import Read, Rows, pixels
from safetensors.torch import load_file, save_file

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.datasets.datalist import SELECT_FOLD, Item
from ultrarefiner_monai.datasets.grouping import thumbnail
from ultrarefiner_monai.interaction.robot import as_clicks
from ultrarefiner_monai.learning.label_split import TRAIN_PART, SplitImage, placed
from ultrarefiner_monai.learning.quick.samples import sample_of
from ultrarefiner_monai.learning.quick.tuning import tune, with_tensors
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry
from ultrarefiner_monai.models.checkpoints import System, load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import INDEX, WorkFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What an arm does. quick_every: labels between two quick runs; slow_at: numbers of labels after which a training runs;
    slow_epochs: of each; seconds: of a quick run."""

    quick: bool
    slow: bool
    quick_every: int = 1
    slow_at: tuple[int, ...] = ()
    slow_epochs: int = 4
    seconds: float = 30.0
    seed: int = 0


class Department:
    """The studies of one arm in ``folder``/studies: labels, journal and models as a server keeps them."""

    def __init__(self, folder: Path, start: Path, cache: EmbeddingCache, settings: Settings) -> None:
        self.folder, self.start, self.cache, self.settings = folder, start, cache, settings
        self.studies = folder / "studies"
        (self.studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
        self.work = WorkFolder.of(self.studies)
        self.registry = Registry(self.work)
        self.events = Rows(folder / "events.csv")
        self.labels: list[Item] = []
        self._thumbnails: dict[str, np.ndarray] = {}
        self.options = LearningConfig()
        self._load()

    @property
    def version(self) -> str:
        return self.predictor.system.version

    # --- labels -------------------------------------------------------------------------------------------------------

    def save(self, item: Item, found: Read) -> None:
        """What a server keeps of one image that was read: both proposals, the label, its place in the split."""
        image, label = pixels(item)
        kept = self.studies / f"{item.id}.png"
        shutil.copyfile(item.image, kept)
        shutil.copyfile(item.mask, self.studies / "labels" / "final" / f"{item.id}.png")
        sha = sha256_of(kept)
        journal = Journal(self.work.journal)
        offered = [("ultrarefiner", self.predictor.propose(image).mask)]
        if found.made:
            offered.append(("sam_refiner", self.predictor.interact(image, as_clicks(found.made)).mask))
        for model, mask in offered:
            journal.record_proposal(item.id, sha, mask[None], model=model, version=self.version)
        journal.record_correction(item.id, sha, label[None].astype(np.uint8), author="robot")
        journal.close()
        self.remember(item)
        self._write_index()

    def remember(self, item: Item) -> None:
        self.labels.append(item)

    def parts(self) -> tuple[list[Item], list[Item]]:
        """The labels that are learnt from and those that validate, oldest first. Each has its place in the split when it
        comes first, for ever; groups are the index's patients, which its PNG files do not name."""
        images = [SplitImage(i.id, i.group, self._thumbnail(i), i.has_lesion) for i in self.labels]
        split = placed(self.work.training, images)
        sides = {side: [i for i in self.labels if split[i.id]["part"] == side] for side in (TRAIN_PART, SELECT_FOLD)}
        return sides[TRAIN_PART], sides[SELECT_FOLD]

    def _thumbnail(self, item: Item) -> np.ndarray:
        if item.id not in self._thumbnails:
            self._thumbnails[item.id] = thumbnail((pixels(item)[0] * 255).round().astype(np.uint8))
        return self._thumbnails[item.id]

    def _write_index(self) -> None:
        entry = {"image": {"ext": ".png", "info": {}}, "labels": {"final": {"ext": ".png", "info": {}}}}
        text = json.dumps({"name": "", "description": "", "objects": {i.id: entry for i in self.labels}})
        (self.studies / INDEX).write_text(text, encoding="utf-8")

    # --- models -------------------------------------------------------------------------------------------------------

    def champion_path(self) -> Path:
        name = self.registry.pointer().name
        return self.start if name == CONFIGURED else self.registry.get(name).path

    def _load(self) -> None:
        """What the pointer names answers from now on."""
        pointer = self.registry.pointer()
        self.champion: System = load_system(self.champion_path())
        self.champions = Predictor(self.champion, self.cache)
        self.predictor = self.champions
        if pointer.quick:
            path = self.registry.quick_path(pointer.quick)
            self.predictor = self.tuned(load_file(str(path)), f"{self.champion.version}+{sha256_of(path)[:12]}")

    def tuned(self, tensors: dict[str, torch.Tensor], version: str) -> Predictor:
        """The champion with tuned tensors; what is cached of an image is the champion's."""
        predictor = Predictor(with_tensors(self.champion, tensors, version), self.cache)
        predictor._model_key = self.champions._model_key
        return predictor

    def learn(self, labels: int) -> None:
        """What this arm learns when so many labels are there; what was done before a restart is not done again."""
        done = {(row["labels"], row["kind"]) for row in self.events.all()}
        due = []
        if self.settings.slow and labels in self.settings.slow_at:
            due.append(("slow", self._slow))
        if self.settings.quick and labels % self.settings.quick_every == 0:
            due.append(("quick", self._quick))
        for kind, run in due:
            if (str(labels), kind) not in done:
                begun = time.perf_counter()
                facts = run()
                seconds = f"{time.perf_counter() - begun:.1f}"
                self.events.add({"labels": labels, "kind": kind, **facts, "seconds": seconds, "version": self.version})

    def _quick(self) -> dict[str, Any]:
        """A quick run on all labels that do not validate."""
        train, select = self.parts()
        if not train:
            return {"accepted": "", "why": "no label to learn from"}
        samples = [sample_of(self.champions, i.id, i.group, *pixels(i)) for i in train]
        tensors = tune(self.champion, samples, [], self.options, self.settings.seconds, seed=self.settings.seed)
        name = self.registry.free_quick()
        save_file(tensors, str(self.registry.quick_path(name)), {"base": self.champion.version})
        self.registry.set_quick(name, self.champion.version)
        self._load()
        return {"accepted": 1, "why": ""}

    def _slow(self) -> dict[str, Any]:
        raise NotImplementedError
