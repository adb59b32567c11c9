"""POST /infer: the image that a request names, and the reply with its outline.

The work is done in a few threads; MONAI Label's own route computes in the server's event loop.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
from fastapi import Form, HTTPException, UploadFile
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints.infer import ResultType
from monailabel.endpoints.user.auth import User
from requests_toolbelt import MultipartEncoder

from lib.app import App
from lib.routes.metrics import note_cached
from lib.routes.parameters import INFER, checked
from lib.routes.routing import MaybeFile, Route, check_known, params_of, stored_upload, user_role
from lib.tasks.infers import Outline
from ultrarefiner_monai.core.types import InputError

MEDIA_TYPES = {".png": "image/png", ".nii.gz": "application/gzip"}


class InferRoutes:
    """The one route of this file."""

    def __init__(self, app: App):
        self.app = app

    def routes(self) -> list[Route]:
        return [("POST", "/infer/{model}", self.infer)]

    async def infer(
        self,
        model: str,
        image: str = "",
        session_id: str = "",
        params: str = Form("{}"),
        file: MaybeFile = None,
        label: MaybeFile = None,
        output: ResultType | None = None,
        frame: str = "",
        user: User = user_role,
    ) -> Response:
        """As MONAI Label's own route; the computation runs in one of a few threads. ``frame`` may also stand in params."""
        app, path = self.app, None
        if image and file is None and not session_id:
            # An image that a PACS has to send first: who waits for it takes no place of those that compute.
            path = await anyio.to_thread.run_sync(app.datastore().image_path, image)
        work = partial(_infer, app, model, (image, path), session_id, params, file, output, frame)
        return await anyio.to_thread.run_sync(work, limiter=app.limiter)


def _infer(
    app: App,
    model: str,
    stored: tuple[str, Path | None],
    session_id: str,
    params: str,
    file: UploadFile | None,
    output: ResultType | None,
    frame: str,
) -> Response:
    image = stored[0]
    check_known(model, app._infers, "model")
    request = params_of(params)
    if "image" in request and request["image"] != image:
        raise InputError("params must not name another image: the image is what the address says")
    request = checked(request, INFER, "params")
    if frame:
        request["frame"] = frame
    with _image_file(app, stored, session_id, file) as (path, image_id):
        if output == ResultType.dicom_seg:
            outline = app.outline(model, path, image_id, request, as_file=False)
            return Response(_dicom_seg(model, path, outline), media_type="application/dicom")
        outline = app.outline(model, path, image_id, request)
    note_cached(outline.reply.get("timings", {}).get("cached") == 1.0)
    return _response(outline, image_id, output)


def _dicom_seg(model: str, path: Path, outline: Outline) -> bytes:
    """The outline as a DICOM SEG file on the frames of ``path``; InputError where these are no DICOM images."""
    from ultrarefiner_monai.dicom.seg import make_seg
    from ultrarefiner_monai.dicom.series import instance_files

    seg = make_seg(outline.mask, instance_files(path), model, str(outline.reply["version"]))
    buffer = io.BytesIO()
    seg.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@contextmanager
def _image_file(
    app: App, stored: tuple[str, Path | None], session_id: str, file: UploadFile | None
) -> Iterator[tuple[Path, str]]:
    """(file, id) of the image that a request means: an upload, a session's, or one of the studies (``stored``: its id
    and file). Nothing else."""
    if file is not None:
        with stored_upload(app.work, file, app.config.extensions) as path:
            yield path, ""
    elif session_id:
        sessions = app.sessions()
        session = sessions.get_session(session_id) if sessions is not None else None
        if session is None:
            raise HTTPException(404, f"there is no session {session_id}: it expired, or never was")
        yield Path(session.image), f"session:{session_id}"
    elif stored[1] is not None:
        yield stored[1], stored[0]
    else:
        raise InputError("which image? give image=ID, session_id=ID, or a file")


def _response(outline: Outline, image_id: str, output: ResultType | None) -> Response:
    media_type = MEDIA_TYPES.get(outline.extension, "application/octet-stream")
    # Clients save what comes under this name in one folder: two replies must not meet there.
    stem = re.sub("[^A-Za-z0-9._-]", "_", image_id) or "mask"
    name = f"{stem}-{uuid.uuid4().hex[:8]}{outline.extension}"
    if output == ResultType.json:
        return JSONResponse(outline.reply)
    if output == ResultType.image:
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(outline.content, media_type=media_type, headers=disposition)
    fields = {"params": (None, json.dumps(outline.reply, allow_nan=False), "application/json")}
    message = MultipartEncoder(fields={**fields, "image": (name, outline.content, media_type)})
    return Response(message.to_string(), media_type=message.content_type)
