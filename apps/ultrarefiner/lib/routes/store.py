"""Routes of images, labels, sessions and the next sample.

They work in threads. They refuse bad input with a message. A final label goes into the journal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import File, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import datastore as stock_datastore
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.utils.others.generic import file_checksum
from starlette.background import BackgroundTask

from lib.app import App
from lib.routes.access import is_local
from lib.routes.files import sent, sent_at_once
from lib.routes.parameters import NEXT_SAMPLE, checked
from lib.routes.routing import (
    JsonBody,
    OneFile,
    Route,
    admin_role,
    annotator_role,
    author,
    basename,
    name_of,
    params_of,
    stored_upload,
    user_role,
)
from ultrarefiner_monai.core.messages import public_values
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.mask_files import make_plain, read_mask
from ultrarefiner_monai.studies.hand_over import hand_out
from ultrarefiner_monai.studies.names import split_name
from ultrarefiner_monai.studies.open_saves import Drawn
from ultrarefiner_monai.studies.work_folder import LABEL_EXTENSIONS

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL.value


class StoreRoutes:
    """Routes of the studies, the sessions and the next sample."""

    def __init__(self, app: App):
        self.app = app

    def routes(self) -> list[Route]:
        return [
            ("PUT", "/datastore/", self.add_image),
            ("PUT", "/datastore/image", self.add_image),
            ("PUT", "/datastore/label", self.save_label),
            ("PUT", "/datastore/image/info", self.put_image_info),
            ("PUT", "/datastore/label/info", self.put_label_info),
            ("PUT", "/datastore/updatelabelinfo", self.put_label_info_old),
            ("GET", "/datastore/image", self.get_image),
            ("GET", "/datastore/label", self.get_label),
            ("HEAD", "/datastore/image", self.check_image),
            ("DELETE", "/datastore/", self.remove_image),
            ("DELETE", "/datastore/image", self.remove_image),
            ("DELETE", "/datastore/label", self.remove_label),
            ("GET", "/datastore/dataset", self.download_dataset),
            ("PUT", "/session/", self.create_session),
            ("POST", "/activelearning/{strategy}", self.next_sample),
        ]

    async def add_image(
        self,
        file: OneFile,
        image: str | None = None,
        params: str = Form("{}"),
        user: User = annotator_role,
    ) -> dict[str, Any]:
        """Store a new image in the studies."""

        def work() -> dict[str, Any]:
            app, info = self.app, params_of(params) | author(user)
            with stored_upload(app.work, file, app.config.extensions) as path:
                parts = split_name(basename(file), app.config.extensions)
                assert parts is not None  # stored_upload checked it
                return {"image": app.datastore().add_image(image or parts[0], str(path), info)}

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def save_label(
        self,
        image: str,
        label: OneFile,
        params: str = Form("{}"),
        tag: str = FINAL,
        user: User = annotator_role,
    ) -> dict[str, Any]:
        """Save a label; a final one is journalled with the proposal that it was made from. Who gets the answer knows that
        label, author and journal are written; who gets an error knows that nothing has changed.

        params: ``confirm: true`` takes a label that marks nearly the whole picture.
        """
        app = self.app
        # Fetched before its turn: who waits for a slow PACS keeps nobody else from saving.
        await anyio.to_thread.run_sync(app.datastore().image_path, image)
        work = partial(save_uploaded_label, app, image, params, tag or FINAL, label, user)
        return await anyio.to_thread.run_sync(work, limiter=app.savers)

    async def put_image_info(self, image: str, info: str = Form("{}"), user: User = annotator_role) -> None:
        values = params_of(info, "info") | author(user)
        await anyio.to_thread.run_sync(self.app.datastore().update_image_info, image, values)

    async def put_label_info(self, label: str, tag: str, info: str = Form("{}"), user: User = annotator_role) -> None:
        values = _label_info(self.app, info, "info", user)
        await anyio.to_thread.run_sync(self.app.datastore().update_label_info, label, tag, values)

    async def put_label_info_old(
        self, label: str, tag: str, params: str = Form("{}"), user: User = annotator_role
    ) -> None:
        """The deprecated address of ``put_label_info``."""
        await self.put_label_info(label, tag, params, user)

    async def get_image(self, image: str, user: User = user_role) -> Response:
        """As MONAI Label's own; who fetches an image is going to click on it."""
        name = name_of(user)

        def work() -> Response:
            found = sent_at_once(partial(stock_datastore.download_image, image))
            self.app.prepare(image)
            self.app.note_shown(image, name)
            return found

        return await anyio.to_thread.run_sync(work)

    async def get_label(self, label: str, tag: str, user: User = user_role) -> Response:
        """The label as it is now, whole, also while another one is saved."""

        def work() -> Response:
            file, name = self.app.datastore().open_label(label, tag)
            return sent(file, name)

        return await anyio.to_thread.run_sync(work)

    async def check_image(self, image: str, check_sum: str | None = None, user: User = user_role) -> dict[str, Any]:
        """200 when the image is there and, where a sum is given ([SHA256:|SHA512:|MD5:]HEX), has it; else 404."""

        def work() -> dict[str, Any]:
            path = self.app.datastore().client_path(image)
            algorithm, _, digest = check_sum.rpartition(":") if check_sum else ("", "", "")
            if algorithm not in ("", "SHA256", "SHA512", "MD5"):
                raise InputError(f"check_sum must be SHA256:..., SHA512:... or MD5:..., got {check_sum!r:.80}")
            if not path.is_file() or (
                digest and file_checksum(path, algorithm or "SHA256").partition(":")[2] != digest
            ):
                raise ImageNotFoundException(f"there is no image {image!r:.120} with this content")
            return {}

        return await anyio.to_thread.run_sync(work)

    async def remove_image(self, id: str, user: User = admin_role) -> dict[str, Any]:
        await anyio.to_thread.run_sync(self.app.datastore().remove_image, id)
        return {}

    async def remove_label(self, id: str, tag: str, user: User = admin_role) -> dict[str, Any]:
        await anyio.to_thread.run_sync(self.app.datastore().remove_label, id, tag)
        return {}

    async def download_dataset(self, limit_cases: int | None = None, user: User = annotator_role) -> FileResponse:
        """All labelled images and their labels as a ZIP file, made in a thread and removed once it is sent."""
        path = await anyio.to_thread.run_sync(self.app.datastore().get_dataset_archive, limit_cases)
        return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=_removed(path))

    async def create_session(
        self,
        files: Annotated[list[UploadFile], File()],
        uncompress: bool = False,
        expiry: int = 0,
        user: User = user_role,
    ) -> dict[str, Any]:
        """Keep an uploaded image for a while, outside the studies."""
        name = name_of(user)

        def work() -> dict[str, Any]:
            app, sessions = self.app, self.app.sessions()
            if sessions is None:
                raise HTTPException(406, "sessions are switched off on this server (MONAI_LABEL_SESSIONS)")
            if uncompress or len(files) != 1:
                raise InputError(
                    f"a session takes one image file, not an archive or a folder; got {len(files)} file(s)"
                )
            with stored_upload(app.work, files[0], app.config.extensions) as path:
                app.engine.read(path)
                session_id, session = sessions.add_session(str(path), expiry)
            app.preparer.open(f"session:{session_id}", lambda: Path(session.image))
            app.note_shown(f"session:{session_id}", name, Path(session.image))
            return {"session_id": session_id, "session_info": public_values(session.to_json())}

        return await anyio.to_thread.run_sync(work, limiter=self.app.savers)

    async def next_sample(
        self, strategy: str, request: Request, params: JsonBody = None, user: User = user_role
    ) -> dict[str, Any]:
        """The next image to label; remembered, so that it does not come back at once when it is skipped. Its ``path`` is for
        a client on the server's own machine, which opens the file itself; others fetch the image.

        Without an ``id`` where no image is left; ``message`` says why."""
        params = checked(params, NEXT_SAMPLE, "a next sample")
        name = name_of(user)
        # 3D Slicer sends one client_id for all users who do not set another: the address tells them apart.
        address = request.client.host if request.client is not None else ""

        def work() -> dict[str, Any]:
            app = self.app
            client = str(params.get("client_id") or name)
            asked = {**params, "client_id": client, "strategy": strategy, "holder": f"{client} {address}"}
            result = app.next_sample(asked)
            if "id" not in result:
                return result
            image_id, store = result["id"], app.datastore()
            offers = store.get_image_info(image_id).get("strategy")
            offers = offers if isinstance(offers, dict) else {}  # clients may write what they like into the info
            store.update_image_info(
                image_id, {"strategy": {**offers, strategy: {"ts": time.time(), "client_id": client}}}
            )
            file = Path(store.get_image_uri(image_id))
            handed = hand_out(app.work, image_id, file, app.config.extensions) if file.is_file() else {}
            reply = {**store.get_image_info(image_id), **result, **handed}
            if handed_out := request.scope.get("state", {}).get("handed_out"):
                handed_out(image_id)
            return public_values(reply) | {"path": reply["path"] if is_local(request.scope) else ""}

        return await anyio.to_thread.run_sync(work)


def save_uploaded_label(
    app: App,
    image: str,
    params: str,
    tag: str,
    label: UploadFile,
    user: User,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What ``StoreRoutes.save_label`` does, in a thread. check: raises where the label may not be saved; nobody else saves between
    it and the saving."""
    info, store = _label_info(app, params, "params", user), app.datastore()
    confirmed = info.pop("confirm", False)
    if not isinstance(confirmed, bool):
        raise InputError(f"confirm in params must be true or false, got {confirmed!r:.80}")
    info |= {"confirmed": True} if confirmed else {}
    opened = app.engine.open(store.image_path(image))  # no label without its image
    warnings = list(opened.image_file.warnings)
    with stored_upload(app.work, label, LABEL_EXTENSIONS, default=".nii.gz") as path:
        path = store.fitted(image, path)
        mask = read_mask(path, opened.image_file, confirmed=confirmed, warnings=warnings)
        make_plain(path, mask, opened.image_file)
        drawn = Drawn(opened.sha256, mask) if tag == FINAL else None
        with store.saving:
            check()
            if app.exchange is not None and tag == FINAL:
                info = app.exchange.mark(info)
            label_id = store.save_label(image, str(path), tag, info, drawn)
    if tag == FINAL:
        app.sampler.leases.give_up(image)
        app.learner.saved(image)
        if app.exchange is not None:
            app.exchange.saved(image)
    return {"image": image, "label": label_id} | ({"warnings": warnings} if warnings else {})


def _removed(path: str) -> BackgroundTask:
    return BackgroundTask(Path(path).unlink, missing_ok=True)


def _label_info(app: App, text: str, what: str, user: User) -> dict[str, Any]:
    """The info that a client sent with a label, without the keys that only the server sets, with its author."""
    sent = params_of(text, what)
    return {key: value for key, value in sent.items() if key not in app.datastore().own_info} | author(user)
