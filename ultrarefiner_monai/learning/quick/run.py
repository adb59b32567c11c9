"""One quick run: read the labels, tune, compare what was left out and what validates, and serve the result if it may.

Everything is bounded by one budget of seconds. Killed at any moment nothing is lost: each file is renamed into place, and
the pointer moves last.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.core.cache import ReadingCache
from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import SELECT_FOLD, read_index
from ultrarefiner_monai.learning.label_split import TRAIN_PART, Split, SplitImage, likenesses, placed, unlike
from ultrarefiner_monai.learning.quick.overlay import overlaid, refiner_of, towards, write_quick
from ultrarefiner_monai.learning.quick.replays import (
    FLOOR,
    IMPLAUSIBLE,
    LEAST,
    SURE,
    Score,
    Verdict,
    compare,
    left_out_replays,
    score,
)
from ultrarefiner_monai.learning.quick.samples import Sample
from ultrarefiner_monai.learning.quick.scores import Scores
from ultrarefiner_monai.learning.quick.store import SampleStore, Stored
from ultrarefiner_monai.learning.quick.tuning import RECIPE, Recipe, tune
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.checkpoints import System, load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.corrections import Labelled, final_labels
from ultrarefiner_monai.studies.training_folder import read_json, write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

log = logging.getLogger(__name__)

# Samples in memory (0.6 MB each) and replays are bounded, whatever the number of labels.
MOST_SAMPLES, MOST_VALIDATING, MOST_REPLAYED = 200, 24, 60
_LEAST_SHARE = 0.6
_READING = 0.3  # share of what is left of the budget after which labels, or features, wait for the next run
_WRITING = 2.0  # seconds of the budget that are left for writing and serving


@dataclass(frozen=True)
class Job:
    """What a quick run is asked for. base, refiner: the champion's files. seconds: from ``begun`` (time.monotonic) on; 0: no
    limit. steps: None: by the recipe."""

    work: WorkFolder
    studies: str
    base: Path
    refiner: Path | None
    options: LearningConfig
    device: str = "cpu"
    limits: Limits = Limits()
    begun: float = 0.0
    seconds: float = 0.0
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What came of it. served: the quick model's name, or empty; why: in words. problems: image id -> why its label was left
    out."""

    served: str
    why: str
    samples: int
    left_out: Verdict | None = None
    validation: Verdict | None = None
    problems: dict[str, str] | None = None
    seconds: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        verdicts = {k: v.to_dict() for k in ("left_out", "validation") if (v := getattr(self, k)) is not None}
        return {
            "served": self.served,
            "why": self.why,
            "samples": self.samples,
            **verdicts,
            "problems": self.problems or {},
            "seconds": {k: round(v, 2) for k, v in (self.seconds or {}).items()},
        }


class QuickRun:
    """One run, step by step; ``recipe`` is for tests and experiments."""

    def __init__(self, job: Job, recipe: Recipe = RECIPE):
        self.job, self.recipe = job, recipe
        self.registry = Registry(job.work)
        self.over = self.registry.pointer()
        if self.over.problem or self.registry.name_of(job.base) != self.over.name:
            raise InputError(
                self.over.problem or f"{job.base.name} is not what is served any more: {self.over.name} is"
            )
        self.champion: System = load_system(job.base, job.refiner, job.device)
        refiner_of(self.champion)
        predictor = Predictor(self.champion, ReadingCache(job.work.embeddings), job.device)
        folder = job.work.training.quick
        self.store = SampleStore(folder, predictor, job.limits)
        self.replays = SampleStore(folder / "replay", predictor, job.limits)
        self.scores = Scores(folder / "scores", self.champion)
        now = time.monotonic()
        self._clock = {"start": now - job.begun if job.begun else 0.0}
        # A process that is new has its imports to make: on a busy machine they must not take the time to learn.
        self._end = max(job.begun + job.seconds, now + _LEAST_SHARE * job.seconds) - _WRITING

    def __call__(self) -> Result:
        """Raises InputError where nothing can be learnt, and OSError for a full disk; the champion serves then."""
        stored, problems = self._timed("read", self._read)
        self.scores.keep_only({s.item for s in stored})
        images = self.store.split_images(stored)
        if self.store.waiting:  # what was not read yet may be like what is new: that waits, too, for its place
            known = self.job.work.training.read_split()
            images = [image for image in images if image.image in known]
        split = placed(self.job.work.training, images)
        chosen = self._timed("features", lambda: self._chosen(stored, images, split, TRAIN_PART))
        samples, implausible = self._plausible(chosen)
        problems |= dict.fromkeys(
            implausible, "it is left out of quick learning: the model gets nowhere near this label, even with clicks"
        )
        if len(implausible) >= LEAST and len(implausible) > len(samples):
            why = (
                f"the model gets nowhere near {len(implausible)} of {len(chosen)} labels, even with clicks: do they belong to these "
                "images? Nothing is learnt quickly until most labels are right"
            )
            return self._result("", why, samples, problems)
        validating = self._chosen(stored, images, split, SELECT_FOLD)
        self.store.drop_features(stored, {s.id for s in (*chosen, *validating)})
        older = self._timed("replay", lambda: self._replay(images))
        if not samples:
            return self._result("", "there is no correction to learn from yet", [], problems)
        learnt = self._learnt(stored)
        older += [s for s in samples if s.id in learnt]
        samples = [s for s in samples if s.id not in learnt]
        if not samples:
            return self._result("", "the champion has learnt from all these labels itself", [], problems)
        left_out = self._timed("left_out", lambda: self._left_out(samples, older))
        if why := self._refusal(left_out, len(validating)):
            return self._result("", why, samples, problems, left_out)
        tensors = self._timed(
            "tune",
            lambda: tune(
                self.champion,
                samples,
                older,
                self.job.options,
                self._room(0.7),
                self.job.steps,
                self.job.seed,
                self.recipe,
                FLOOR,
            ),
        )
        own = refiner_of(self.champion)
        tensors = towards(own, tensors, left_out.share)
        refiner = overlaid(own, tensors).eval()
        validation = self._timed("validate", lambda: self._validate(refiner, validating))
        if why := validation.worse_by(self.job.options.margin, self.job.options.margin):
            return self._result("", f"on the labels that validate, {why}", samples, problems, left_out, validation)
        if left_out.lesions + validation.lesions < LEAST:
            return self._result(
                "", _too_few(left_out.lesions + validation.lesions), samples, problems, left_out, validation
            )
        name = self.registry.free_quick()
        # No names of images: the journal keeps these facts, and ``forget`` could not take a name out of them.
        facts = {"samples": len(samples), "left_out": left_out.to_dict(), "validation": validation.to_dict()}
        write_quick(self.registry.quick_path(name), tensors, self.champion.version, facts)
        try:
            self.registry.set_quick(name, self.champion.version, facts, self.over)
        except InputError:
            self.registry.quick_path(name).unlink(missing_ok=True)
            raise
        return self._result(name, "not worse than the champion", samples, problems, left_out, validation)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[list[Stored], dict[str, str]]:
        """The labels; of a department's years that were never read, as many as the time allows."""
        return self.store.update(final_labels(self.job.work.root, self.job.studies), self._until(_READING))

    def _chosen(self, stored: Sequence[Stored], images: Sequence[SplitImage], split: Split, part: str) -> list[Sample]:
        """The samples of one part, oldest first: the newest to learn from; those that validate, one of each view, stay the
        same."""
        known = {i.image: i for i in images if split[i.image]["part"] == part}
        own = [s for s in stored if s.image in known]
        if part == TRAIN_PART:
            own = sorted(own, key=lambda s: (s.saved, s.item))[-MOST_SAMPLES:]
        else:
            own = sorted(own, key=lambda s: hashlib.sha256(s.item.encode()).digest())
        alike = likenesses([known[name] for name in dict.fromkeys(s.image for s in own)])
        if part != TRAIN_PART:
            own = list({alike[s.image]: s for s in reversed(own)}.values())[:MOST_VALIDATING]
        until = self._until(_READING)
        loaded = [self.store.load(s, split[s.image]["group"], alike[s.image], until) for s in reversed(own)]
        return [s for s in reversed(loaded) if s is not None]

    def _learnt(self, stored: Sequence[Stored]) -> set[str]:
        """Ids of what the champion itself was trained on, in the slow way, and was not saved anew since. Left out or not, it
        knows these: they tell nothing of a new image, and tuned on once more it only loses. They are replayed."""
        ids, begun = self.job.work.training.learnt(self.over.name)
        return {s.item for s in stored if s.item in ids and s.saved < begun * 1e9}

    def _plausible(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
        """The samples to learn from, and the ids of those whose label the champion gets nowhere near."""
        kept: list[Sample] = []
        left: list[Sample] = []
        for sample in samples:
            found = self.scores(sample)
            (left if found.lesion and found.three < IMPLAUSIBLE else kept).append(sample)
        return kept, [s.id for s in left]

    def _replay(self, images: Sequence[SplitImage]) -> list[Sample]:
        """Images of the prepared folder ``learning.replay``: a seeded choice, of which each run reads some more. None of its test
        fold, and none that is like a label of ``images``: that would be learnt from where it is left out, or validates."""
        if not self.job.options.replay:
            return []
        items = [item for item in read_index(self.job.options.replay) if item.fold != "test"]
        items = sorted(items, key=lambda i: hashlib.sha256(i.id.encode()).digest())
        labelled = [Labelled(i.id, i.image, i.mask, view=i.view) for i in items[:MOST_REPLAYED]]
        until = self._until(0.2)
        stored, _ = self.replays.update(labelled, until)
        ours = [small for image in images for small in image.thumbnails]
        replayed = self.replays.split_images(stored)
        apart = {r.image for r in replayed if not ours or unlike(r.thumbnails, np.stack(ours)).all()}
        loaded = [self.replays.load(s, f"replay:{s.image}", "", until) for s in stored if s.image in apart]
        return [s for s in loaded if s is not None]

    def _left_out(self, samples: Sequence[Sample], older: Sequence[Sample]) -> Verdict:
        job = self.job
        return left_out_replays(
            self.champion,
            samples,
            older,
            job.options,
            self.scores,
            seconds=self._room(0.5),
            steps=job.steps,
            seed=job.seed,
            recipe=self.recipe,
        )

    def _refusal(self, left_out: Verdict, validating: int) -> str:
        """Why the left-out replays say no, in words; empty where they do not."""
        margin = self.job.options.margin
        if why := left_out.worse_by(margin, margin if left_out.lesions >= SURE else 0.0):
            return f"on corrections that were left out, {why}"
        return "" if left_out.lesions + validating >= LEAST else _too_few(left_out.lesions)

    def _validate(self, refiner: Any, samples: Sequence[Sample]) -> Verdict:
        end = None if (room := self._room(1.0)) is None else time.monotonic() + room
        done: list[Sample] = []
        after: list[Score] = []
        for sample in samples:
            if end is not None and len(done) >= LEAST and time.monotonic() > end:
                break
            done.append(sample)
            after.append(score(refiner, sample))
        return compare([self.scores(s) for s in done], after)

    # --- clock --------------------------------------------------------------------------------------------------------

    def _room(self, share: float) -> float | None:
        """``share`` of the seconds that are left; None without a limit."""
        if not self.job.seconds:
            return None
        return share * max(1.0, self._end - time.monotonic())

    def _until(self, share: float) -> float | None:
        """The moment (time.monotonic) at which ``share`` of the seconds that are left is over; None without a limit."""
        seconds = self._room(share)
        return None if seconds is None else time.monotonic() + seconds

    def _timed(self, name: str, work: Any) -> Any:
        begun = time.monotonic()
        found = work()
        self._clock[name] = time.monotonic() - begun
        return found

    def _result(
        self,
        served: str,
        why: str,
        samples: Sequence[Sample],
        problems: dict[str, str],
        left_out: Verdict | None = None,
        validation: Verdict | None = None,
    ) -> Result:
        if self.job.begun:
            self._clock["total"] = time.monotonic() - self.job.begun
        return Result(served, why, len(samples), left_out, validation, problems, self._clock)


def _too_few(lesions: int) -> str:
    there = f"{lesions} of {LEAST} lesions, each of another patient, to test it on"
    return f"too few labels yet to tell whether it is better: {there}"


def remember(work: WorkFolder, result: dict[str, Any]) -> None:
    """What the last run came to, for whoever asks after a restart."""
    write_json(work.training.quick / "last.json", result)


def remembered(work: WorkFolder) -> dict[str, Any]:
    """As ``remember`` wrote it; empty where there was none."""
    return read_json(work.training.quick / "last.json")
