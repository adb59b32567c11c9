"""Prometheus metrics: what was asked and how long it took, how the labels go, and what somebody should look at.

A registry of its own. Labels are of known, few values: no image, patient or author ever becomes one. ``Counted`` counts
requests as the outermost of the doors; all else is looked up when somebody asks for `/metrics`.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import User
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.app import App
from lib.routes.routing import Route, user_role
from lib.store.pacs import PacsStudies
from lib.tasks.background import RUNNING
from ultrarefiner_monai.learning.progress import Curve
from ultrarefiner_monai.studies.training_folder import read_json

logger = logging.getLogger(__name__)
disable_created_metrics()  # they double the series, and nobody asks for them

# Seconds. A click with the networks' work in the cache, a first click, a cine.
_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# What a request's route has to say for the metrics.
_noted: ContextVar[dict[str, Any] | None] = ContextVar("noted", default=None)
_TASKS = {
    "/activelearning/": "next_sample",
    "/datastore/label": "label",
    "/datastore/image": "image",
    "/train/": "train",
    "/batch/": "batch",
    "/metrics": "status",
    "/ultrarefiner/status": "status",
}
_RESULTS = ("accepted", "refused", "failed")
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


def note_cached(cached: bool) -> None:
    """Said by the route of an outline: whether the networks had seen the image before."""
    if (noted := _noted.get()) is not None:
        noted["cached"] = cached


class Metrics:
    """What is counted of requests, and the text of `/metrics`. Thread-safe."""

    def __init__(self, app: App):
        self.app, self._prefix = app, settings.MONAI_LABEL_API_STR
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "ultrarefiner_requests", "Answered requests.", ("task", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "ultrarefiner_infer_seconds",
            "Seconds of an outline, from the request to its reply; cached: the networks had seen the image before.",
            ("task", "cached"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(Looked(app))

    def routes(self) -> list[Route]:
        return [("GET", "/metrics", self.metrics)]

    async def metrics(self, user: User = user_role) -> Response:
        """All metrics in Prometheus' text format."""
        text = await anyio.to_thread.run_sync(partial(generate_latest, self.registry))
        return Response(text, media_type=_CONTENT_TYPE)

    def count(self, scope: Scope, status: int, seconds: float, noted: dict[str, Any]) -> None:
        """One request that was answered; status 0: its client went away."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        task, is_infer = self._task(scope["path"])
        self._requests.labels(task, method, str(status)).inc()
        if is_infer and status == 200:
            self._seconds.labels(task, str(bool(noted.get("cached"))).lower()).observe(seconds)

    def _task(self, path: str) -> tuple[str, bool]:
        """What a request is about, of few values, and whether that is one of the models."""
        path = path.removeprefix(self._prefix)
        if path.startswith("/infer/"):
            model = path[len("/infer/") :]
            known = model in self.app._infers
            return model if known else "other", known
        return next((task for start, task in _TASKS.items() if path.startswith(start)), "other"), False


class Counted:
    """ASGI middleware: counts each request when it was answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()
        noted: dict[str, Any] = {}
        _noted.set(noted)

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        except BaseException:
            status = status or 500
            raise
        finally:
            self.metrics.count(scope, status, time.perf_counter() - start, noted)


class Looked(Collector):
    """What is looked up when somebody asks. A part that fails is left out, and said in the log."""

    def __init__(self, app: App):
        self.app = app

    def collect(self) -> Iterator[Metric]:
        for part in (self._labels, self._learning, self._models, self._state):
            try:
                yield from list(part())
            except Exception:  # the others are of use
                logger.exception("a part of /metrics is missing")

    def _labels(self) -> Iterator[Metric]:
        summary = self.app.progress.now()
        progress = summary.progress
        yield _total("labels_saved", "Final labels that were saved, those of the same image too.", progress.saves)
        yield _gauge("labelled_images", "Images with a final label.", progress.images)
        yield _total("corrections", "Images whose label was saved over a proposal.", progress.clicks.count)
        yield _total("clicks", "Points and boxes that these labels needed.", progress.clicks.total)
        for name, curve, says in _recent(progress.clicks, progress.dice, progress.seconds):
            if curve.recent is not None:
                yield _gauge(name, says, curve.recent)
        yield _gauge("labels_left_to_count", "Labels that the figures do not hold yet.", summary.left)

    def _learning(self) -> Iterator[Metric]:
        runs: Tally[tuple[str, ...]] = Tally()
        running = {task["request"].get("model") for task in self.app.trainings.open() if task["status"] == RUNNING}
        for path in self.app.work.training.runs.glob("*/state.json"):
            state = read_json(path)
            task = state.get("task") if state.get("task") in self.app._trainers else "other"
            status = _known(state.get("status"), ("running", "finished", "stopped", "failed"))
            if status == "running" and task not in running:  # it was killed, and could not say so
                status = "stopped"
            runs[str(task), status] += 1
        yield _by("training_runs", "Trainings in the work folder.", ("task", "status"), runs)
        quick = self.app.learner.state()["quick"]
        counts = Tally({(result,): quick.get("counts", {}).get(result, 0) for result in _RESULTS})
        yield _by(
            "quick_runs", "Quick runs since the start, by their result.", ("result",), counts, CounterMetricFamily
        )
        yield _gauge("quick_running", "1: a quick run is at work.", bool(quick.get("running")))
        by = Tally({("person",): 0, ("quick",): 0, ("slow",): 0})
        for promotion in self.app.progress.now().promotions:
            by[(_known(promotion.by, ("person", "quick", "slow")),)] += 1
        yield _by("promotions", "Changes of the model that answers.", ("by",), by, CounterMetricFamily)

    def _models(self) -> Iterator[Metric]:
        served = self.app.served
        info = GaugeMetricFamily(
            "ultrarefiner_champion_info", "Always 1; which champion answers.", labels=("name", "version")
        )
        info.add_metric((served.name, served.champion().system.version), 1)  # a quick model comes with each save
        yield info
        yield _gauge("model_problem", "1: what was chosen to answer is not what answers.", bool(served.problem))

    def _state(self) -> Iterator[Metric]:
        app = self.app
        store = app.datastore()
        away = app.watch.problem if app.watch is not None else store.presence.problem
        yield _gauge("studies_away", "1: the studies are away, nothing can be saved.", bool(away))
        problem = app.journal.problem or app.journal.begun_anew
        yield _gauge("journal_problem", "1: the journal cannot be written, or was begun anew.", bool(problem))
        with suppress(OSError):  # its disk is away
            yield _gauge("work_folder_free_bytes", "Room on the disk.", shutil.disk_usage(app.work.root).free)
        waiting = {
            ("trainings",): len(app.trainings.open()),
            ("batches",): len(app.batches.open()),
            ("prepare",): app.preparer.left(),
        }
        if isinstance(store, PacsStudies):
            yield _gauge("pacs_away", "1: the PACS does not answer.", bool(store.contact().get("problem")))
        if app.exchange is not None:
            waiting[("outbox",)] = app.exchange.status()["waiting"]
        yield _gauge("scoring_left", "Images that are still to get scores.", app.scorer.state()["left"])
        yield _by("queue_length", "What runs or waits.", ("queue",), Tally(waiting))


def _recent(clicks: Curve, dice: Curve, seconds: Curve) -> Iterable[tuple[str, Curve, str]]:
    return (
        ("clicks_per_label", clicks, "Mean of the last 50 labels."),
        ("proposal_dice", dice, "Dice of the first proposal against the label, mean of the last 50."),
        ("seconds_per_image", seconds, "From shown to saved, median of the last 50."),
    )


def _known(value: Any, values: Iterable[str]) -> str:
    return value if value in values else "other"


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ultrarefiner_{name}", says, value=float(value))


def _total(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"ultrarefiner_{name}", says, value=float(value))


def _by(name: str, says: str, labels: tuple[str, ...], values: Tally, kind: Any = GaugeMetricFamily) -> Metric:
    family = kind(f"ultrarefiner_{name}", says, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, float(value))
    return family
