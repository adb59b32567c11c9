"""What the mode "UltraRefiner" of the viewer asks for (apps/ultrarefiner/viewer): images by their DICOM UIDs, and masks frame by
frame, in the pixels that the viewer shows.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import anyio
import numpy as np
from fastapi import HTTPException, Request, UploadFile
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

from lib.app import App
from lib.routes.parameters import FLAG, FRAME, POINTS, TEXT, Kind, checked
from lib.routes.routing import JsonBody, Route, annotator_role, name_of, user_role
from lib.routes.store import save_uploaded_label
from lib.store.instances import Instances
from lib.store.pacs import PacsStudies
from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom
from ultrarefiner_monai.dicom.series import instance_files
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.writers import encode_mask
from ultrarefiner_monai.masks.label_values import is_confirmed

FINAL = DefaultLabelTag.FINAL.value
_ID = Kind(lambda v: isinstance(v, str) and 0 < len(v) <= 512, "the id of an image")
_MASKS = Kind(
    lambda v: isinstance(v, dict) and all(isinstance(m, str) for m in v.values()), "frame -> packed bits, base64"
)
_OUTLINE = {"image": _ID, "model": TEXT, "frame": FRAME, "foreground": POINTS, "background": POINTS, "box": POINTS,
            "view": TEXT, "client_id": TEXT, "hint": FLAG}  # fmt: skip
_SAVE = {"image": _ID, "masks": _MASKS, "params": Kind(lambda v: isinstance(v, dict), "an object"), "client_id": TEXT,
         "confirm": FLAG}  # fmt: skip


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
            ("GET", "/ultrarefiner/viewer/label", self.label),
            ("PUT", "/ultrarefiner/viewer/label", self.save_label),
            ("POST", "/ultrarefiner/viewer/next", self.next),
        ]

    async def image(
        self, study: str, series: str, request: Request, instance: str = "", client_id: str = "", user: User = user_role
    ) -> dict[str, Any]:
        """The image that a series of the viewer is, or the one that ``instance`` belongs to; and what the user should know before the
        work begins. ``instances``: the DICOM objects that its frames come from, in order. The image is leased to who opens it, as a
        next sample is (``others``: somebody else holds it)."""
        address = request.client.host if request.client is not None else ""
        holder = f"{client_id or name_of(user)} {address}"  # as for a next sample

        def work() -> dict[str, Any]:
            store = self.app.datastore()
            image_id, instances = self._image_of(study, series, instance)
            image_file = self.app.engine.open(store.image_path(image_id)).image_file
            return {
                "id": image_id,
                "instances": instances,
                "frames": image_file.n_frames,
                "height": image_file.height,
                "width": image_file.width,
                "spacing_mm": image_file.spacing_mm,
                "warnings": image_file.warnings,
                "labelled": bool(store.get_label_uri(image_id, FINAL)),
                "others": not self.app.sampler.leases.take(image_id, holder),
            }

        return await anyio.to_thread.run_sync(work)

    async def outline(self, body: JsonBody = None, user: User = user_role) -> dict[str, Any]:
        """An outline for the viewer: ``foreground`` and ``background`` [[x, y, frame], ...] and ``box`` [x0, y0, x1, y1] on
        ``frame``, in pixels of the frame. ``hint``: what a click would give, which is not recorded. The reply's ``masks``: frame ->
        bits of (height, width), row by row, base64."""
        asked = checked(body, _OUTLINE, "an outline")

        def work() -> dict[str, Any]:
            image_id = _named(asked)
            path = self.app.datastore().image_path(image_id)
            geometry = self.app.engine.open(path).image_file.geometry
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
            return {"reply": reply, "masks": {str(k): _packed(found.mask[k]) for k in sorted(shown)}}

        return await anyio.to_thread.run_sync(work, limiter=self.app.limiter)

    async def label(self, image: str, user: User = user_role) -> dict[str, Any]:
        """The final label of an image, frame by frame as ``outline``; ``masks`` is null where there is none."""

        def work() -> dict[str, Any]:
            store = self.app.datastore()
            image_file = self.app.engine.open(store.image_path(image)).image_file
            label = store.get_label_uri(image, FINAL)
            if not label:
                return {"masks": None}
            confirmed = is_confirmed(store.get_label_info(image, FINAL))
            mask = read_mask(label, image_file, confirmed=confirmed)
            return {"masks": {str(k): _packed(frame) for k, frame in enumerate(mask) if frame.any()}}

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def save_label(self, body: JsonBody = None, user: User = annotator_role) -> dict[str, Any]:
        """Save a final label from the viewer; frames that ``masks`` does not name are empty. The server writes the file, and
        the DICOM SEG of a PACS. Answers as PUT /datastore/label."""
        sent = checked(body, _SAVE, "a label")

        def work() -> dict[str, Any]:
            image_id = _named(sent)
            image_file = self.app.engine.open(self.app.datastore().image_path(image_id)).image_file
            mask = _unpacked(sent.get("masks", {}), image_file)
            params = {**sent.get("params", {}), "client_id": sent.get("client_id", "")}
            params |= {"confirm": True} if sent.get("confirm") else {}
            content = io.BytesIO(encode_mask(".nrrd", mask, image_file))
            upload = UploadFile(content, filename="label.nrrd")
            return save_uploaded_label(self.app, image_id, json.dumps(params), FINAL, upload, user)

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def next(self, request: Request, body: JsonBody = None, user: User = user_role) -> dict[str, Any]:
        """The next image by the server's strategy (``id``) and the part of the viewer's address that opens it (``place``); without
        both where no image is left: ``message`` says why."""
        asked = checked(body, {"client_id": TEXT, "strategy": TEXT}, "a next image")
        found = await self.sample(
            str(asked.get("strategy", "recommended")), request, {"client_id": asked.get("client_id", "")}, user
        )
        if "id" not in found:
            return found
        return {"id": found["id"], "place": await anyio.to_thread.run_sync(self.place_of, found["id"])}

    def place_of(self, image_id: str) -> str:
        """The query of the viewer's address that opens an image. Raises ImageNotFoundException."""
        if self.instances is not None:
            row = next((row for row in self.instances.rows() if row.image_id == image_id), None)
            if row is None:
                raise ImageNotFoundException(f"{image_id!r:.120} is not in the studies any more")
            return query_of(row.study, row.series, row.instance)
        info = self.app.datastore().get_image_info(image_id)
        series = str(info["SeriesInstanceUID"])
        return query_of(str(info["StudyInstanceUID"]), series, "" if image_id == series else image_id)

    def _image_of(self, study: str, series: str, instance: str) -> tuple[str, list[str]]:
        """(id of the image, the instances that its frames come from)."""
        if self.instances is not None:
            rows = self.instances.find(study, series, instance)
            if len(rows) == 1:
                return rows[0].image_id, [rows[0].instance]
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
                    return image_id, [str(open_dicom(f, header_only=True).SOPInstanceUID) for f in instance_files(path)]
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


def _packed(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask.astype(bool), axis=None).tobytes()).decode()


def _unpacked(masks: Mapping[str, str], image_file: ImageFile) -> np.ndarray:
    """(T, H, W) uint8. Raises InputError for a frame that is not there, and for bits that are no mask of a frame."""
    mask = np.zeros(image_file.shape, np.uint8)
    size = image_file.height * image_file.width
    for name, text in masks.items():
        if not name.isdecimal() or int(name) >= image_file.n_frames:
            raise InputError(f"masks: there is no frame {name!r:.20}; the image has {image_file.n_frames}")
        try:
            bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        except (binascii.Error, ValueError):
            raise InputError(f"masks: frame {name} is not base64") from None
        if len(bits) != -(-size // 8):
            raise InputError(f"masks: frame {name} has {len(bits)} bytes; {-(-size // 8)} are {size} pixels")
        mask[int(name)] = np.unpackbits(bits, count=size).reshape(image_file.height, image_file.width)
    return mask
