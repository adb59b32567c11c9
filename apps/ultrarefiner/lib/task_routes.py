"""Batches and trainings: MONAI Label's own, once it is sure that there is something to do and nobody writes elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import psutil
from fastapi import HTTPException
from monailabel.endpoints import batch_infer as stock_batch_infer
from monailabel.endpoints import train as stock_train
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks import task as stock_task
from monailabel.utils.async_tasks import utils as stock_utils
from monailabel.utils.async_tasks.utils import processes

from lib.messages import public_values
from lib.names import check_name
from lib.parameters import BATCH, checked
from lib.routing import JsonBody, admin_role, check_known, user_role
from ultrarefiner_monai.types import InputError

# PYTHONPATH and CUDA_VISIBLE_DEVICES of a task's process, in MONAI Label's words.
_SERVERS_OWN = ("bundle_path", "gpus")


async def batch_infer(
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: JsonBody = None,
    run_sync: bool = False,
    user: User = admin_role,
) -> Any:
    """As MONAI Label's own, once it is sure that the model exists and nothing is written under another name."""
    check_known(model, app_instance()._infers, "model")
    params = checked(params, BATCH, "a batch")
    check_name(params.get("label_tag") or DefaultLabelTag.FINAL.value, "label_tag")
    if isinstance(params.get("images"), list):
        known = set(await anyio.to_thread.run_sync(app_instance().datastore().list_images))
        if unknown := [i for i in params["images"] if i not in known]:
            raise ImageNotFoundException(f"there are no images {', '.join(map(repr, unknown[:5]))[:300]}")
    # MONAI Label shares batches out to several GPUs, and divides by zero where there is none.
    params |= {"multi_gpu": False, "max_workers": 1}
    return await anyio.to_thread.run_sync(partial(stock_batch_infer.run, model, images, params, run_sync))


async def batch_status(all: bool = False, check_if_running: bool = False, user: User = user_role) -> Any:
    """As MONAI Label's own, without paths of the server."""
    return await _status(stock_batch_infer.status, all, check_if_running)


async def train_status(all: bool = False, check_if_running: bool = False, user: User = user_role) -> Any:
    """As MONAI Label's own, without paths of the server."""
    return await _status(stock_train.status, all, check_if_running)


async def _status(status: Callable[[bool, bool], Any], all: bool, check_if_running: bool) -> Any:
    def work() -> Any:
        try:
            return public_values(status(all, check_if_running))
        except IndexError as error:  # it ended in this very moment
            raise HTTPException(404, "nothing is running") from error

    return await anyio.to_thread.run_sync(work)


def run_task(request: dict[str, Any], method: str, *args: Any, **options: Any) -> Any:
    """In place of MONAI Label's ``run_background_task``, which makes environment variables of a request: of none here."""
    return stock_utils.run_background_task(
        {k: v for k, v in request.items() if k not in _SERVERS_OWN}, method, *args, **options
    )


def install() -> None:
    """Let MONAI Label start its processes by ``run_task``."""
    stock_task.run_background_task = run_task  # type: ignore[assignment]


async def train(
    model: str,
    params: JsonBody = None,
    run_sync: bool = False,
    enqueue: bool = False,
    user: User = admin_role,
) -> Any:
    """As MONAI Label's own, once it is sure that there is something to train on; one at a time, 429 where one runs."""
    check_known(model, app_instance()._trainers, "trainer")
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
