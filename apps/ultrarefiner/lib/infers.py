"""The three tasks of the app: a study and the user's prompts in, a mask on the study's grid and its figures out."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.prompts import ALL_FRAMES, clicks_of, frame_of
from lib.served import Served
from ultrarefiner_monai.cache import image_key
from ultrarefiner_monai.config import ServeConfig
from ultrarefiner_monai.data.readers import read_study
from ultrarefiner_monai.data.series import sha256_of_image, state_of
from ultrarefiner_monai.data.study import Limits, Study
from ultrarefiner_monai.data.writers import encode_mask
from ultrarefiner_monai.inference import Predictor
from ultrarefiner_monai.journal import Journal, JournalQueue, pack_mask, unpack_mask
from ultrarefiner_monai.measure import measure
from ultrarefiner_monai.regions import Mode, crops, predict
from ultrarefiner_monai.types import LABELS, NOTICE, Clicks, InputError
from ultrarefiner_monai.workfolder import WorkFolder

logger = logging.getLogger(__name__)

RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".png")
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


@dataclass(frozen=True)
class Outline:
    """A reply: the mask's file content, its extension, and the params that go with it."""

    content: bytes
    extension: str
    reply: dict[str, Any]


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
            found = self._studies.get(str(path))
            if found is not None and found.state == state:
                self._studies.move_to_end(str(path))
                return found
        study = read_study(path, Limits(total_pixels=self.config.max_pixels))
        found = OpenStudy(study, state, sha256_of_image(path))
        if state_of(path) != state:  # pixels and sha256 may be of two files: answers would be kept under a wrong name
            raise InputError(f"{path.name} changed while it was read; try again when it has been written")
        with self._lock:
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
            "safety_rule": proposal.safety_rule,
            "refiner": proposal.refiner,
            "version": proposal.version,
            **size.to_dict(),
        }
        timings = {**proposal.timings, "measure": time.perf_counter() - start}
        keys = tuple(map(image_key, crops(image, regions)))
        result = FrameResult(pack_mask(proposal.mask), figures, timings, keys)
        with self._lock:
            if key not in self._results:
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
        with self._lock:
            self._studies.clear()
            self._results.clear()
            self._used = 0
        for key in keys:
            self.served.cache.forget(key)


class LesionTask(InferTask):
    """One entry of /info/: ``mode`` says how far the way goes (coarse network, whole system, the user's prompts)."""

    def __init__(self, name: str, mode: Mode, engine: Engine, description: str):
        kind = InferType.DEEPGROW if mode == "interact" else InferType.SEGMENTATION
        # 3D Slicer shows these options and sends them along with every request.
        super().__init__(kind, dict(LABELS), 3, f"{description} {NOTICE}", {"frame": ALL_FRAMES})
        self.name, self.mode, self.engine = name, mode, engine

    def is_valid(self) -> bool:
        return True

    def info(self) -> dict[str, Any]:
        system = self.engine.served.now().system
        state = "off" if self.mode == "coarse" else "trained" if system.refiner is not None else "untrained"
        return {**super().info(), "version": system.version, "refiner": state, "notice": NOTICE}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """As MONAI Label calls a task: the path of a file that the caller removes, and the reply's params."""
        outline = self.outline(request)
        self.engine.work.tmp.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(suffix=outline.extension, prefix="mask-", dir=self.engine.work.tmp)
        with os.fdopen(handle, "wb") as file:
            file.write(outline.content)
        return path, outline.reply

    def outline(self, request: dict[str, Any]) -> Outline:
        """request: ``image`` (path), ``image_id``, and what the client sent (``frame``, ``foreground``, ``background``,
        ``roi``, ``result_extension``, ``client_id``). Raises InputError for what cannot be used.
        """
        start = time.perf_counter()
        self.engine.drop_forgotten()
        extension = _extension(request)
        opened = self.engine.open(Path(request["image"]))
        study = opened.study
        asked = frame_of(request, study.n_frames)
        clicks: dict[int, Clicks] = {}
        if self.mode == "interact":
            clicks = clicks_of(request, study.n_frames, study.height, study.width, study.geometry.axes)
        frames = list(range(study.n_frames)) if asked is None else sorted({asked, *clicks})
        if extension == ".png" and len(frames) > 1:
            raise InputError("a .png holds one frame: ask for frame=k, or for .nrrd or .nii.gz")
        read = time.perf_counter()
        predictor = self.engine.served.latest()  # one model for all frames, whatever is chosen meanwhile
        mask = np.zeros(study.shape, np.uint8)
        results: dict[int, FrameResult] = {}
        steps: dict[str, float] = {}
        for k in frames:
            results[k], fresh = self.engine.answer(predictor, opened, k, self.mode, clicks.get(k, Clicks()))
            if fresh:
                _add(steps, results[k].timings)
            mask[k] = unpack_mask(results[k].mask, (study.height, study.width))
        computed = time.perf_counter()
        if extension == ".png":
            content = encode_mask(extension, mask[frames], replace(study, n_frames=1))
        else:
            content = encode_mask(extension, mask, study)
        reply = self._reply(study, results, clicks)
        now = time.perf_counter()
        steps |= {"read": read - start, "infer": computed - read, "write": now - computed, "total": now - start}
        reply["timings"] = {name: round(seconds, 4) for name, seconds in steps.items()}
        # The name that MONAI Label's own tasks use.
        reply["latencies"] = {"total": round(now - start, 2)}
        self._record(request, opened, mask, results, clicks, reply)
        return Outline(content, extension, reply)

    def _reply(self, study: Study, results: dict[int, FrameResult], clicks: dict[int, Clicks]) -> dict[str, Any]:
        """With the figures of the frame that matters: the first with a click, else the one with the largest lesion."""
        shown = min(clicks) if clicks else max(results, key=lambda k: (results[k].figures["area"], -k))
        reply = {
            "label_names": dict(LABELS),
            "model": self.name,
            **results[shown].figures,
            "frame": shown,
            "n_frames": study.n_frames,
            "spacing_mm": study.spacing_of(shown),
            "regions": [[x.start, y.start, x.stop - 1, y.stop - 1] for y, x in study.regions_of(shown)],
            "warnings": list(study.warnings),
            "notice": NOTICE,
        }
        if study.n_frames > 1:
            names = ("iou_pred", "uncertainty", "safety_rule", "long_axis", "short_axis", "area")
            reply["frames"] = [{"frame": k, **{n: results[k].figures[n] for n in names}} for k in results]
        return reply

    def _record(
        self,
        request: dict[str, Any],
        opened: OpenStudy,
        mask: np.ndarray,
        results: dict[int, FrameResult],
        clicks: dict[int, Clicks],
        reply: dict[str, Any],
    ) -> None:
        def write(journal: Journal) -> None:
            journal.record_proposal(
                request["image_id"] or f"upload:{opened.sha256[:16]}",
                opened.sha256,
                mask,
                model=self.name,
                version=str(reply["version"]),
                client=str(request.get("client_id") or ""),
                prompts={str(k): c.to_dict() for k, c in clicks.items()},
                reply={k: v for k, v in reply.items() if k not in ("label_names", "notice", "latencies")},
                cache_keys=sorted({key for r in results.values() for key in r.keys}),
            )

        self.engine.journal.submit(write)


def make_tasks(engine: Engine) -> dict[str, LesionTask]:
    """The tasks by name. 3D Slicer runs the first segmentation model on each next sample: that is ``ultrarefiner``."""
    texts: list[tuple[str, Mode, str]] = [
        ("ultrarefiner", "propose", "Outlines breast lesions: TransUNet, prompts from it, SAM, safety net."),
        ("transunet", "coarse", "Outlines breast lesions with the coarse network alone."),
        ("sam_refiner", "interact", "Refines the outline with positive and negative clicks and a box (ROI)."),
    ]
    return {name: LesionTask(name, mode, engine, text) for name, mode, text in texts}


def _extension(request: dict[str, Any]) -> str:
    value = request.get("result_extension") or ""
    if not isinstance(value, str) or (value and value.lower() not in RESULT_EXTENSIONS):
        raise InputError(f"result_extension must be one of {', '.join(RESULT_EXTENSIONS)}, got {value!r:.80}")
    if value:
        return value.lower()
    name = str(request["image"]).lower()
    return ".nii.gz" if name.endswith((".nii", ".nii.gz")) else ".nrrd"


def _add(steps: dict[str, float], timings: dict[str, float]) -> None:
    for name, seconds in timings.items():
        if name not in ("total", "cached"):
            steps[name] = steps.get(name, 0.0) + seconds


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else round(float(value), 5)


def _bytes(study: Study) -> int:
    """An upper bound for pictures and volumes, which are kept decoded; DICOM cines are decoded frame by frame."""
    return study.height * study.width * study.n_frames * (1 if study.kind == "dicom" else 4)
