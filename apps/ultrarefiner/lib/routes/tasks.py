"""Routes of batches and trainings.

They check the request, then call MONAI Label's own: the model exists, labels get a plain tag, there is something to train
on, and few trainings wait.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
from fastapi import HTTPException
from monailabel.endpoints import batch_infer as stock_batch_infer
from monailabel.endpoints import train as stock_train
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType

from lib.app import App
from lib.routes.parameters import BATCH, checked
from lib.routes.routing import JsonBody, Route, admin_role, check_known, user_role
from lib.tasks.background import Background, settled
from lib.tasks.starting import start_batch, start_training
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.studies.names import check_name


class TaskRoutes:
    """Routes of batches and trainings."""

    def __init__(self, app: App):
        self.app = app

    def routes(self) -> list[Route]:
        return [
            ("POST", "/batch/infer/{model}", self.batch_infer),
            ("DELETE", "/batch/infer", self.stop_batch),
            ("GET", "/batch/infer", self.batch_status),
            ("GET", "/train/", self.train_status),
            ("POST", "/train/", self.train_all),
            ("POST", "/train/{model}", self.train),
            ("DELETE", "/train/", self.stop_training),
        ]

    async def batch_infer(
        self,
        model: str,
        images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
        params: JsonBody = None,
        run_sync: bool = False,
        user: User = admin_role,
    ) -> Any:
        """As MONAI Label's own, once it is sure that the model exists and nothing is written under another name."""
        check_known(model, self.app._infers, "model")
        params = checked(params, BATCH, "a batch")
        check_name(params.get("label_tag") or DefaultLabelTag.FINAL.value, "label_tag")
        if isinstance(params.get("images"), list):
            known = set(await anyio.to_thread.run_sync(self.app.datastore().list_images))
            if unknown := [i for i in params["images"] if i not in known]:
                raise ImageNotFoundException(f"there are no images {', '.join(map(repr, unknown[:5]))[:300]}")
        # MONAI Label shares batches out to several GPUs, and divides by zero where there is none.
        params |= {"multi_gpu": False, "max_workers": 1}
        return await anyio.to_thread.run_sync(partial(start_batch, self.app, model, images, params, run_sync))

    async def stop_batch(self, user: User = admin_role) -> Any:
        """The same for batches."""
        return await anyio.to_thread.run_sync(_stop, self.app.batches)

    async def batch_status(self, all: bool = False, check_if_running: bool = False, user: User = user_role) -> Any:
        """As MONAI Label's own, without paths of the server."""
        return await _status(stock_batch_infer.status, all, check_if_running)

    async def train_status(self, all: bool = False, check_if_running: bool = False, user: User = user_role) -> Any:
        """As MONAI Label's own, without paths of the server."""
        return await _status(stock_train.status, all, check_if_running)

    async def train_all(self, params: JsonBody = None, user: User = admin_role) -> dict[str, Any]:
        """All trainings, one after the other; params: model -> its options. Those that cannot be started say why."""

        def work() -> dict[str, Any]:
            found: dict[str, Any] = {}
            for model in params or {}:
                check_known(model, self.app._trainers, "trainer")
            for model in self.app._trainers:
                try:
                    options = (params or {}).get(model, {})
                    if not isinstance(options, dict):
                        raise InputError(f"params must hold an object for each model, got {options!r:.80} for {model}")
                    found[model] = {"result": start_training(self.app, model, options, True), "detail": None}
                except InputError as error:
                    found[model] = {"result": None, "detail": str(error)}
            if not any(f["result"] for f in found.values()):
                raise InputError("; ".join(dict.fromkeys(f["detail"] for f in found.values())))
            return found

        return await anyio.to_thread.run_sync(work)

    async def train(
        self,
        model: str,
        params: JsonBody = None,
        run_sync: bool = False,
        enqueue: bool = False,
        user: User = admin_role,
    ) -> Any:
        """As MONAI Label's own, once it is sure that there is something to train on; one at a time, 429 where one runs."""
        check_known(model, self.app._trainers, "trainer")
        if run_sync:
            raise InputError("run_sync would train inside the server: leave it out, and ask GET /train/ how far it is")
        return await anyio.to_thread.run_sync(partial(start_training, self.app, model, params or {}, enqueue))

    async def stop_training(self, user: User = admin_role) -> Any:
        """Ends the training that runs and those that wait; as MONAI Label's own, with a ``result`` always: 3D Slicer's module
        fails on a training that was stopped before it said a word."""
        return await anyio.to_thread.run_sync(_stop, self.app.trainings)


async def _status(status: Callable[[bool, bool], Any], all: bool, check_if_running: bool) -> Any:
    def work() -> Any:
        try:
            return settled(status(all, check_if_running))
        except IndexError as error:  # it ended in this very moment
            raise HTTPException(404, "nothing is running") from error

    return await anyio.to_thread.run_sync(work)


def _stop(background: Background) -> Any:
    stopped = settled(background.stop())
    return stopped and {"result": ["stopped", *stopped.get("details", [])][-1], **stopped}
