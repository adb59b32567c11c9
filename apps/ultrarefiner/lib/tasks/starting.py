"""How trainings and batches are started, by a client or by the server itself: one of a kind at a time, and few that wait."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import HTTPException
from monailabel.endpoints import batch_infer as stock_batch_infer
from monailabel.endpoints import train as stock_train
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType

from lib.app import App
from lib.tasks.background import Background, settled

MOST_OPEN = 8  # trainings that run or wait
_starting = threading.Lock()


def start_training(app: App, model: str, params: dict[str, Any], enqueue: bool) -> Any:
    """Look into the labels, then start or queue a training. Raises InputError for what can be known before it begins, and
    HTTPException (429) where there is one already, or too many wait."""
    _refuse_more(app.trainings, enqueue)
    request = app._trainers[model].check(params, app.datastore())
    with _starting:  # the look into the labels takes its time, and others ask meanwhile
        _refuse_more(app.trainings, enqueue)
        return settled(stock_train.run_model(model, request, False, enqueue))


def start_batch(app: App, model: str, images: BatchInferImageType, params: dict[str, Any], run_sync: bool) -> Any:
    """Start a batch; run_sync: and wait for its end. Raises HTTPException (429) where one runs or is about to."""
    if run_sync:
        return settled(stock_batch_infer.run(model, images, params, True))
    with _starting:  # MONAI Label looks at processes only: one that is being started is none yet
        if app.batches.open():
            raise HTTPException(429, "a batch is running: wait until it ends, or stop it (DELETE /batch/infer)")
        return settled(stock_batch_infer.run(model, images, params, False))


def _refuse_more(trainings: Background, enqueue: bool) -> None:
    count = len(trainings.open())
    if count and not enqueue:
        raise HTTPException(429, "a training is running: wait until it ends, or stop it (DELETE /train/)")
    if count >= MOST_OPEN:
        raise HTTPException(429, f"{count} trainings run or wait already: wait, or stop them all (DELETE /train/)")
