"""How a training is started, by a client or by the server itself: one at a time, and few that wait."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import HTTPException
from monailabel.endpoints import train as stock_train

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


def _refuse_more(trainings: Background, enqueue: bool) -> None:
    count = len(trainings.open())
    if count and not enqueue:
        raise HTTPException(429, "a training is running: wait until it ends, or stop it (DELETE /train/)")
    if count >= MOST_OPEN:
        raise HTTPException(429, f"{count} trainings run or wait already: wait, or stop them all (DELETE /train/)")
