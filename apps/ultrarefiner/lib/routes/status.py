"""`/ultrarefiner/status`: the facts for its page, gathered from what the server knows already.

Nothing is computed here that grows with the labels: their figures are kept (``lib.tasks.progress``).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import anyio
from fastapi.responses import HTMLResponse
from monailabel.endpoints.user.auth import User

from lib.app import App
from lib.information import problems
from lib.routes.learning_words import learning_errors, learning_rows, report_words, wrong_bars, wrong_words
from lib.routes.routing import Route, user_role
from lib.routes.status_page import Facts, Row, Running, Step, clock, seconds_of, status_page
from lib.tasks.background import FAILED, RUNNING
from lib.tasks.progress import Summary
from ultrarefiner_monai.learning.registry import CONFIGURED
from ultrarefiner_monai.learning.schedule import COARSE, JOINT, REFINER

logger = logging.getLogger(__name__)
T = TypeVar("T")

NAME = "UltraRefiner"
_PATIENCE_SECONDS = 0.2  # for figures of labels that were saved a moment ago
_MOST_STEPS, _MOST_ERRORS = 15, 8
# Nothing is loaded from anywhere, whatever a text on the page says.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'",
    "Cache-Control": "no-store",
}
_BY = {"person": "a person", "slow": "a training, by itself", "quick": "the quick model"}


class StatusRoutes:
    """The one route of this file."""

    def __init__(self, app: App):
        self.app = app

    def routes(self) -> list[Route]:
        return [("GET", "/ultrarefiner/status", self.status)]

    async def status(self, user: User = user_role) -> HTMLResponse:
        """What the server learns from the labels, as a page."""

        def work() -> str:
            return status_page(facts_of(self.app))

        return HTMLResponse(await anyio.to_thread.run_sync(work), headers=_HEADERS)


def facts_of(app: App) -> Facts:
    """All that the page shows, now. A part that fails is left out: the others are of use."""
    summary = app.progress.now(_PATIENCE_SECONDS)
    told: list[str] = _part([], lambda: problems(app))
    state: dict[str, Any] = _part({}, app.learner.state)
    return Facts(
        NAME,
        _part(0, lambda: len(app.datastore().list_images())),
        summary,
        [*told, *([summary.problem] if summary.problem else [])],
        served=_part([], lambda: list(_served(app, summary))),
        learning=_part([], lambda: learning_rows(state, app.config.learning, app.scorer.state(), _last(app))),
        machine=_part([], lambda: list(_machine(app))),
        running=_part([], lambda: list(_running(app))),
        steps=_part([], lambda: _steps(summary)),
        errors=_part([], lambda: _errors(app, state)),
        wrong=_part([], lambda: wrong_bars(summary.mistakes)),
        wrong_says=_part("", lambda: wrong_words(summary.mistakes)),
    )


def _part(without: T, work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception:
        logger.exception("a part of the status page is missing")
        return without


def _served(app: App, summary: Summary) -> Iterator[Row]:
    served, pointer = app.served, app.served.registry.pointer()
    system = served.now().system
    yield "Model", f"{served.name}, version {system.version}" + ("" if served.name != CONFIGURED else " (as set up)")
    yield "Networks", system.config.networks()
    if pointer.at:
        yield "Since", f"{clock(seconds_of(pointer.at))}, by {_BY.get(pointer.by, 'nobody knows whom')}"
    yield "Quick model", f"{served.quick}, on top of it" if served.quick else "none: the model answers alone"
    quick = sum(promotion.by == "quick" for promotion in summary.promotions)
    if quick:
        yield "Quick models so far", str(quick)
    if pointer.before:
        yield "Before it", ", ".join(pointer.before[:3])
        yield "To go back", "ultrarefiner models rollback --studies STUDIES"


def _steps(summary: Summary) -> list[Step]:
    """Changes of the champion, newest first; those of quick models are only counted."""
    found = [p for p in summary.promotions if p.by != "quick"]
    steps = [Step(seconds_of(p.created), p.name, p.version, _BY.get(p.by, p.by), report_words(p.report)) for p in found]
    if found and summary.progress.times:
        # What answered first was never promoted; it is known by the labels of that time.
        known = {p.version.partition("+")[0] for p in found}
        first = next((version for version in summary.progress.versions if version not in known), "")
        steps.insert(0, Step(summary.progress.times[0], summary.promotions[0].before, first, "as set up"))
    return steps[: -_MOST_STEPS - 1 : -1]


def _running(app: App) -> Iterator[Running]:
    for task in app.trainings.open():
        model = str(task["request"].get("model", "training"))
        stats = app.work.training.stats(model) if task["status"] == RUNNING else {}
        if stats.get("status") != "running":
            begins = task["status"] == RUNNING
            yield Running(f"Training of {model}", 0.0, "looks at the labels" if begins else "waits for its turn")
            continue
        done, total = int(stats["epoch"]), max(1, int(stats["total_epochs"]))
        seconds = stats["train"]["metrics"].get("seconds")
        left = "" if not seconds or done < 1 else f", about {_span(seconds * (total - done))} still"
        best = f", best Dice so far {stats['best_metric']:.3f}" if stats["best_metric"] else ""
        yield Running(f"Training of {model}", done / total, f"epoch {done} of {total}{left}{best}")


def _last(app: App) -> dict[str, Any]:
    """The training that finished last; {} where none did."""
    found = [app.work.training.stats(task) for task in (REFINER, COARSE, JOINT)]
    return max((f for f in found if f.get("status") == "finished"), key=lambda f: f["start_ts"], default={})


def _machine(app: App) -> Iterator[Row]:
    free = shutil.disk_usage(app.work.root).free / 2**30
    yield "Free on the work folder's disk", f"{free:.1f} GB"
    yield "Journal", app.journal.problem or app.journal.begun_anew or "written"
    yield "Being prepared", f"{app.preparer.left()} frames"
    batches = len(app.batches.open())
    if batches:
        yield "Batches", f"{batches} run or wait"
    if app.exchange is not None:
        yield "To the PACS", f"{app.exchange.status()['waiting']} labels wait"


def _errors(app: App, state: dict[str, Any]) -> list[Row]:
    """What the learner says, then trainings that failed since the start, newest first."""
    found = [
        (str(task.get("end_ts", "")), f"Training of {task['request'].get('model')}: {task.get('error')}")
        for task in list(app.trainings._tasks)
        if task["status"] == FAILED
    ]
    return [*learning_errors(state), *sorted(found, reverse=True)][:_MOST_ERRORS]


def _span(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
