"""The steps by which the process that serves starts. ``main`` calls them in their order.

MONAI Label runs batches and trainings in processes of their own: these have the app without the server.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from fastapi import FastAPI

from lib.app import App
from lib.commandline import listens_on
from lib.ending import Ending
from lib.routes import doors, endpoints, send
from lib.routes import pacs as pacs_routes
from lib.store.pacs import PacsStudies
from ultrarefiner_monai.exchange.labels import Exchange
from ultrarefiner_monai.studies.availability import MARK_VARIABLE
from ultrarefiner_monai.studies.leftovers import clear
from ultrarefiner_monai.studies.only_server import OnlyServer
from ultrarefiner_monai.studies.watch import Watch


def take_studies(app: App) -> tuple[OnlyServer, Watch]:
    """Lock the studies, clear away what killed servers left, open the journal, load the model, and watch the studies.

    Raises InputError where another server runs on these studies.
    """
    store = app.datastore()
    folder = None if isinstance(store, PacsStudies) else Path(app.studies)
    only = OnlyServer(folder, app.work, listens_on(sys.argv)[1])
    os.environ[MARK_VARIABLE] = store.presence.text
    shutil.rmtree(app.work.tmp, ignore_errors=True)  # what a killed server left
    labels = store.index_file.parent / "labels"
    clear(folder, labels, app.work)
    app.journal.begin(store.presence.new)
    app.served.latest()  # not in the processes that MONAI Label starts for trainings: they need no predictor
    return only, Watch(store.presence, store.watch_anew, lambda: clear(folder, labels, app.work, starts=False))


def put_routes(server: FastAPI, app: App) -> None:
    """Put the app's routes before MONAI Label's."""
    endpoints.install(server, app)
    if isinstance(app.datastore(), PacsStudies):
        pacs_routes.install(server, app)
    send.install(server, app)


def start_exchange(app: App) -> Exchange | None:
    """Begin to follow the PACS, and to send labels to it and take them from it; None where the studies are a folder."""
    store = app.datastore()
    if not isinstance(store, PacsStudies):
        return None
    store.start()

    def taken(image_id: str) -> None:
        app.sampler.leases.give_up(image_id)
        app.learner.saved(image_id)

    exchange = Exchange(store, app.config.pacs, app.work, app.engine.open, taken)
    exchange.start()
    return exchange


def run_tasks(app: App) -> None:
    """Let MONAI Label's batches and trainings run in processes of ours, which end with the server; and begin to learn."""
    for tasks in (app.trainings, app.batches):
        tasks.install()
    app.learner.begin()
    Ending([app.scorer.close, app.learner.close, app.trainings.close, app.batches.close], app.journal.close).install()


def close_doors(server: FastAPI, app: App) -> None:
    """Decide who may come in, and put up the doors in front of all routes: the last step."""
    doors.close_doors(server, app)
