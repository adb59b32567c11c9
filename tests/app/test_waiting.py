"""A PACS that takes its time holds up those who wait for it, and nobody else. No server."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
from main import UltraRefinerApp
from monailabel.endpoints.infer import ResultType
from monailabel.endpoints.user.auth import User
from starlette.datastructures import UploadFile
from test_growth import SERIES, Desk

from lib.routes.infer import InferRoutes
from lib.routes.store import save_uploaded_label
from lib.tasks.infers import Outline
from lib.tasks.leases import Leases
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.journal_queue import JournalQueue


def make_app(**parts: Any) -> UltraRefinerApp:
    """The app with only these parts of it."""
    app = UltraRefinerApp.__new__(UltraRefinerApp)
    vars(app).update(exchange=None, **parts)
    return app


def test_an_image_on_its_way_takes_no_place_of_those_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = threading.Event()

    def image_path(image: str) -> Path:
        assert image == "here" or arrived.wait(20)
        return Path(image)

    store = SimpleNamespace(image_path=image_path)
    app = make_app(_datastore=store, _infers={"m": None}, limiter=None)
    answers: list[str] = []

    def outline(model: str, path: Path, image_id: str, request: Any) -> Outline:
        answers.append(image_id)
        return Outline(b"", ".nrrd", {}, np.zeros((1, 1, 1), np.uint8))

    monkeypatch.setattr(app, "outline", outline)
    routes = InferRoutes(app)

    async def ask(image: str) -> None:
        await routes.infer("m", image=image, params="{}", output=ResultType.json)

    async def both() -> None:
        app.limiter = anyio.CapacityLimiter(1)
        slow = asyncio.ensure_future(ask("far"))
        await asyncio.sleep(0.1)
        try:
            await asyncio.wait_for(ask("here"), 10)
        finally:
            arrived.set()
        await slow

    asyncio.run(both())
    assert answers == ["here", "far"]


def test_nobody_waits_for_the_store_while_others_cannot_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)
    desk.hold({"1.3.1": (1, 2)})
    label, store = desk.drawn(0), desk.store
    image_file, fetch = read_image_file(store.image_path(SERIES)), store.mirror.open

    def opened(image_id: str) -> Path:
        assert not store.saving.locked()
        return fetch(image_id)

    monkeypatch.setattr(store.mirror, "open", opened)
    engine = SimpleNamespace(open=lambda path: SimpleNamespace(image_file=image_file, sha256="s"))
    parts = {"sampler": SimpleNamespace(leases=Leases(10)), "learner": SimpleNamespace(saved=lambda image: None)}
    app = make_app(_datastore=store, engine=engine, work=desk.work, journal=JournalQueue(desk.work.journal), **parts)
    upload = UploadFile(io.BytesIO(label.read_bytes()), filename="label.nii.gz")
    save_uploaded_label(app, SERIES, "{}", "final", upload, User(username="x"))
    [kept] = app.journal.ask(lambda journal: journal.corrections(SERIES))
    assert kept.image_hash == "s" and kept.mask.sum() == 15
