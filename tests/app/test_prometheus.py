"""Status page and metrics of the real server: numbers that fit what was asked, and who may ask."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from app_server import ROOT, Server, eventually, start, write_studies
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from lib.routes.metrics import Counted, Metrics, note_cached
from ultrarefiner_monai.studies.training_folder import write_json
from ultrarefiner_monai.studies.work_folder import WorkFolder

Found = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path):
    """One of its own: counts that other tests of the session move say nothing."""
    folder = tmp_path_factory.mktemp("counting")
    write_studies(folder / "studies")
    running = start(folder / "studies", checkpoint, folder)
    yield running
    running.stop()


def asked(server: Server) -> Found:
    reply = requests.get(f"{server.url}/metrics", timeout=30)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain")
    return samples(reply.text)


def samples(text: str) -> Found:
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_what_is_asked_and_saved_is_counted(server: Server) -> None:
    picture = io.BytesIO()  # of its own: an image that was labelled before does not count as a new label
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (96, 130), dtype=np.uint8)).save(picture, "PNG")
    url = f"{server.url}/datastore/image?image=counted"
    assert requests.put(url, files={"file": ("counted.png", picture.getvalue())}, timeout=30).ok

    def outline(image: str) -> None:
        url = f"{server.url}/infer/ultrarefiner?image={image}&output=json"
        assert requests.post(url, data={"params": json.dumps({"client_id": "dr secret"})}, timeout=60).ok

    before = asked(server)
    outline("counted")
    outline("counted")
    assert requests.post(f"{server.url}/infer/nothing?image=counted", timeout=30).status_code == 404
    content = io.BytesIO()
    Image.fromarray(np.pad(np.full((20, 30), 255, np.uint8), ((10, 66), (20, 80)))).save(content, "PNG")
    saved = requests.put(
        f"{server.url}/datastore/label?image=counted",
        files={"label": ("l.png", content.getvalue())},
        data={"params": json.dumps({"client_id": "dr secret"})},
        timeout=30,
    )
    assert saved.status_code == 200
    labels = ("ultrarefiner_labels_saved_total", ())
    assert eventually(lambda: asked(server)[labels] == before.get(labels, 0) + 1)
    after = asked(server)

    def more(name: str, **labels: str) -> float:
        key = (f"ultrarefiner_{name}", tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert more("requests_total", task="ultrarefiner", method="POST", status="200") == 2
    assert more("requests_total", task="other", method="POST", status="404") == 1
    assert more("requests_total", task="label", method="PUT", status="200") == 1
    assert more("infer_seconds_count", task="ultrarefiner", cached="true") >= 1
    assert 0 <= after["ultrarefiner_proposal_dice", ()] <= 1
    text = requests.get(f"{server.url}/metrics", timeout=30).text
    assert "secret" not in text and "counted" not in text

    page = requests.get(f"{server.url}/ultrarefiner/status", timeout=30)
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "Images labelled here" in page.text and "secret" not in page.text
    front = requests.get(server.url, timeout=30).text
    assert 'href="/ultrarefiner/status"' in front


def test_a_training_that_was_killed_does_not_run_for_ever(server: Server) -> None:
    for name, status in (("transunet-1", "running"), ("transunet-2", "finished")):
        folder = WorkFolder.existing(server.studies).training.runs / name
        folder.mkdir(parents=True)
        write_json(folder / "state.json", {"task": "transunet", "status": status})
    found = asked(server)
    shutil.rmtree(folder.parent)
    runs = {dict(labels)["status"]: value for (name, labels), value in found.items() if name.endswith("training_runs")}
    assert runs == {"stopped": 1, "finished": 1}


def test_the_page_for_it_lists_every_metric(server: Server) -> None:
    text = (ROOT / "docs" / "it" / "learning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`{}, ]+) \|", text.partition("### Metrics")[2].partition("\n## ")[0], re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([a-z_]+)", row)}
    families = text_string_to_metric_families(requests.get(f"{server.url}/metrics", timeout=30).text)
    found = {f.name.removeprefix("ultrarefiner_") + ("_total" if f.type == "counter" else "") for f in families}
    assert found - told == set(), "write down what they mean"
    sometimes = {"clicks_per_label", "proposal_dice", "seconds_per_image", "pacs_away"}
    assert told - found <= sometimes, "these are gone"


def test_a_query_that_nobody_knows(server: Server) -> None:
    assert requests.get(f"{server.url}/metrics?name=x", timeout=30).status_code == 400


# --- what it costs ----------------------------------------------------------------------------------------------------


async def nobody() -> Any:
    raise AssertionError("nothing is received")


async def drop(message: Any) -> None:
    pass


def counted(status: int = 200, cached: bool | None = None, fails: bool = False) -> tuple[Counted, Metrics]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if cached is not None:
            note_cached(cached)
        if fails:
            raise RuntimeError("a fault")
        await send({"type": "http.response.start", "status": status})

    metrics = Metrics(SimpleNamespace(_infers={"m": None}))  # type: ignore[arg-type]
    metrics.registry.unregister(list(metrics.registry._collector_to_names)[-1])  # it needs a whole server
    return Counted(app, metrics), metrics


def scope(path: str, method: str = "POST") -> dict[str, Any]:
    return {"type": "http", "path": path, "method": method}


@pytest.mark.parametrize("cached", [True, False])
def test_outlines_by_task_and_cache(cached: bool) -> None:
    door, metrics = counted(cached=cached)
    asyncio.run(door(scope("/infer/m"), nobody, drop))
    assert (
        metrics.registry.get_sample_value(
            "ultrarefiner_infer_seconds_count", {"task": "m", "cached": str(cached).lower()}
        )
        == 1
    )


def test_names_that_a_client_makes_up_are_no_labels() -> None:
    door, metrics = counted(404)
    for k in range(50):
        asyncio.run(door(scope(f"/infer/made-up-{k}", f"M{k}"), nobody, drop))
    labels = {"task": "other", "method": "other", "status": "404"}
    assert metrics.registry.get_sample_value("ultrarefiner_requests_total", labels) == 50


def test_a_fault_is_counted_and_raised() -> None:
    door, metrics = counted(fails=True)
    with pytest.raises(RuntimeError):
        asyncio.run(door(scope("/infer/m"), nobody, drop))
    labels = {"task": "m", "method": "POST", "status": "500"}
    assert metrics.registry.get_sample_value("ultrarefiner_requests_total", labels) == 1


def test_counting_costs_next_to_nothing() -> None:
    door, _ = counted()

    async def many() -> float:
        begin = time.perf_counter()
        for _ in range(2000):
            await door(scope("/infer/m"), nobody, drop)
        return (time.perf_counter() - begin) / 2000

    assert asyncio.run(many()) < 0.001  # seconds for each request; measured: some 20 millionths
