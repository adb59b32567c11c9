"""The tasks of the app: an image file and the user's prompts in, a mask on its grid and figures out."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.tasks.answers import Engine, OpenImageFile
from lib.tasks.clicks import ALL_FRAMES, as_sent, frame_of, requested_clicks
from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import LABELS, NOTICE, Clicks, InputError
from ultrarefiner_monai.core.views import canonical_view
from ultrarefiner_monai.imaging.writers import encode_mask, lost_position
from ultrarefiner_monai.pipeline.outline import FileOutline, FrameOutline, FramePoints, outline, shown_frame
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal

Mode = Literal["coarse", "propose", "interact", "points"]
RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".png")


@dataclass(frozen=True)
class Outline:
    """A reply: the mask as a file's content, its extension, the params that go with it, and the mask itself, (T, H, W)
    uint8."""

    content: bytes
    extension: str
    reply: dict[str, Any]
    mask: np.ndarray


class LesionTask(InferTask):
    """One entry of /info/: ``mode`` says how far the way goes: the coarse network alone, the whole system, that with the
    user's clicks, which the others do not look at, or what the points that propose themselves say alone."""

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
        found = {**super().info(), "version": system.version, "refiner": state, "notice": NOTICE}
        found |= {"views": list(system.config.views)} if system.config.views and self.mode != "coarse" else {}
        return found if self.mode != "points" else {**found, "points": "none" if system.ppn is None else "trained"}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """As MONAI Label calls a task: the path of a file that the caller removes, and the reply's params."""
        outline = self.outline(request)
        self.engine.work.make(self.engine.work.tmp)
        handle, path = tempfile.mkstemp(suffix=outline.extension, prefix="mask-", dir=self.engine.work.tmp)
        with os.fdopen(handle, "wb") as file:
            file.write(outline.content)
        return path, outline.reply

    def outline(self, request: dict[str, Any], as_file: bool = True) -> Outline:
        """request: ``image`` (path), ``image_id``, and what the client sent (``frame``, ``foreground``, ``background``,
        ``roi``, ``result_extension``, ``client_id``, ``view``; ``hint``: nobody asked for it yet, so no record is
        kept). as_file: False leaves ``content`` empty, for whoever goes on with the mask. Raises InputError for what cannot be used.
        """
        start = time.perf_counter()
        self.engine.drop_forgotten()
        extension = _extension(request)
        opened = self.engine.open(Path(request["image"]))
        image_file = opened.image_file
        asked = frame_of(request, image_file.n_frames)
        clicks: dict[int, Clicks] = {}
        if self.mode == "interact":
            clicks = requested_clicks(
                request, image_file.n_frames, image_file.height, image_file.width, image_file.geometry.axes
            )
        frames = list(range(image_file.n_frames)) if asked is None else sorted({asked, *clicks})
        if extension == ".png" and len(frames) > 1:
            raise InputError("a .png holds one frame: ask for frame=k, or for .nrrd or .nii.gz")
        read = time.perf_counter()
        predictor = self._predictor(request, opened)  # one model for all frames, whatever is chosen meanwhile
        view = requested_view(request, predictor.system.config.views) or image_file.view
        predictor = predictor.seen_as(view)
        proposed = self._points(predictor, opened, frames, clicks)
        points = {k: found.clicks for k, found in proposed.items()}

        def answer(k: int, given: Clicks) -> FrameOutline:
            return self.engine.answer(predictor, opened, k, given, self.mode == "coarse", self.mode == "points")

        found = outline(image_file, answer, frames, {**points, **clicks})
        if points:  # which frame stands for all: as if they were no clicks
            found = replace(found, shown=shown_frame(found.frames, clicks))
        computed = time.perf_counter()
        content = b""
        if as_file and extension == ".png":
            content = encode_mask(extension, found.mask[frames], replace(image_file, n_frames=1))
        elif as_file:
            content = encode_mask(extension, found.mask, image_file)
        reply = self._reply(image_file, found)
        reply |= {"view": predictor.view} if predictor.system.config.views else {}
        if request.get("view") and not predictor.system.config.views:
            reply["warnings"].append(
                f"the model that is served knows no views: {request['view']!r:.60} changes nothing"
            )
        if points:
            reply["points"] = as_sent(points, image_file.geometry.axes)
        if lost := lost_position(extension, image_file):
            reply["warnings"].append(lost)
        now = time.perf_counter()
        steps = {"read": read - start, "infer": computed - read, "write": now - computed, "total": now - start}
        times = {**found.timings(), **steps}
        for one in proposed.values():
            times |= {name: times.get(name, 0.0) + seconds for name, seconds in one.seconds.items()}
            times["cached"] = min(times["cached"], one.cached)
        reply["timings"] = {name: round(seconds, 4) for name, seconds in times.items()}
        # The name that MONAI Label's own tasks use.
        reply["latencies"] = {"total": round(now - start, 2)}
        if not request.get("hint"):
            self._record(request, opened, found, clicks, reply)
        return Outline(content, extension, reply, found.mask)

    def _points(
        self, predictor: Predictor, opened: OpenImageFile, frames: list[int], clicks: dict[int, Clicks]
    ) -> dict[int, FramePoints]:
        """frame -> the points that the model proposes there, where they are asked for: by the task, or on the frames where nobody
        has clicked and the server begins with them."""
        begins = self.mode == "interact" and self.engine.config.start_with_points and predictor.system.ppn is not None
        if self.mode != "points" and not begins:
            return {}
        return {k: self.engine.points(predictor, opened, k) for k in frames if k not in clicks}

    def _predictor(self, request: dict[str, Any], opened: OpenImageFile) -> Predictor:
        """A user's image keeps its model while it is worked on, in whatever form it is asked for."""
        image = request["image_id"] or f"upload:{opened.sha256}"  # each upload is a file of its own
        return self.engine.served.of_image(str(request.get("client_id") or ""), str(image))

    def _reply(self, image_file: ImageFile, found: FileOutline) -> dict[str, Any]:
        """With the figures of the frame that stands for all, and of each frame of a volume."""
        shown, figures = found.shown, {k: _figures(frame) for k, frame in found.frames.items()}
        reply = {
            "label_names": dict(LABELS),
            "model": self.name,
            **figures[shown],
            "frame": shown,
            "n_frames": image_file.n_frames,
            "spacing_mm": image_file.spacing_of(shown),
            "unit_reason": image_file.pixels_reason(shown),
            "regions": [[x.start, y.start, x.stop - 1, y.stop - 1] for y, x in image_file.regions_of(shown)],
            "warnings": list(image_file.warnings),
            "notice": NOTICE,
        }
        if image_file.n_frames > 1:
            names = ("iou_pred", "uncertainty", "presence", "safety_rule", "long_axis", "short_axis", "area")
            reply["frames"] = [{"frame": k, **{n: figures[k][n] for n in names}} for k in figures]
        return reply

    def _record(
        self,
        request: dict[str, Any],
        opened: OpenImageFile,
        found: FileOutline,
        clicks: dict[int, Clicks],
        reply: dict[str, Any],
    ) -> None:
        def write(journal: Journal) -> None:
            journal.record_proposal(
                request["image_id"] or f"upload:{opened.sha256[:16]}",
                opened.sha256,
                found.mask,
                model=self.name,
                version=str(reply["version"]),
                client=str(request.get("client_id") or ""),
                prompts={str(k): c.to_dict() for k, c in clicks.items()},
                reply={k: v for k, v in reply.items() if k not in ("label_names", "notice", "latencies")},
                cache_keys=sorted({key for frame in found.frames.values() for key in frame.keys}),
            )

        self.engine.journal.submit(write)


def make_tasks(engine: Engine) -> dict[str, LesionTask]:
    """The tasks by name. 3D Slicer runs the first segmentation model on each next sample: that is ``ultrarefiner``."""
    texts: list[tuple[str, Mode, str]] = [
        (
            "ultrarefiner",
            "propose",
            "Outlines breast lesions: coarse network, prompts derived from it, SAM refiner, safety net.",
        ),
        ("transunet", "coarse", "Outlines breast lesions with the coarse network alone."),
        ("sam_refiner", "interact", "Refines the outline with positive and negative clicks and a box (ROI)."),
    ]
    if engine.config.ppn_refiner:
        texts.append(("ppn_refiner", "points", "Outlines breast lesions from points that propose themselves."))
    return {name: LesionTask(name, mode, engine, text) for name, mode, text in texts}


def _extension(request: dict[str, Any]) -> str:
    value = request.get("result_extension") or ""
    if not isinstance(value, str) or (value and value.lower() not in RESULT_EXTENSIONS):
        raise InputError(f"result_extension must be one of {', '.join(RESULT_EXTENSIONS)}, got {value!r:.80}")
    if value:
        return value.lower()
    name = str(request["image"]).lower()
    return ".nii.gz" if name.endswith((".nii", ".nii.gz")) else ".nrrd"


def requested_view(request: dict[str, Any], known: tuple[str, ...]) -> str:
    """How the probe was held, as the request says; empty where it does not. InputError for a view that the model does not know,
    where it knows any."""
    view = canonical_view(str(request.get("view") or ""))
    if request.get("view") and known and view not in known:
        raise InputError(f"view must be one of {', '.join(known)}, got {request['view']!r:.60}")
    return view


def _figures(frame: FrameOutline) -> dict[str, Any]:
    """A frame's figures as plain values for the reply."""
    return {
        "iou_pred": _number(frame.iou_pred),
        "uncertainty": _number(frame.uncertainty),
        "presence": _number(frame.presence),
        "safety_rule": frame.safety_rule,
        "refiner": frame.refiner,
        "version": frame.version,
        **frame.size.to_dict(),
    }


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else round(float(value), 5)
