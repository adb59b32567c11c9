"""The learning half of ``department.py``: a studies folder of its own for one arm, and what is learnt from its labels.

Labels, journal, split, registry, quick and slow learning are the package's own, called one after another in this process
instead of in the server's workers: so nothing depends on how busy the machine is, unless quick runs are given a time limit.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hospital import Read, Rows, pixels

from ultrarefiner_monai.config import LearningConfig, TrainConfig, load_yaml
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.datasets.datalist import SELECT_FOLD, Item
from ultrarefiner_monai.datasets.grouping import thumbnail
from ultrarefiner_monai.interaction.robot import as_clicks
from ultrarefiner_monai.learning.label_split import TRAIN_PART, SplitImage, placed
from ultrarefiner_monai.learning.labelled import prepare_labels
from ultrarefiner_monai.learning.promotion import Outcome, settle
from ultrarefiner_monai.learning.quick.overlay import load_quick
from ultrarefiner_monai.learning.quick.run import Job, QuickRun
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry, Start
from ultrarefiner_monai.learning.retraining import labels_split, train_on_labels
from ultrarefiner_monai.models.checkpoints import System, load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.corrections import final_labels
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.training_folder import read_json, write_json
from ultrarefiner_monai.studies.work_folder import INDEX, WorkFolder

log = logging.getLogger(__name__)
APP = Path(__file__).resolve().parents[1] / "apps" / "ultrarefiner"


@dataclass(frozen=True)
class Settings:
    """What an arm does.

    quick_at, slow_at: numbers of labels after which a quick run, a training runs. seconds: of a quick run, 0: as many as its
    steps take; steps: of each of its tunings, None: by its recipe. slow_parts: what trainings train; slow_epochs: of each,
    0: as the app's; least: so many validating patients suffice for the gate; slow_from: the folder of an arm with the same
    labels, whose candidates are judged in place of new ones; by_hand: a person promotes what the gate turned down.
    """

    quick: bool
    slow: bool
    quick_at: tuple[int, ...] = ()
    slow_at: tuple[int, ...] = ()
    slow_epochs: int = 0
    least: int = 20
    slow_from: Path | None = None
    by_hand: bool = False
    slow_parts: tuple[str, ...] = ("refiner", "coarse")
    seconds: float = 0.0
    steps: int | None = None
    seed: int = 0


class Department:
    """The studies of one arm in ``folder``/studies: labels, journal and models as a server keeps them."""

    def __init__(self, folder: Path, start: Path, cache: EmbeddingCache, settings: Settings) -> None:
        self.folder, self.start, self.cache, self.settings = folder, start, cache, settings
        self.studies = folder / "studies"
        (self.studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
        self.work = WorkFolder.of(self.studies)
        if not self.work.embeddings.exists():
            assert cache.disk_dir is not None
            self.work.embeddings.symlink_to(cache.disk_dir.resolve())  # shared by all arms
        self.registry = Registry(self.work)
        self.events = Rows(folder / "events.csv")
        self.labels: list[Item] = []
        self._thumbnails: dict[str, np.ndarray] = {}
        self.options = LearningConfig()
        self.load()

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
        self.write_index()

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

    def write_index(self) -> None:
        entry = {"image": {"ext": ".png", "info": {}}, "labels": {"final": {"ext": ".png", "info": {}}}}
        text = json.dumps({"name": "", "description": "", "objects": {i.id: entry for i in self.labels}})
        (self.studies / INDEX).write_text(text, encoding="utf-8")

    # --- models -------------------------------------------------------------------------------------------------------

    def champion_path(self) -> Path:
        name = self.registry.pointer().name
        return self.start if name == CONFIGURED else self.registry.get(name).path

    def load(self) -> None:
        """What the pointer names answers from now on."""
        pointer = self.registry.pointer()
        self.champion: System = load_system(self.champion_path())
        self.champions = Predictor(self.champion, self.cache)
        self.predictor = self.champions
        if pointer.quick:
            self.predictor = self.champions.with_decoder(
                load_quick(self.champion, self.registry.quick_path(pointer.quick))
            )

    def learn(self, labels: int) -> None:
        """What this arm learns when so many labels are there; what was done before a restart is not done again."""
        done = {(row["labels"], row["kind"]) for row in self.events.all()}
        due = []
        if self.settings.slow and labels in self.settings.slow_at:
            due.append(("slow", self.slow))
        if self.settings.quick and labels in self.settings.quick_at:
            due.append(("quick", self.quick))
        for kind, run in due:
            if (str(labels), kind) not in done:
                wall, cpu = time.perf_counter(), time.process_time()
                facts = run()
                seconds = {"seconds": f"{time.perf_counter() - wall:.1f}", "cpu": f"{time.process_time() - cpu:.1f}"}
                row = {"labels": labels, "kind": kind, **facts, **seconds, "version": self.version}
                self.events.add(row)

    def quick(self) -> dict[str, Any]:
        """A quick run of the package on this arm's studies."""
        self.parts()
        job = Job(
            self.work,
            str(self.studies),
            self.champion_path(),
            None,
            self.options,
            seconds=self.settings.seconds,
            steps=self.settings.steps,
            begun=time.monotonic(),
        )
        result = QuickRun(job)()
        if result.served:
            self.load()
        write_json(self.folder / f"quick-{len(self.labels)}.json", result.to_dict())
        return {"accepted": int(bool(result.served)), "why": result.why}

    def slow(self) -> dict[str, Any]:
        """A training of the refiner, and one of the coarse network where there are enough labels; each is gated."""
        self.parts()
        tasks = ["sam_refiner"] if "refiner" in self.settings.slow_parts else []
        if "coarse" in self.settings.slow_parts and len(self.labels) >= self.options.coarse_labels:
            tasks.append("transunet")
        options = replace(self.options, validation_labels=min(self.options.validation_labels, self.settings.least))
        said = []
        for task in tasks:
            outcome = self._made_before(task, options) or self._trained(task, options)
            report, name = outcome.report, outcome.candidate.name
            assert report is not None
            write_json(self.folder / f"gate-{name}.json", report.to_dict())
            note = {"task": task, "labels": len(self.labels), "path": str(outcome.candidate.path.resolve())}
            write_json(self.folder / f"made-{task}-{len(self.labels)}.json", note)
            said.append(f"{task}: {'promoted' if outcome.promoted else '; '.join(report.reasons)}")
            if not outcome.promoted and self.settings.by_hand:
                self.registry.promote(name)
            self.load()
        return {"accepted": int("promoted" in " ".join(said)), "why": " | ".join(said)}

    def _trained(self, task: str, options: LearningConfig) -> Outcome:
        network = {"system": {"sam": {}}} if task == "sam_refiner" else {}
        plain = load_yaml(TrainConfig, APP / "train" / f"{task}.yaml", network)
        settings = replace(plain, epochs=self.settings.slow_epochs or plain.epochs)
        return train_on_labels(task, settings, self._files, final_labels(self.work.root), self.work, options, "cpu")

    def _made_before(self, task: str, options: LearningConfig) -> Outcome | None:
        """What another arm made of the same labels, judged here; None where there is none."""
        if self.settings.slow_from is None:
            return None
        made = read_json(self.settings.slow_from / f"made-{task}-{len(self.labels)}.json")
        if not made:
            return None
        prepare_labels(final_labels(self.work.root), self.work.training)
        candidate = self.registry.add(self.registry.free_name(task), Path(made["path"]))
        self._note_learnt(task, candidate.name, Path(made["path"]).stem)
        return settle(self.registry, candidate, self._files, labels_split(self.work.training).select, options)

    def _note_learnt(self, task: str, name: str, there: str) -> None:
        """What the other arm's training learnt, so that a quick run here only replays it."""
        assert self.settings.slow_from is not None
        runs, other = self.work.training.runs, WorkFolder.of(self.settings.slow_from / "studies").training.runs
        (runs / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(other / there / "split.json", runs / name / "split.json")
        write_json(runs / name / "state.json", {"task": task, "status": "finished", "started": time.time()})

    def _files(self, name: str) -> Start:
        return Start(name, self.start if name == CONFIGURED else self.registry.get(name).path)
