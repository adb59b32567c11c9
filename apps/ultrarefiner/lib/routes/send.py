"""POST /ultrarefiner/send: store a label in the PACS on demand."""

from __future__ import annotations

from typing import Any

import anyio
from fastapi import FastAPI, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import User

from lib.app import App
from lib.routes.routing import annotator_role
from ultrarefiner_monai.exchange.labels import FINAL
from ultrarefiner_monai.studies.names import check_name


def install(server: FastAPI, app: App) -> None:
    """Put the route behind all others; 404 where the studies are a folder."""

    async def send(image: str, tag: str = FINAL, sr: bool | None = None, user: User = annotator_role) -> dict[str, Any]:
        if app.exchange is None:
            raise HTTPException(404, "the studies are a folder, not a PACS: there is nowhere to send a label")
        return await anyio.to_thread.run_sync(app.exchange.send, check_name(image, "image"), check_name(tag, "tag"), sr)

    address = settings.MONAI_LABEL_API_STR + "/ultrarefiner/send"
    server.add_api_route(address, send, methods=["POST"], include_in_schema=False, response_model=None)
