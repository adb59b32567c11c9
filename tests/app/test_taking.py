"""A SEG from the PACS that was drawn on two images, where something fails on the second one; and a PACS that is away. No server."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from test_growth import Shelf

from lib.store.pacs import PacsStudies
from lib.tasks.scoring import Scorer
from lib.tasks.strategies import Sampler
from ultrarefiner_monai.config import LearningConfig, PacsConfig, ServeConfig
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.dicom.seg_reader import SegInfo
from ultrarefiner_monai.dicomweb.client import PacsError, SeriesInfo
from ultrarefiner_monai.exchange import labels
from ultrarefiner_monai.exchange.labels import Exchange
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder

IMAGES = ("1.2.5", "1.2.6")
WHEN = datetime(2024, 5, 6, tzinfo=timezone.utc)


class TwoSeries(Shelf):
    """A store with two series of one picture each."""

    store = None

    def series(self, wanted: Any) -> list[SeriesInfo]:
        return [SeriesInfo(uid, "1.2.4", "US", 1) for uid in IMAGES]

    def fetch_series(self, study: str, series: str, folder: Path, most_bytes: int) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{series}.1.dcm"
        path.write_bytes(dicom_bytes(np.zeros((1, 24, 32), np.uint8), int(series[-1]), 0.1))
        return [path]


@pytest.fixture
def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    work, extensions = WorkFolder.of(Shelf.url, tmp_path), ServeConfig().extensions
    store = PacsStudies(TwoSeries(), work, PacsConfig(), extensions, read_image_file)  # type: ignore[arg-type]
    store.mirror.update()
    store._follow()
    monkeypatch.setattr(labels, "read_seg", lambda *_: np.ones((1, 24, 32), np.uint8))
    found = Exchange(
        store,
        PacsConfig(),
        work,
        lambda path: SimpleNamespace(image_file=read_image_file(path), sha256="s"),
        lambda image_id: taken.append(image_id),
    )
    found.learnt_from = taken = []  # type: ignore[attr-defined]
    return found


def test_no_next_sample_while_the_pacs_is_away_says_so(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: Any) -> Any:
        raise PacsError("shelf does not answer", transient=True)

    sampler = Sampler(Scorer(None, None, lambda: exchange.store), LearningConfig())  # type: ignore[arg-type]
    assert sampler.sample("first", "ann", exchange.store)["id"] == IMAGES[0]  # type: ignore[arg-type]
    assert sampler.sample("first", "ben", exchange.store)["id"] == IMAGES[1]  # type: ignore[arg-type]
    for image in IMAGES:
        shutil.rmtree(exchange.mirror.folder / "images" / image)
    monkeypatch.setattr(exchange.mirror.pacs, "series", away)
    with pytest.raises(PacsError):
        exchange.mirror.update()
    answer = sampler.sample("first", "ann", exchange.store)  # type: ignore[arg-type]
    assert "id" not in answer and "shelf does not answer" in answer["message"]


@pytest.mark.parametrize("place", ["reading", "keeping"])
def test_what_fails_on_the_second_image_is_taken_once_for_the_first(
    exchange: Exchange, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {uid: frozenset({f"{uid}.1"}) for uid in IMAGES}
    info = SegInfo("9.1", "9", "1.2.4", "Jane", WHEN, "m", "n", ("MANUAL",), (), frozenset(), named)
    fails = True

    def failing(what: Any, path: Any) -> Any:
        def work(*values: Any) -> Any:
            if fails and IMAGES[1] in str(path(values)):
                raise RuntimeError("its files are changing")
            return what(*values)

        return work

    if place == "reading":
        monkeypatch.setattr(labels, "read_seg", failing(labels.read_seg, lambda values: values[1]))
    else:
        monkeypatch.setattr(exchange, "open_image_file", failing(exchange.open_image_file, lambda values: values[0]))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            exchange._take(pydicom.Dataset(), info, WHEN)
    assert [bool(exchange.store.get_label_uri(i, "final")) for i in IMAGES] == [place == "keeping", False]
    if place == "keeping":  # somebody saves another one meanwhile
        path = exchange.store.get_label_uri(IMAGES[0], "final")
        exchange.store.save_label(IMAGES[0], path, "final", {"user": "dr"})
    fails = False
    exchange._take(pydicom.Dataset(), info, WHEN)
    journal = Journal(exchange.work.journal)
    counts = [len(journal.corrections(i)) for i in IMAGES]
    assert counts == [1, 1] and set(exchange.learnt_from) == set(IMAGES)  # type: ignore[attr-defined]
    versions = exchange.work.versions / "final"
    assert [len(list((versions / i).glob("*"))) for i in IMAGES] == [place == "keeping", 0]
    assert exchange.store.get_label_info(IMAGES[0], "final")["user"] == ("dr" if place == "keeping" else "Jane")
