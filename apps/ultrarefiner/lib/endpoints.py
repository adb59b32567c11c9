"""What the server adds or repairs: routes that work in threads, refuse bad input with a message, and journal.

MONAI Label runs inference in its event loop and answers bad input with 500. The routes here stand before its own; all
others stay as they are, behind ``lib.guard``.
"""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import psutil
from fastapi import Body, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints import batch_infer as stock_batch_infer
from monailabel.endpoints import datastore as stock_datastore
from monailabel.endpoints import train as stock_train
from monailabel.endpoints.infer import ResultType
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import processes
from monailabel.utils.others.generic import file_checksum
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from lib.guard import Guard
from lib.handout import hand_out
from lib.infers import Outline
from lib.names import check_name, split_name
from lib.page import front_page
from ultrarefiner_monai.data.writers import read_mask
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import LABEL_EXTENSIONS

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL.value
MEDIA_TYPES = {".png": "image/png", ".nii.gz": "application/gzip"}

OneFile = Annotated[UploadFile, File()]
MaybeFile = Annotated[UploadFile | None, File()]
JsonBody = Annotated[dict | None, Body()]

user_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
admin_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))
annotator_role = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))


# --- inference --------------------------------------------------------------------------------------------------------


async def infer(
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
    app, path = app_instance(), None
    if image and file is None and not session_id:
        # An image that a PACS has to send first: who waits for it takes no place of those that compute.
        path = await anyio.to_thread.run_sync(app.datastore().image_path, image)
    work = partial(_infer, app, model, (image, path), session_id, params, file, output, frame)
    return await anyio.to_thread.run_sync(work, limiter=app.limiter)


def _infer(
    app: Any,
    model: str,
    stored: tuple[str, Path | None],
    session_id: str,
    params: str,
    file: UploadFile | None,
    output: ResultType | None,
    frame: str,
) -> Response:
    image = stored[0]
    _known(model, app._infers, "model")
    request = _params(params)
    if "image" in request and request["image"] != image:
        raise InputError("params must not name another image: the image is what the address says")
    if frame:
        request["frame"] = frame
    with _image_file(app, stored, session_id, file) as (path, image_id):
        outline = app.outline(model, path, image_id, request)
        if output == ResultType.dicom_seg:
            return Response(_dicom_seg(app, model, path, outline), media_type="application/dicom")
    return _response(outline, image_id, output)


def _dicom_seg(app: Any, model: str, path: Path, outline: Outline) -> bytes:
    """The outline as a DICOM SEG file on the frames of ``path``; InputError where these are no DICOM images."""
    from ultrarefiner_monai.data.series import dicom_files, sort_instances
    from ultrarefiner_monai.pacs.seg import make_seg

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"mask{outline.extension}")
        file.write_bytes(outline.content)
        mask = read_mask(file, app.engine.open(path).study)
    files = sort_instances(dicom_files(path)) if path.is_dir() else [path]
    seg = make_seg(mask, files, model, str(outline.reply["version"]))
    buffer = io.BytesIO()
    seg.save_as(buffer, write_like_original=False)
    return buffer.getvalue()


@contextmanager
def _image_file(
    app: Any, stored: tuple[str, Path | None], session_id: str, file: UploadFile | None
) -> Iterator[tuple[Path, str]]:
    """(file, id) of the image that a request means: an upload, a session's, or one of the studies (``stored``: its id
    and file). Nothing else."""
    if file is not None:
        with _stored(app, file, app.config.extensions) as path:
            yield path, ""
    elif session_id:
        session = app.sessions().get_session(session_id) if app.sessions() is not None else None
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


# --- images, labels, sessions, next sample ----------------------------------------------------------------------------


async def add_image(
    file: OneFile,
    image: str | None = None,
    params: str = Form("{}"),
    user: User = annotator_role,
) -> dict[str, Any]:
    """Store a new image in the studies."""

    def work() -> dict[str, Any]:
        app, info = app_instance(), _params(params) | _author(user)
        with _stored(app, file, app.config.extensions) as path:
            parts = split_name(_basename(file), app.config.extensions)
            assert parts is not None  # _stored checked it
            return {"image": app.datastore().add_image(image or parts[0], str(path), info)}

    return await anyio.to_thread.run_sync(work)


async def save_label(
    image: str,
    label: OneFile,
    params: str = Form("{}"),
    tag: str = FINAL,
    user: User = annotator_role,
) -> dict[str, Any]:
    """Save a label; a final one is journalled with the proposal that it was made from."""
    return await anyio.to_thread.run_sync(
        partial(_save_label, app_instance(), image, params, tag or FINAL, label, user)
    )


def _save_label(app: Any, image: str, params: str, tag: str, label: UploadFile, user: User) -> dict[str, Any]:
    info, source = _params(params) | _author(user), app.datastore().image_path(image)
    warnings = []
    with _stored(app, label, LABEL_EXTENSIONS, default=".nii.gz") as path:
        path = app.datastore().fitted(image, path)
        try:
            mask = read_mask(path, app.engine.open(source).study)
        except InputError as error:
            mask = read_mask(path)  # unreadable: refused; readable, but not made for this image: kept, and said
            warnings.append(str(error))
            logger.warning("label of %s: %s", image, error)
        with app.datastore().saving:
            if app.exchange is not None and tag == FINAL:
                info = app.exchange.mark(info)
            label_id = app.datastore().save_label(image, str(path), tag, info)
            if tag == FINAL:
                app.journal_label(image, source, mask, info)
    if tag == FINAL:
        app.journal.flush()  # this runs in a thread of its own: who gets the answer knows that both are written
        if app.exchange is not None:
            app.exchange.saved(image)
    return {"image": image, "label": label_id} | ({"warnings": warnings} if warnings else {})


async def put_image_info(image: str, info: str = Form("{}"), user: User = annotator_role) -> None:
    values = _params(info, "info") | _author(user)
    await anyio.to_thread.run_sync(app_instance().datastore().update_image_info, image, values)


async def put_label_info_old(label: str, tag: str, params: str = Form("{}"), user: User = annotator_role) -> None:
    """The deprecated address of the same."""
    await put_label_info(label, tag, params, user)


async def get_image(image: str, user: User = user_role) -> FileResponse:
    """As MONAI Label's own; who fetches an image is going to click on it."""

    def work() -> FileResponse:
        found = stock_datastore.download_image(image)
        app_instance().prepare(image)
        return found

    return await anyio.to_thread.run_sync(work)


async def check_image(image: str, check_sum: str | None = None, user: User = user_role) -> dict[str, Any]:
    """200 when the image is there and, where a sum is given ([SHA256:|SHA512:|MD5:]HEX), has it; else 404."""

    def work() -> dict[str, Any]:
        path = app_instance().datastore().image_path(image)
        algorithm, _, digest = check_sum.rpartition(":") if check_sum else ("", "", "")
        if algorithm not in ("", "SHA256", "SHA512", "MD5"):
            raise InputError(f"check_sum must be SHA256:..., SHA512:... or MD5:..., got {check_sum!r:.80}")
        if not path.is_file() or (digest and file_checksum(path, algorithm or "SHA256").partition(":")[2] != digest):
            raise ImageNotFoundException(f"there is no image {image!r:.120} with this content")
        return {}

    return await anyio.to_thread.run_sync(work)


async def remove_image(id: str, user: User = admin_role) -> dict[str, Any]:
    await anyio.to_thread.run_sync(app_instance().datastore().remove_image, id)
    return {}


async def remove_label(id: str, tag: str, user: User = admin_role) -> dict[str, Any]:
    await anyio.to_thread.run_sync(app_instance().datastore().remove_label, id, tag)
    return {}


async def download_dataset(limit_cases: int | None = None, user: User = annotator_role) -> FileResponse:
    """All labelled images and their labels as a ZIP file, made in a thread and removed once it is sent."""
    path = await anyio.to_thread.run_sync(app_instance().datastore().get_dataset_archive, limit_cases)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=_removed(path))


def _removed(path: str) -> BackgroundTask:
    return BackgroundTask(Path(path).unlink, missing_ok=True)


async def put_label_info(label: str, tag: str, info: str = Form("{}"), user: User = annotator_role) -> None:
    values = _params(info, "info") | _author(user)
    await anyio.to_thread.run_sync(app_instance().datastore().update_label_info, label, tag, values)


async def create_session(
    files: Annotated[list[UploadFile], File()], uncompress: bool = False, expiry: int = 0, user: User = user_role
) -> dict[str, Any]:
    """Keep an uploaded image for a while, outside the studies."""

    def work() -> dict[str, Any]:
        app = app_instance()
        if app.sessions() is None:
            raise HTTPException(406, "sessions are switched off on this server (MONAI_LABEL_SESSIONS)")
        if uncompress or len(files) != 1:
            raise InputError(f"a session takes one image file, not an archive or a folder; got {len(files)} file(s)")
        with _stored(app, files[0], app.config.extensions) as path:
            app.engine.read(path)
            session_id, session = app.sessions().add_session(str(path), expiry)
        app.preparer.open(f"session:{session_id}", lambda: Path(session.image))
        return {"session_id": session_id, "session_info": session.to_json()}

    return await anyio.to_thread.run_sync(work)


async def next_sample(strategy: str, params: JsonBody = None, user: User = user_role) -> dict[str, Any]:
    """The next image to label; remembered, so that it does not come back at once when it is skipped."""

    def work() -> dict[str, Any]:
        app = app_instance()
        result = app.next_sample({**(params or {}), "strategy": strategy})
        if not result:
            return {}
        image_id, store = result["id"], app.datastore()
        client = str((params or {}).get("client_id") or user.username or "")
        offers = store.get_image_info(image_id).get("strategy")
        offers = offers if isinstance(offers, dict) else {}  # clients may write what they like into the info
        store.update_image_info(image_id, {"strategy": {**offers, strategy: {"ts": time.time(), "client_id": client}}})
        file = Path(store.get_image_uri(image_id))
        handed = hand_out(app.work, image_id, file, app.config.extensions) if file.is_file() else {}
        return {**store.get_image_info(image_id), **result, **handed}

    return await anyio.to_thread.run_sync(work)


async def front(request: Request, user: User = user_role) -> HTMLResponse:
    return HTMLResponse(front_page(app_instance().info(), str(request.base_url).rstrip("/")))


# --- batches, and what is not there -----------------------------------------------------------------------------------


async def batch_infer(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: JsonBody = None,
    run_sync: bool = False,
    user: User = admin_role,
) -> Any:
    """As MONAI Label's own, once it is sure that the model exists and nothing is written under another name."""
    _known(model, app_instance()._infers, "model")
    # MONAI Label shares batches out to several GPUs, and divides by zero where there is none.
    params = {**(params or {}), "multi_gpu": False, "max_workers": 1}
    check_name(params.get("label_tag") or FINAL, "label_tag")
    chosen = params.get("images", [])
    if chosen not in [t.value for t in BatchInferImageType] and not (
        isinstance(chosen, list) and all(isinstance(i, str) for i in chosen)
    ):
        raise InputError(f"images must be all, labeled, unlabeled or a list of ids, got {chosen!r:.80}")
    return await anyio.to_thread.run_sync(partial(stock_batch_infer.run, model, images, params, run_sync))


async def train(
    model: str,
    params: JsonBody = None,
    run_sync: bool = False,
    enqueue: bool = False,
    user: User = admin_role,
) -> Any:
    """As MONAI Label's own, once it is sure that there is something to train on; one at a time, 429 where one runs."""
    _known(model, app_instance()._trainers, "trainer")
    if run_sync:
        raise InputError("run_sync would train inside the server: leave it out, and ask GET /train/ how far it is")
    return await anyio.to_thread.run_sync(partial(_train, model, params or {}, enqueue))


def _train(model: str, params: dict[str, Any], enqueue: bool) -> Any:
    app = app_instance()
    if processes("train") and not enqueue:
        raise HTTPException(429, "a training is running: wait until it ends, or stop it (DELETE /train/)")
    request = app._trainers[model].check(params, app.datastore())
    return stock_train.run_model(model, request, False, enqueue)


async def train_all(params: JsonBody = None, user: User = admin_role) -> dict[str, Any]:
    """All trainings, one after the other; params: model -> its options. Those that cannot be started say why."""

    def work() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for model in app_instance()._trainers:
            try:
                options = (params or {}).get(model, {})
                if not isinstance(options, dict):
                    raise InputError(f"params must hold an object for each model, got {options!r:.80} for {model}")
                found[model] = {"result": _train(model, options, True), "detail": None}
            except InputError as error:
                found[model] = {"result": None, "detail": str(error)}
        if not any(f["result"] for f in found.values()):
            raise InputError("; ".join(dict.fromkeys(f["detail"] for f in found.values())))
        return found

    return await anyio.to_thread.run_sync(work)


async def stop_training(user: User = admin_role) -> Any:
    """As MONAI Label's own, with a ``result`` always: 3D Slicer's module fails on a training stopped before it said a word."""

    def work() -> Any:
        try:
            stopped = stock_train.stop()
        except (psutil.Error, IndexError):  # it ended in this very moment
            return None
        return stopped and {"result": ["stopped", *stopped.get("details", [])][-1], **stopped}

    return await anyio.to_thread.run_sync(work)


def refuse(status: int, message: str) -> Callable[[], Any]:
    """A route that says why there is nothing here."""

    async def route() -> None:
        raise HTTPException(status, message)

    return route


# --- helpers ----------------------------------------------------------------------------------------------------------


def _known(name: str, known: dict[str, Any], what: str) -> None:
    if name not in known:
        raise HTTPException(404, f"there is no {what} {name!r:.80}; known: {', '.join(known) or 'none'}")


def _params(text: str, what: str = "params") -> dict[str, Any]:
    """A JSON object from a form field; InputError for anything else."""
    try:
        value = json.loads(text) if text and text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object {{...}}, got {type(value).__name__}")
    return value


def _author(user: User) -> dict[str, str]:
    """Who it is, where there is a login; without one MONAI Label calls everybody admin."""
    return {"user": user.username} if settings.MONAI_LABEL_AUTH_ENABLE and user.username else {}


def _basename(upload: UploadFile) -> str:
    """Clients send whole paths, of any system: only the last part counts."""
    return (upload.filename or "").replace("\\", "/").rsplit("/", 1)[-1]


@contextmanager
def _stored(app: Any, upload: UploadFile, extensions: tuple[str, ...], default: str = "") -> Iterator[Path]:
    """The upload as a file of a safe name in the work folder, gone afterwards; InputError for other extensions."""
    name = _basename(upload)
    parts = split_name(name, extensions) or (("label", default) if default and "." not in name else None)
    if parts is None:
        raise InputError(f"expected a file ending in {', '.join(extensions)}, got {name!r:.120}")
    app.work.tmp.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=app.work.tmp) as folder:
        try:
            path = Path(folder, check_name(parts[0] + parts[1].lower(), "file name"))
        except InputError:
            path = Path(folder, f"image{parts[1].lower()}")
        with path.open("wb") as target:
            shutil.copyfileobj(upload.file, target)
        yield path


def _answer(status: int) -> Callable[[Request, Exception], Any]:
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(getattr(error, "msg", None) or error)}, status)

    return handler


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own refusals in a sentence, without echoing what came."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    text = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg', '')}" for e in found)
    return JSONResponse({"detail": text or "the request is not valid"}, 422)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"detail": f"internal error ({type(error).__name__}); the server's log has the details"}, 500)


# --- installation -----------------------------------------------------------------------------------------------------


def install(server: FastAPI, app: Any) -> None:
    """Put the routes above before MONAI Label's, the guard before everything, and limit CORS to what is configured."""
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/", front),
        ("POST", "/infer/wsi/{model}", refuse(404, "there are no pathology models here")),
        ("POST", "/infer/wsi_v2/{model}", refuse(404, "there are no pathology models here")),
        ("POST", "/infer/{model}", infer),
        ("POST", "/batch/infer/{model}", batch_infer),
        ("POST", "/train/", train_all),
        ("POST", "/train/{model}", train),
        ("DELETE", "/train/", stop_training),
        ("POST", "/scoring/{method}", refuse(404, "there are no scoring methods")),
        ("PUT", "/datastore/", add_image),
        ("PUT", "/datastore/image", add_image),
        ("PUT", "/datastore/label", save_label),
        ("PUT", "/datastore/image/info", put_image_info),
        ("PUT", "/datastore/label/info", put_label_info),
        ("PUT", "/datastore/updatelabelinfo", put_label_info_old),
        ("GET", "/datastore/image", get_image),
        ("HEAD", "/datastore/image", check_image),
        ("DELETE", "/datastore/", remove_image),
        ("DELETE", "/datastore/image", remove_image),
        ("DELETE", "/datastore/label", remove_label),
        ("GET", "/datastore/dataset", download_dataset),
        ("PUT", "/session/", create_session),
        ("POST", "/activelearning/{strategy}", next_sample),
        ("PUT", "/model/{model}", refuse(403, "models are chosen with `ultrarefiner models use`, not uploaded")),
        ("DELETE", "/model/{model}", refuse(403, "models are chosen with `ultrarefiner models use`, not removed")),
        ("POST", "/reload", refuse(403, "restart the server instead")),
    ]
    if not app.studies.startswith(("http://", "https://")):
        for method in ("GET", "POST"):
            routes.append(
                (method, "/proxy/dicom/{path:path}", refuse(404, "the studies are a folder, not a DICOMweb store"))
            )
    if not shutil.which("nvidia-smi"):
        routes.append(("GET", "/logs/gpu", refuse(404, "there is no nvidia-smi on this machine")))
    before = len(server.router.routes)
    for method, path, endpoint in routes:
        prefix = "" if path in ("/", "/reload") else settings.MONAI_LABEL_API_STR
        server.add_api_route(prefix + path, endpoint, methods=[method], include_in_schema=False, response_model=None)
    added = server.router.routes[before:]
    server.router.routes[:] = [*added, *server.router.routes[:before]]

    handlers = server.exception_handlers
    handlers[InputError] = _answer(400)
    handlers[json.JSONDecodeError] = _answer(400)
    handlers[ImageNotFoundException] = handlers[LabelNotFoundException] = _answer(404)
    handlers[MONAILabelException] = _answer(404)
    handlers[RequestValidationError] = _invalid
    handlers[Exception] = _failed

    origins = [str(o).rstrip("/") for o in settings.MONAI_LABEL_CORS_ORIGINS] or list(app.config.cors_origins)
    server.user_middleware[:] = [
        *(m for m in server.user_middleware if m.cls not in (CORSMiddleware, Guard)),
        Middleware(Guard, limit=app.config.max_upload_mb << 20),
    ]
    if origins:
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        server.user_middleware.insert(0, cors)
    server.middleware_stack = server.build_middleware_stack()
