"""What the tasks share: the served model, studies opened and frames answered a moment ago, the journal."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.tasks.served import Served
from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.image import Limits, Study
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.dicom.series import sha256_of_image, state_of
from ultrarefiner_monai.imaging.readers import read_study
from ultrarefiner_monai.masks.measure import measure
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.pipeline.screens import Mode, crops, predict
from ultrarefiner_monai.studies.journal import pack_mask
from ultrarefiner_monai.studies.journal_queue import JournalQueue
from ultrarefiner_monai.studies.work_folder import WorkFolder

_RESULT_BYTES = 128 << 20
_STUDY_BYTES = 512 << 20


@dataclass(frozen=True)
class OpenStudy:
    """A study that was read, the state of its file and the sha256 of its bytes."""

    study: Study
    state: tuple
    sha256: str


@dataclass(frozen=True)
class FrameResult:
    """One frame's answer. mask: packed (H, W) bits. figures: plain values for the reply. keys: the image_key
    of all that a predictor was shown of the frame."""

    mask: bytes
    figures: dict[str, Any]
    timings: dict[str, float]
    keys: tuple[str, ...]


class Engine:
    """What the tasks share: the served model, journal, studies opened and frames answered a moment ago. Thread-safe.

    An answer is a function of image, model and the set of prompts, so it may be kept: a click on one frame of a cine
    does not compute the other frames again, and undo is immediate.
    """

    def __init__(self, served: Served, config: ServeConfig, work: WorkFolder, journal: JournalQueue):
        self.served, self.config, self.work, self.journal = served, config, work, journal
        self._lock = threading.Lock()
        self._studies: OrderedDict[str, OpenStudy] = OrderedDict()
        self._results: OrderedDict[tuple, FrameResult] = OrderedDict()
        self._used = 0
        self._drops = 0  # how often all this was dropped: what was begun before is not kept

    def read(self, path: Path) -> Study:
        """Read a file within the configured limit of pixels, its first and last frame included; InputError if not."""
        study = read_study(path, Limits(total_pixels=self.config.max_pixels))
        study.frame(0)
        study.frame(study.n_frames - 1)
        return study

    def open(self, path: Path) -> OpenStudy:
        """The study at ``path`` (a file, or a folder with the files of a series), kept while its files stay as they are."""
        state = state_of(path)
        with self._lock:
            drops = self._drops
            found = self._studies.get(str(path))
            if found is not None and found.state == state:
                self._studies.move_to_end(str(path))
                return found
        study = read_study(path, Limits(total_pixels=self.config.max_pixels))
        found = OpenStudy(study, state, sha256_of_image(path))
        if state_of(path) != state:  # pixels and sha256 may be of two files: answers would be kept under a wrong name
            raise InputError(f"{path.name} changed while it was read; try again when it has been written")
        with self._lock:
            if drops == self._drops:
                self._studies[str(path)] = found
            while len(self._studies) > 1 and sum(_bytes(s.study) for s in self._studies.values()) > _STUDY_BYTES:
                self._studies.popitem(last=False)
        return found

    def answer(
        self, predictor: Predictor, opened: OpenStudy, k: int, mode: Mode, clicks: Clicks
    ) -> tuple[FrameResult, bool]:
        """(frame ``k``'s result by ``predictor``, whether it was computed now and not remembered)."""
        if mode == "interact" and not clicks:
            mode = "propose"
        key = (predictor.system.version, opened.sha256, k, mode, clicks)
        with self._lock:
            drops = self._drops
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key], False
        image, regions = opened.study.frame(k), opened.study.regions_of(k)
        proposal = predict(predictor, image, regions, mode, clicks)
        start = time.perf_counter()
        size = measure(proposal.mask, opened.study.spacing_of(k))
        figures = {
            "iou_pred": _number(proposal.iou_pred),
            "uncertainty": _number(proposal.uncertainty),
            "presence": _number(proposal.presence),
            "safety_rule": proposal.safety_rule,
            "refiner": proposal.refiner,
            "version": proposal.version,
            **size.to_dict(),
        }
        timings = {**proposal.timings, "measure": time.perf_counter() - start}
        keys = tuple(map(image_key, crops(image, regions)))
        result = FrameResult(pack_mask(proposal.mask), figures, timings, keys)
        with self._lock:
            if key not in self._results and drops == self._drops:
                self._results[key] = result
                self._used += len(result.mask) + 2048
            while self._used > _RESULT_BYTES:
                self._used -= len(self._results.popitem(last=False)[1].mask) + 2048
        return result, True

    def drop_forgotten(self) -> None:
        """When ``ultrarefiner forget`` left a note: drop what is in memory, and the note."""
        note, taken = self.work.forgotten, self.work.root / f"forgotten-{threading.get_ident()}"
        try:
            if not note.exists():
                return
            os.replace(note, taken)  # what `forget` adds from now on makes a new note
            keys = taken.read_text(encoding="utf-8").split()
            taken.unlink()
        except OSError:
            return
        self.drop(keys)

    def drop(self, keys: Iterable[str]) -> None:
        """Drop all that is in memory, and what the cache holds of these images (``image_key``)."""
        with self._lock:
            self._studies.clear()
            self._results.clear()
            self._used = 0
            self._drops += 1
        for key in keys:
            self.served.cache.forget(key)


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else round(float(value), 5)


def _bytes(study: Study) -> int:
    """An upper bound for pictures and volumes, which are kept decoded."""
    return study.kept_bytes or study.height * study.width * study.n_frames * 4
