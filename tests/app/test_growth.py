"""Series that change while somebody works on them: a label stays with its frames, its author and its mark. No server."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from monailabel.endpoints.user.auth import User

from ultrarefiner_monai.config import PacsConfig, ServeConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.dicom.series import frame_order, reordered
from ultrarefiner_monai.dicomweb.client import SeriesInfo
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask
from ultrarefiner_monai.studies.work_folder import WorkFolder, forget

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "apps" / "ultrarefiner"))
from lib.routes.store import StoreRoutes  # noqa: E402
from lib.store.pacs import PacsStudies  # noqa: E402

SERIES, SIZE = "1.2.5", (24, 32)


class Shelf:
    """A store with one series. held: SOPInstanceUID -> (InstanceNumber, frames)."""

    url, host = "http://shelf/dicom-web", "shelf"

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, int]] = {}

    def series(self, wanted: Any) -> list[SeriesInfo]:
        return [SeriesInfo(SERIES, "1.2.4", "US", len(self.held))] if self.held else []

    def fetch_series(self, study: str, series: str, folder: Path, most_bytes: int) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        for sop, (number, frames) in self.held.items():
            path = folder / f"{sop}.dcm"
            pixels = np.random.default_rng(number).integers(0, 255, (frames, *SIZE), dtype=np.uint8)
            ds = pydicom.dcmread(io.BytesIO(dicom_bytes(pixels, 5, 0.1)))
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = sop
            ds.SeriesInstanceUID, ds.InstanceNumber = SERIES, number
            if not path.exists():
                ds.save_as(path)
        return sorted(folder.glob("*.dcm"))


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder, self.shelf, self.work = folder, Shelf(), WorkFolder.of(Shelf.url, folder / "work")
        self.store = self.start()

    def start(self) -> PacsStudies:
        return PacsStudies(self.shelf, self.work, PacsConfig(), ServeConfig().extensions, read_image_file)  # type: ignore[arg-type]

    def hold(self, held: dict[str, tuple[int, int]]) -> None:
        self.shelf.held = held
        self.store.mirror.update()
        self.store._follow()

    def drawn(self, *frames: int) -> Path:
        """A label with another lesion on each of these frames, as a client writes it that is shown the series now."""
        image_file = read_image_file(self.store.image_path(SERIES))
        mask = np.zeros(image_file.shape, np.uint8)
        for k in frames:
            mask[k, 3 : 6 + k, 4:9] = 1
        write_mask(self.folder / "label.nii.gz", mask, image_file)
        return self.folder / "label.nii.gz"

    def final(self) -> list[int]:
        """Pixels of the lesion on each frame."""
        image_file = read_image_file(self.store.image_path(SERIES))
        return read_mask(self.store.get_label_uri(SERIES, "final"), image_file).sum((1, 2)).tolist()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_label_follows_its_frames(desk: Desk) -> None:
    desk.hold({"1.3.1": (5, 1), "1.3.2": (6, 3)})
    info = {"user": "anna", "pacs": {"send": "2024-01-01"}}
    desk.store.save_label(SERIES, str(desk.drawn(0, 2)), "final", info)
    before, saved = desk.final(), desk.store.get_label_info(SERIES, "final")
    desk.hold({"1.3.1": (5, 1), "1.3.2": (6, 3), "1.3.9": (1, 2)})
    assert desk.final() == [0, 0, *before] == [0, 0, 15, 0, 25, 0]
    now = desk.store.get_label_info(SERIES, "final")
    assert {k: now[k] for k in info} == info and now["stored"] == saved["ts"]
    assert len(list((desk.work.versions / "final" / SERIES).iterdir())) == 1
    desk.final()
    assert len(list((desk.work.versions / "final" / SERIES).iterdir())) == 1  # once


def test_a_label_of_frames_that_are_gone_is_kept(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.hold({"1.3.1": (1, 1), "1.3.2": (2, 1)})
    desk.store.save_label(SERIES, str(desk.drawn(0, 1)), "final", {})
    desk.hold({"1.3.2": (2, 1), "1.3.3": (3, 1)})
    desk.store.mirror._verified.clear()
    for path in (desk.work.mirror / "series" / SERIES).glob("1.3.1*"):  # as the client does
        path.unlink()
    assert desk.final() == [20, 0] and "versions/ only" in caplog.text
    assert [p.name for p in (desk.work.versions / "final" / SERIES).iterdir()]


def test_a_client_that_still_shows_the_series_as_it_was(desk: Desk) -> None:
    desk.hold({"1.3.2": (2, 1)})
    shown = desk.drawn(0)
    desk.hold({"1.3.1": (1, 1), "1.3.2": (2, 1)})
    desk.store.image_path(SERIES)
    path = desk.store.fitted(SERIES, shown)
    desk.store.save_label(SERIES, str(path), "final", {})
    assert path != shown and desk.final() == [0, 15]
    fresh = desk.drawn(0)
    assert desk.store.fitted(SERIES, fresh) == fresh


def test_a_large_label_of_a_series_that_grew_is_refused_before_it_is_unpacked(desk: Desk) -> None:
    for held in ({"1.3.2": (2, 1)}, {"1.3.1": (1, 1), "1.3.2": (2, 1)}):
        desk.hold(held)
        desk.store.image_path(SERIES)
    label = desk.folder / "large.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3000, 3000, 1)), np.eye(4)), label)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            desk.store.fitted(SERIES, label)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_nothing_about_a_label_is_lost_while_the_store_lists_nothing(desk: Desk) -> None:
    desk.hold({"1.3.1": (1, 1)})
    info = {"user": "anna", "pacs": {"send": "2024-01-01"}}
    desk.store.save_label(SERIES, str(desk.drawn(0)), "final", info)
    saved, held = desk.store.get_label_info(SERIES, "final"), desk.shelf.held
    desk.hold({})
    assert desk.store.list_images() == []
    desk.store = desk.start()  # and a restart meanwhile
    desk.hold(held)
    assert desk.store.get_label_info(SERIES, "final") == saved and not desk.work.absent.exists()
    desk.hold({})
    forget(Shelf.url, SERIES, desk.work.root, labels=True)
    assert "anna" not in desk.work.absent.read_text()
    desk.hold(held)
    assert not desk.store.get_label_info(SERIES, "final")


def test_clients_change_nothing_of_what_the_server_keeps(desk: Desk) -> None:
    routes = StoreRoutes(SimpleNamespace(datastore=lambda: desk.store))  # type: ignore[arg-type]
    desk.hold({"1.3.1": (1, 1)})
    desk.store.save_label(SERIES, str(desk.drawn(0)), "final", {"pacs": {"send": "2024-01-01"}, "note": "a"})
    saved = desk.store.get_label_info(SERIES, "final")
    assert {"ts", "name", "frames", "pacs"} < set(saved)
    sent = json.dumps({**dict.fromkeys([*saved, "stored", "from_pacs"], 4e9), "note": "b"})
    asyncio.run(routes.put_label_info_old(SERIES, "final", sent, User(username="x")))
    assert desk.store.get_label_info(SERIES, "final") == {**saved, "note": "b"}


def test_frames_in_another_order(desk: Desk) -> None:
    mask = np.arange(1, 5, dtype=np.uint8).reshape(4, 1, 1)
    moved, whole = reordered(mask, ["a:1", "b:3"], ["b:3", "c:2", "a:1"])
    assert moved.ravel().tolist() == [2, 3, 4, 0, 0, 1] and whole
    moved, whole = reordered(mask, ["a:1", "b:3"], ["b:3"])
    assert moved.ravel().tolist() == [2, 3, 4] and not whole
    desk.hold({"1.3.1": (2, 1), "1.3.2": (1, 3)})
    order = frame_order(desk.store.mirror.files(SERIES))
    assert [entry.partition(":")[2] for entry in order] == ["3", "1"]
