"""The images of a store on this disk: what is kept, what is fetched anew, what a start without the store knows."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from orthanc import Orthanc

from ultrarefiner_monai.config import PacsConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.dicomweb.client import Pacs, PacsError
from ultrarefiner_monai.exchange.mirror import Mirror
from ultrarefiner_monai.imaging.readers import read_image_file

pytestmark = pytest.mark.orthanc


def us(number: int, sop: str, index: int = 1, shape: tuple[int, int, int] = (1, 24, 32)) -> bytes:
    """Instance ``sop`` of series ``number``; its frame number ``index``."""
    pixels = np.random.default_rng([number, index]).integers(0, 255, shape, dtype=np.uint8)
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(pixels, number, 0.1)))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = sop
    dataset.SeriesInstanceUID, dataset.InstanceNumber = f"1.2.{number}", index
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


@pytest.fixture
def mirror(orthanc: Orthanc, tmp_path: Path) -> Callable[..., Mirror]:
    def make(**options: object) -> Mirror:
        pacs = Pacs(orthanc.url, retries=0)
        return Mirror(pacs, tmp_path / "mirror", PacsConfig(**options))  # type: ignore[arg-type]

    return make


def test_a_series_that_grows_is_read_anew(orthanc: Orthanc, mirror: Callable[..., Mirror]) -> None:
    orthanc.add(us(1, "1.3.2", index=2))
    images = mirror()
    assert images.update() and not images.update()
    assert nibabel.load(images.nifti("1.2.1")).shape == (32, 24, 1)
    orthanc.add(us(1, "1.3.9", index=1))
    assert images.update()
    volume = nibabel.load(images.nifti("1.2.1"))
    assert [p.stem for p in images.files("1.2.1")] == ["1.3.9", "1.3.2"]  # by InstanceNumber
    image_file = read_image_file(images.open("1.2.1"))
    np.testing.assert_array_equal(
        image_file.geometry.to_frames(np.asarray(volume.dataobj)), np.rint(image_file.frames * 255)
    )
    np.testing.assert_allclose(volume.affine, image_file.geometry.affine, rtol=1e-6)


def test_a_series_of_several_sizes_grows_too(orthanc: Orthanc, mirror: Callable[..., Mirror], tmp_path: Path) -> None:
    orthanc.add(us(1, "1.3.1"), us(1, "1.3.2", shape=(1, 30, 32)))
    images = mirror()
    images.update()
    assert list(images.images) == ["1.2.1"]
    with pytest.raises(InputError, match="ask for one of its 2 instances"):
        images.open("1.2.1")
    assert list(images.images) == ["1.3.1", "1.3.2"]
    assert [p.name for p in images.open("1.3.2").iterdir()] == ["1.3.2.dcm"]
    assert list(mirror().images) == ["1.3.1", "1.3.2"]  # another start knows
    orthanc.add(us(1, "1.3.3"))
    images.update()
    assert list(images.images) == ["1.3.1", "1.3.2", "1.3.3"]


def test_an_instance_that_replaces_another_is_noticed(
    orthanc: Orthanc, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultrarefiner_monai.exchange.mirror._IN_TURN", 1)
    first, _ = orthanc.add(us(1, "1.3.1"), us(2, "1.3.2"))
    images = mirror()
    images.update()
    assert images.nifti("1.2.1").is_file() and images.open("1.2.2")
    orthanc.rest("DELETE", f"/instances/{first}")
    orthanc.add(us(1, "1.3.9"))
    images.update()
    for _ in range(2):  # in turn
        images.compare()
    assert [p.stem for p in images.files("1.2.1")] == ["1.3.9"]
    assert not (images.folder / "nifti" / "1.2.1.nii.gz").exists()


def test_without_the_store_list_and_fetched_images_stay(
    orthanc: Orthanc, mirror: Callable[..., Mirror], caplog: pytest.LogCaptureFixture
) -> None:
    orthanc.add(us(1, "1.3.1"), us(2, "1.3.2"))
    images = mirror()
    images.update()
    images.open("1.2.1")
    orthanc.stop()
    images = mirror()
    with pytest.raises(PacsError):
        images.update()
    with pytest.raises(PacsError):
        images.update()
    assert len([r for r in caplog.records if "listed before stay" in r.message]) == 1  # said once
    assert set(images.images) == {"1.2.1", "1.2.2"} and "cannot be reached" in images.problem
    assert read_image_file(images.open("1.2.1")).shape == (1, 24, 32)
    assert images.cached("1.2.1") and not images.cached("1.2.2")
    with pytest.raises(PacsError, match="cannot be reached"):
        images.open("1.2.2")
    with pytest.raises(KeyError):
        images.open("1.2.3")
    orthanc.start()
    assert not images.update() and images.problem == ""
    assert images.open("1.2.2").is_dir()


def test_what_vanished_from_the_store_is_said(orthanc: Orthanc, mirror: Callable[..., Mirror]) -> None:
    orthanc.add(us(1, "1.3.1"))
    images = mirror()
    images.update()
    orthanc.clear()
    with pytest.raises(PacsError, match="any more") as caught:
        images.open("1.2.1")
    assert caught.value.status == 404
    assert images.update() and not images.images


def test_the_mirror_stays_within_its_size(orthanc: Orthanc, mirror: Callable[..., Mirror]) -> None:
    for number in (1, 2, 3):
        orthanc.add(us(number, f"1.3.{number}", shape=(4, 512, 512)))
    images = mirror(mirror_mb=2)
    images.update()
    for image_id in ("1.2.1", "1.2.2", "1.2.1", "1.2.3"):
        images.open(image_id)
    assert [images.cached(f"1.2.{n}") for n in (1, 2, 3)] == [True, False, True]  # the one used longest ago
    assert not (images.folder / "series" / "1.2.2").exists()
    assert images.open("1.2.2").is_dir()


def test_a_second_process_leaves_alone_what_the_first_one_fetches(
    orthanc: Orthanc, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.add(us(40, "1.3.41"))
    images = mirror()
    images.update()
    receive, left = Pacs._receive, images.folder / "series" / ".part-old"

    def slowly(self: Pacs, address: str, folder: Path, *more: object) -> None:
        left.mkdir()
        os.utime(left, (0, 0))
        mirror()  # a training begins
        receive(self, address, folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Pacs, "_receive", slowly)
    assert images.open("1.2.40").is_dir() and not left.exists()


def test_a_series_larger_than_the_mirror_is_refused(
    orthanc: Orthanc, mirror: Callable[..., Mirror], tmp_path: Path
) -> None:
    orthanc.add(us(41, "1.3.42", shape=(1, 1100, 1000)))
    images = mirror(mirror_mb=1)
    images.update()
    with pytest.raises(PacsError, match="larger than the 1 MB.*mirror_mb"):
        images.open("1.2.41")
    assert not [p for p in (tmp_path / "mirror").rglob("*") if p.is_file() and p.name != "list.json"]


def test_stores_that_count_wrongly_are_not_asked_at_each_opening(
    orthanc: Orthanc, mirror: Callable[..., Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    orthanc.add(us(1, "1.3.1"))
    images = mirror()
    listed, fetch, asked = images.pacs.series, images.pacs.fetch_series, []
    monkeypatch.setattr(images.pacs, "fetch_series", lambda *a: asked.append(a) or fetch(*a))
    for count in (0, 7):
        monkeypatch.setattr(
            images.pacs, "series", lambda f, n=count: [dataclasses.replace(s, instances=n) for s in listed(f)]
        )
        images.update()
        asked.clear()
        images.open("1.2.1")
        images.open("1.2.1")
        assert len(asked) == 1
    images._verified.clear()  # poll_seconds later
    images.open("1.2.1")
    assert len(asked) == 2


def test_several_modalities_and_filters(orthanc: Orthanc, mirror: Callable[..., Mirror]) -> None:
    for number, modality in enumerate(("US", "IVUS", "CT"), 1):
        dataset = pydicom.dcmread(io.BytesIO(us(number, f"1.3.{number}")))
        dataset.Modality, dataset.StudyDate = modality, f"202401{number:02d}"
        out = io.BytesIO()
        dataset.save_as(out)
        orthanc.add(out.getvalue())
    images = mirror(modality=("US", "IVUS"))
    images.update()
    assert list(images.images) == ["1.2.1", "1.2.2"]
    images = mirror(modality=("US", "IVUS"), filter=("StudyDate=20240102-",))
    images.update()
    assert list(images.images) == ["1.2.2"]


def test_a_damaged_list_is_started_anew(
    orthanc: Orthanc, mirror: Callable[..., Mirror], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    orthanc.add(us(1, "1.3.1"))
    for text in ("{", '{"series": [{"uid": "../x"}], "splits": {}}', "[]"):
        (tmp_path / "mirror").mkdir(exist_ok=True)
        (tmp_path / "mirror" / "list.json").write_text(text)
        caplog.clear()
        assert not mirror().images and "is damaged" in caplog.text
    images = mirror()
    images.update()
    assert list(images.images) == ["1.2.1"]
