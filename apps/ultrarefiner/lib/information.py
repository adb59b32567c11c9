"""What `/info/` says besides MONAI Label's own: which model answers, what is wrong just now, what is not offered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lib.app import App
from lib.store.pacs import PacsStudies
from ultrarefiner_monai.core.types import NOTICE
from ultrarefiner_monai.studies.problems import damaged


def completed(info: dict[str, Any], app: App) -> dict[str, Any]:
    """MONAI Label's ``info`` with ours."""
    # 3D Slicer shows the progress and accuracy of the first one: that is the one begun last.
    stats = sorted(info["train_stats"].items(), key=lambda item: -item[1].get("start_ts", 0))
    system = app.served.now().system
    serving = {
        "name": app.served.name,
        "quick": app.served.quick,
        "version": system.version,
        "networks": system.config.networks(),
        "problem": app.served.problem,
        "preparing": app.preparer.left(),
        "scores": app.scorer.state(),
    }
    store = app.datastore()
    pacs: dict[str, Any] = {"pacs": store.contact()} if isinstance(store, PacsStudies) else {}
    if app.exchange is not None:
        pacs["pacs"]["outbox"] = app.exchange.status()
    return {
        **info,
        "train_stats": dict(stats),
        "serving": serving,
        **pacs,
        "problems": problems(app),
        "not_offered": store.not_offered.counts(),
        "notice": NOTICE,
    }


def problems(app: App) -> list[str]:
    """What somebody has to know and to do something about, without paths."""
    return list(dict.fromkeys(text for text in _problems(app) if text))


def _problems(app: App) -> Iterator[str]:
    """The same, with empty texts for what is well."""
    store, watch = app.datastore(), app.watch
    yield watch.problem if watch is not None else store.presence.problem
    yield from (app.served.problem, app.journal.begun_anew, app.journal.problem)
    yield from damaged((store.index_file, app.work.journal, app.work.absent))
