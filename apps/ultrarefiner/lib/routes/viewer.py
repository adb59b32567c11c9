"""What the mode "UltraRefiner" of the viewer asks for (apps/ultrarefiner/viewer): images by their DICOM UIDs, and masks frame by
frame, in the pixels that the viewer shows.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import numpy as np
from fastapi import HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.app import App
from lib.routes.parameters import FLAG, FRAME, ID, POINTS, TEXT, Kind, checked
from lib.routes.routing import JsonBody, Route, annotator_role, name_of, user_role
from lib.routes.store import save_uploaded_label
from lib.routes.viewer_frames import CHANGED, Objects, objects_in, objects_of, on_frames_of_now
from lib.store.instances import Instances
from lib.store.pacs import PacsStudies
from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.series import state_of
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.writers import encode_mask
from ultrarefiner_monai.masks.label_values import is_confirmed
from ultrarefiner_monai.masks.measure import measure
from ultrarefiner_monai.masks.runs import mask_of, runs_of

FINAL = DefaultLabelTag.FINAL.value
_RUNS = Kind(lambda v: isinstance(v, dict) and all(map(_is_counts, v.values())), "frame -> lengths of runs")
_OBJECTS = Kind(
    lambda v: isinstance(v, list) and all(isinstance(o, list) and len(o) == 2 and _is_counts(o[1:]) for o in v),
    "[[SOPInstanceUID, number of frames], ...]",
)
_COUNT = Kind(lambda v: _is_counts([v]), "the number of a frame")
_COUNTS = Kind(lambda v: _is_counts(v), "a list of whole numbers")
_OUTLINE = {"image": ID, "model": TEXT, "frame": FRAME, "foreground": POINTS, "background": POINTS, "box": POINTS,
            "view": TEXT, "client_id": TEXT, "hint": FLAG, "instances": _OBJECTS}  # fmt: skip
_SAVE = {"image": ID, "masks": _RUNS, "params": Kind(lambda v: isinstance(v, dict), "an object"), "client_id": TEXT,
         "confirm": FLAG, "instances": _OBJECTS, "shown": _COUNTS, "label_state": TEXT}  # fmt: skip


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def query_of(study: str, series: str, instance: str = "") -> str:
    """The query of OHIF's address for an image."""
    wanted = {"StudyInstanceUIDs": study, "initialSeriesInstanceUID": series, "initialSOPInstanceUID": instance}
    return urlencode({name: uid for name, uid in wanted.items() if uid})


class ViewerRoutes:
    """Images and masks for the viewer's mode. instances: the folder's images by UID, None where the studies are a PACS."""

    def __init__(self, app: App, instances: Instances | None, sample: Callable[..., Any]):
        """sample: the route of the next sample (``StoreRoutes.next_sample``)."""
        self.app, self.instances, self.sample = app, instances, sample

    def routes(self) -> list[Route]:
        return [
            ("GET", "/ultrarefiner/viewer/image", self.image),
            ("POST", "/ultrarefiner/viewer/outline", self.outline),
            ("POST", "/ultrarefiner/viewer/measure", self.measure),
            ("GET", "/ultrarefiner/viewer/label", self.label),
            ("PUT", "/ultrarefiner/viewer/label", self.save_label),
            ("POST", "/ultrarefiner/viewer/next", self.next),
        ]

    async def image(
        self, study: str, series: str, request: Request, instance: str = "", client_id: str = "", user: User = user_role
    ) -> dict[str, Any]:
        """The image that a series of the viewer is, or the one that ``instance`` belongs to; and what the user should know before the
        work begins. ``instances``: the DICOM objects that its frames come from, in order, and how many each has: what is shown of
        them is the viewer's affair. ``label_state``: tells the final label from others, empty: none. The image is leased to who opens it, as a
        next sample is (``others``: somebody else holds it)."""
        address = request.client.host if request.client is not None else ""
        holder = f"{client_id or name_of(user)} {address}"  # as for a next sample

        def work() -> dict[str, Any]:
            store = self.app.datastore()
            image_id = self._image_of(study, series, instance)
            image_file = self.app.engine.open(store.image_path(image_id)).image_file
            return {
                "id": image_id,
                "instances": self._objects_of(image_id, image_file),
                "frames": image_file.n_frames,
                "height": image_file.height,
                "width": image_file.width,
                "spacing_mm": image_file.spacing_mm,
                "warnings": image_file.warnings,
                "label_state": self._label_state(image_id),
                "others": not self.app.sampler.leases.take(image_id, holder),
            }

        return await anyio.to_thread.run_sync(work)

    async def outline(self, body: JsonBody = None, user: User = user_role) -> dict[str, Any]:
        """An outline for the viewer: ``foreground`` and ``background`` [[x, y, frame], ...] and ``box`` [x0, y0, x1, y1] on
        ``frame``, in pixels of the frame. ``hint``: what a click would give, which is not recorded. ``instances``: as the image had them
        when it was opened. The reply's ``masks``: frame -> runs (``masks.runs``)."""
        asked = checked(body, _OUTLINE, "an outline")

        def work() -> dict[str, Any]:
            image_id = _named(asked)
            path = self.app.datastore().image_path(image_id)
            image_file = self.app.engine.open(path).image_file
            geometry = image_file.geometry
            if "instances" in asked and objects_of(asked["instances"]) != self._objects_of(image_id, image_file):
                raise HTTPException(409, f"{CHANGED}: accept what you have drawn, then open it again")
            request = {k: v for k, v in asked.items() if k in ("frame", "view", "client_id", "hint")}
            for name in ("foreground", "background"):
                points = [_point(p, name) for p in asked.get(name, ())]
                request[name] = [list(geometry.to_ijk(int(k), x, y)) for x, y, k in points]
            if asked.get("box"):
                x0, y0, x1, y1 = _point(asked["box"], "box", 4)
                frame = asked.get("frame", 0)
                if not str(frame).isdecimal():
                    raise InputError(f"a box is on one frame: give its number, got frame {frame!r:.20}")
                frame = int(frame)
                ends = zip(geometry.to_ijk(frame, x0, y0), geometry.to_ijk(frame, x1, y1))
                request["roi"] = [value for pair in ends for value in pair]
            found = self.app.outline(str(asked.get("model", "sam_refiner")), path, image_id, request, as_file=False)
            reply = found.reply
            if "points" in reply:
                shown_at = {k: [list(geometry.to_frame_xy(p)[1:]) for p in v] for k, v in reply["points"].items()}
                reply = {**reply, "points": shown_at}
            shown = {int(row["frame"]) for row in found.reply.get("frames", ())} or {int(found.reply["frame"])}
            return {"reply": reply, "masks": {str(k): runs_of(found.mask[k]) for k in sorted(shown)}}

        return await anyio.to_thread.run_sync(work, limiter=self.app.limiter)

    async def measure(self, body: JsonBody = None, user: User = user_role) -> dict[str, Any]:
        """Size of what is drawn on a frame (``runs``): long and short axis, area, in ``unit`` (mm or px)."""
        asked = checked(body, {"image": ID, "frame": _COUNT, "runs": _COUNTS}, "a measurement")

        def work() -> dict[str, Any]:
            image_file = self.app.engine.open(self.app.datastore().image_path(_named(asked))).image_file
            frame = int(asked.get("frame", 0))
            if frame >= image_file.n_frames:
                raise InputError(f"there is no frame {frame}; the image has {image_file.n_frames}")
            drawn = mask_of(asked.get("runs", []), (image_file.height, image_file.width))
            return measure(drawn, image_file.spacing_of(frame)).to_dict()

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def label(self, image: str, user: User = user_role) -> dict[str, Any]:
        """The final label of an image, frame by frame as ``outline``; ``masks`` is null where there is none."""

        def work() -> dict[str, Any]:
            store = self.app.datastore()
            image_file = self.app.engine.open(store.image_path(image)).image_file
            state = self._label_state(image)
            mask = self._final_mask(image, image_file)
            if mask is None:
                return {"masks": None, "label_state": ""}
            return {
                "masks": {str(k): runs_of(frame) for k, frame in enumerate(mask) if frame.any()},
                "label_state": state,
            }

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def save_label(self, body: JsonBody = None, user: User = annotator_role) -> Any:
        """Save a final label from the viewer. ``masks``: frame -> runs; a frame that is ``shown`` (all, where that is not said) and not
        among them is empty, one that is not shown keeps what it has. ``instances``: as the image had them when it was opened; a series that
        has grown since is no obstacle. ``label_state``: of the label that the viewer knows; where another one is there now, the
        answer is 409 with its state, and nothing is saved. The server writes the file, and the DICOM SEG of a PACS. Answers as PUT
        /datastore/label, with the new ``label_state``."""
        sent = checked(body, _SAVE, "a label")

        def work() -> Any:
            image_id = _named(sent)
            image_file = self.app.engine.open(self.app.datastore().image_path(image_id)).image_file
            state = self._label_state(image_id)
            mask = on_frames_of_now(
                sent, self._objects_of(image_id, image_file), lambda: self._final_mask(image_id, image_file), image_file
            )
            params = {**sent.get("params", {}), "client_id": sent.get("client_id", "")}
            params |= {"confirm": True} if sent.get("confirm") else {}

            def still_known() -> None:
                if self._label_state(image_id) != sent.get("label_state", state):
                    raise _OtherLabelError

            content = io.BytesIO(encode_mask(".nrrd", mask, image_file))
            upload = UploadFile(content, filename="label.nrrd")
            try:
                answer = save_uploaded_label(self.app, image_id, json.dumps(params), FINAL, upload, user, still_known)
            except _OtherLabelError:
                return JSONResponse(
                    {"detail": self._other_label(image_id), "label_state": self._label_state(image_id)}, 409
                )
            return {**answer, "label_state": self._label_state(image_id)}

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def next(self, request: Request, body: JsonBody = None, user: User = user_role) -> dict[str, Any]:
        """The next image by the server's strategy (``id``), another one than ``image``, and the part of the viewer's address that opens
        it (``place``); without both where no image is left: ``message`` says why."""
        asked = checked(body, {"client_id": TEXT, "strategy": TEXT, "image": ID}, "a next image")
        found = await self.sample(
            str(asked.get("strategy", "recommended")),
            request,
            {"client_id": asked.get("client_id", ""), "skip": asked.get("image")},
            user,
        )
        if "id" not in found:
            return found
        return {"id": found["id"], "place": await anyio.to_thread.run_sync(self.place_of, found["id"])}

    def place_of(self, image_id: str) -> str:
        """The query of the viewer's address that opens an image. Raises ImageNotFoundException."""
        if self.instances is not None:
            row = self.instances.row(image_id)
            return query_of(row.study, row.series, row.instance)
        info = self.app.datastore().get_image_info(image_id)
        series = str(info["SeriesInstanceUID"])
        return query_of(str(info["StudyInstanceUID"]), series, "" if image_id == series else image_id)

    def _final_mask(self, image_id: str, image_file: ImageFile) -> np.ndarray | None:
        store = self.app.datastore()
        label = store.get_label_uri(image_id, FINAL)
        if not label:
            return None
        return read_mask(label, image_file, confirmed=is_confirmed(store.get_label_info(image_id, FINAL)))

    def _label_state(self, image_id: str) -> str:
        label = self.app.datastore().get_label_uri(image_id, FINAL)
        if not label:
            return ""
        found = Path(label).stat()
        return f"{found.st_mtime_ns:x}-{found.st_size:x}"

    def _other_label(self, image_id: str) -> str:
        info = self.app.datastore().get_label_info(image_id, FINAL)
        if not info:
            return "the label of this image was removed after you opened it"
        at = time.strftime("%H:%M", time.localtime(int(info.get("ts", 0))))
        return f"{info.get('user') or 'somebody'} saved a label of this image at {at}, after you opened it"

    def _objects_of(self, image_id: str, image_file: ImageFile) -> Objects:
        """The DICOM objects that an image's frames come from, in order."""
        if self.instances is not None:
            row = self.instances.row(image_id)
            return [(row.instance, image_file.n_frames)]
        path = self.app.datastore().image_path(image_id)
        found = list(objects_in(path, state_of(path)))
        return [(found[0][0], image_file.n_frames)] if len(found) == 1 else found

    def _image_of(self, study: str, series: str, instance: str) -> str:
        """The id of the image."""
        if self.instances is not None:
            rows = self.instances.find(study, series, instance)
            if len(rows) == 1:
                return rows[0].image_id
            if rows:
                raise HTTPException(404, f"the series holds {len(rows)} images: say which instance")
            raise HTTPException(404, "this series is no image of the studies")
        # In a PACS a series is an image; or, where its pictures differ in size, each of its instances is.
        store = self.app.datastore()
        assert isinstance(store, PacsStudies)
        unreadable: InputError | None = None
        for ask_again in (False, True):
            if ask_again:  # it may have come since the list was made
                store.fresh()
            for image_id in (series, instance):
                try:
                    path = store.image_path(image_id)
                    objects_in(path, state_of(path))
                    return image_id
                except ImageNotFoundException:
                    continue
                except InputError as error:
                    unreadable = error
            if unreadable is not None:
                raise unreadable
        raise HTTPException(404, "this series is no image of the studies")


def _named(sent: Mapping[str, Any]) -> str:
    if "image" not in sent:
        raise InputError("which image? give image, its id")
    return str(sent["image"])


def _point(value: Any, name: str, count: int = 3) -> list[float]:
    numbers = isinstance(value, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != count or not np.isfinite(value).all():
        raise InputError(f"{name}: expected {count} numbers, got {value!r:.80}")
    return [float(v) for v in value]


class _OtherLabelError(Exception):
    """There is another label than the one that the viewer knows."""
