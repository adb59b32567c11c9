"""The running server on a real Orthanc with a login: lists, images, outlines, labels, a store that goes away."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import requests
from app_server import APP, Server, eventually, picture, start
from orthanc import PASSWORD, USER, Orthanc, us_file

from ultrarefiner_monai.dicomweb.client import Pacs
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import forget

pytestmark = [pytest.mark.server, pytest.mark.orthanc]

ROOT_UID = "1.2.826.0.1.3680043.8.498."


def us(number: int, frames: int = 1, size: tuple[int, int] = (96, 130), **changes: object) -> bytes:
    """An ultrasound file; changes: DICOM keywords."""
    return us_file(np.stack([picture(number + k, *size) for k in range(frames)]), number, 0.08, **changes)


def uid_of(content: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).SeriesInstanceUID)


def pdf(number: int) -> bytes:
    """An encapsulated PDF that calls itself ultrasound."""
    dataset = pydicom.dcmread(io.BytesIO(us(number)))
    for keyword in ("PixelData", "Rows", "Columns", "SequenceOfUltrasoundRegions"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.MIMETypeOfEncapsulatedDocument, dataset.EncapsulatedDocument = "application/pdf", b"%PDF-1.4"
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


FRAME, CINE, STRANGE = us(1), us(2, frames=3), us(3, PatientName="../../x\\ Ünü^<b>", PatientID="../*?")
# Three instances of one series, stored in another order than that of their frames.
SERIES = [us(10, SOPInstanceUID=f"{ROOT_UID}10.{k}", InstanceNumber=4 - k) for k in (1, 2, 3)]
MIXED = [us(20, size=(90 + k, 120), SOPInstanceUID=f"{ROOT_UID}20.{k}") for k in (1, 2)]
DOCUMENT, OTHER = pdf(30), us(40, Modality="CT")


@dataclass
class Clinic:
    """The archive and the server on it. ``ids``: what is listed at first."""

    archive: Orthanc
    server: Server
    work: Path

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.server.url + path, timeout=60, **options)  # type: ignore[arg-type]

    def objects(self) -> dict:
        return self.get("/datastore/?output=all").json()["objects"]

    def infer(self, model: str, image: str, params: str = "{}") -> requests.Response:
        address = f"{self.server.url}/infer/{model}?image={image}&output=image"
        return requests.post(address, data={"params": params}, timeout=60)


@pytest.fixture(scope="module")
def clinic(
    run_orthanc: Callable[..., Orthanc], tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[Clinic]:
    archive = run_orthanc(login=(USER, PASSWORD))
    archive.add(FRAME, CINE, STRANGE, *SERIES, *MIXED, DOCUMENT, OTHER)
    folder = tmp_path_factory.mktemp("pacs")
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    conf = {"pacs.user": USER, "pacs.password_file": folder / "password", "pacs.poll_seconds": 600, "pacs.retries": 0}
    # Whoever wants something from the internet finds a door that is shut.
    shut = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    with mock.patch.dict(os.environ, shut):
        server = start(archive.url, checkpoint, folder, work_dir=folder / "work", **conf)  # type: ignore[arg-type]
    yield Clinic(archive, server, folder / "work")
    server.stop()


def test_ultrasound_is_listed_and_the_list_is_fresh_after_each_change(clinic: Clinic) -> None:
    ids = set(clinic.objects())
    assert {uid_of(FRAME), uid_of(CINE), uid_of(SERIES[0])} < ids and uid_of(OTHER) not in ids
    new = us(50)
    (stored,) = clinic.archive.add(new)
    assert set(clinic.objects()) == ids | {uid_of(new)}
    assert clinic.get("/info/").json()["datastore"]["total"] == len(ids) + 1
    clinic.archive.rest("DELETE", f"/instances/{stored}")
    assert set(clinic.objects()) == ids
    pacs = clinic.get("/info/").json()["pacs"]
    assert pacs["reachable"] and pacs["problem"] == "" and pacs["url"] == clinic.archive.url
    assert PASSWORD not in clinic.server.log


def test_clients_get_a_volume_with_the_regions_spacing(clinic: Clinic, tmp_path: Path) -> None:
    answer = clinic.get(f"/datastore/image?image={uid_of(SERIES[0])}")
    (tmp_path / "image.nii.gz").write_bytes(answer.content)
    image = nibabel.load(tmp_path / "image.nii.gz")
    assert image.shape == (130, 96, 3) and image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.header.get_zooms()[:2], 0.08, rtol=1e-5)
    first = pydicom.dcmread(io.BytesIO(SERIES[2])).pixel_array  # InstanceNumber 1
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0].T, first)
    head = requests.head(f"{clinic.server.url}/datastore/image?image={uid_of(SERIES[0])}", timeout=30)
    assert head.status_code == 200


@pytest.mark.parametrize("model", ["ultrarefiner", "transunet", "sam_refiner"])
@pytest.mark.parametrize("content", [FRAME, CINE, SERIES[0], STRANGE], ids=["frame", "cine", "series", "strange"])
def test_every_task_outlines_on_the_grid_of_the_volume(
    clinic: Clinic, model: str, content: bytes, tmp_path: Path
) -> None:
    image = uid_of(content)
    params = '{"foreground": [[60, 40, 0]]}' if model == "sam_refiner" else "{}"
    answer = clinic.infer(model, image, params)
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nrrd").write_bytes(answer.content)
    mask, header = nrrd.read(str(tmp_path / "mask.nrrd"))
    (tmp_path / "image.nii.gz").write_bytes(clinic.get(f"/datastore/image?image={image}").content)
    volume = nibabel.load(tmp_path / "image.nii.gz")
    assert mask.shape == volume.shape
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    np.testing.assert_allclose(header["space directions"].T, affine[:3, :3], atol=1e-6)
    np.testing.assert_allclose(header["space origin"], affine[:3, 3], atol=1e-6)
    if model == "sam_refiner":
        assert mask[60, 40, 0] == 1


def test_next_sample_names_a_local_file_and_never_what_cannot_be_read(clinic: Clinic) -> None:
    offered = set()
    for _ in range(8):
        reply = requests.post(f"{clinic.server.url}/activelearning/first", json={}, timeout=60).json()
        offered.add(reply["id"])
        assert nibabel.load(reply["path"]).ndim == 3
    assert uid_of(DOCUMENT) not in offered and uid_of(MIXED[0]) not in offered
    assert uid_of(FRAME) in offered


def test_a_series_of_several_sizes_is_an_image_for_each(clinic: Clinic) -> None:
    answer = clinic.infer("ultrarefiner", uid_of(MIXED[0]))
    assert answer.status_code == 400 and f"{ROOT_UID}20.1" in answer.json()["detail"]
    ids = set(clinic.objects())
    assert {f"{ROOT_UID}20.1", f"{ROOT_UID}20.2"} < ids and uid_of(MIXED[0]) not in ids
    assert clinic.infer("ultrarefiner", f"{ROOT_UID}20.2").status_code == 200


def test_a_document_is_refused_in_words(clinic: Clinic) -> None:
    answer = clinic.infer("ultrarefiner", uid_of(DOCUMENT))
    assert answer.status_code == 400 and "no picture, only 1 Encapsulated PDF" in answer.json()["detail"]
    assert clinic.infer("ultrarefiner", uid_of(OTHER)).status_code == 404  # is there, but not ours


def test_a_saved_label_counts_at_once_and_is_journalled(clinic: Clinic, tmp_path: Path) -> None:
    image = uid_of(CINE)
    mask = clinic.infer("ultrarefiner", image, '{"result_extension": ".nii.gz"}')
    done = clinic.get("/info/").json()["datastore"]["completed"]
    files = {"label": ("label.nii.gz", mask.content)}
    address = f"{clinic.server.url}/datastore/label?image={image}"
    answer = requests.put(address, files=files, data={"params": '{"client_id": "dr"}'}, timeout=60)
    assert answer.json() == {"image": image, "label": image}
    assert clinic.get("/info/").json()["datastore"]["completed"] == done + 1
    assert clinic.get(f"/datastore/label?label={image}&tag=final").content == mask.content
    journal = Journal(clinic.work / "journal.sqlite")
    try:
        assert [c.author for c in journal.corrections() if c.image_id == image] == ["dr"]
    finally:
        journal.close()
    train = clinic.get("/datastore/?output=train").json()
    assert [nibabel.load(pair["image"]).shape for pair in train] == [(130, 96, 3)]


def test_trainings_know_patient_and_journal_of_an_image(clinic: Clinic) -> None:
    """A label counts as a correction only with the sum that the journal has; patients stay on one side of the split."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from lib.store.pacs import PacsStudies\n"
        "from lib.tasks.trainers import labels_to_learn\n"
        "from ultrarefiner_monai.config import PacsConfig\n"
        "from ultrarefiner_monai.imaging.readers import read_image_file\n"
        "from ultrarefiner_monai.dicom.series import sha256_of_image\n"
        "from ultrarefiner_monai.dicomweb.client import Pacs\n"
        "from ultrarefiner_monai.studies.work_folder import WorkFolder\n"
        "config, work = PacsConfig(), WorkFolder(Path(sys.argv[3]))\n"
        "store = PacsStudies(Pacs(sys.argv[2], retries=0), work, config, ('.dcm',), read_image_file)\n"
        "[found] = labels_to_learn(store)\n"
        "print(read_image_file(found.image).patient, sha256_of_image(found.image))\n"
    )
    arguments = [sys.executable, "-c", code, str(APP), clinic.archive.url, str(clinic.work)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    journal = Journal(clinic.work / "journal.sqlite")
    try:
        [correction] = [c for c in journal.corrections() if c.image_id == uid_of(CINE)]
    finally:
        journal.close()
    assert done.stdout.split()[-2:] == ["PHANTOM-02", correction.image_hash]


def test_no_patients_name_in_any_file_name(clinic: Clinic) -> None:
    assert clinic.infer("transunet", uid_of(STRANGE)).status_code == 200
    names = [p.name for p in clinic.work.rglob("*")]
    assert not [n for n in names if "Ünü" in n or "*" in n] and f"{uid_of(STRANGE)}.nii.gz" in names


def test_viewers_reach_the_store_through_the_server(clinic: Clinic) -> None:
    series = uid_of(FRAME)
    (listed,) = clinic.get(f"/proxy/dicom/qido/series?SeriesInstanceUID={series}").json()
    study = listed["0020000D"]["Value"][0]
    for operation in ("wado/", ""):
        answer = clinic.get(f"/proxy/dicom/{operation}studies/{study}/series/{series}/metadata")
        assert answer.json()[0]["0020000E"]["Value"] == [series]
    whole = clinic.get(f"/proxy/dicom/studies/{study}", headers={"Accept": "multipart/related; type=application/dicom"})
    assert whole.headers["Content-Type"].startswith("multipart/related") and b"DICM" in whole.content
    stored = pydicom.dcmread(io.BytesIO(us(70, Modality="OT")))
    through = Pacs(f"{clinic.server.url}/proxy/dicom")
    through.store([stored])
    assert [s.uid for s in through.series({"Modality": "OT"})] == [stored.SeriesInstanceUID]
    assert clinic.get("/proxy/dicom/servers").status_code == 404  # Orthanc's own way to other stores
    assert clinic.get("/proxy/dicom/studies/../servers").status_code in (400, 404)


@pytest.mark.parametrize("way", ["viewer", "client"])
def test_an_image_that_is_shown_is_prepared(clinic: Clinic, way: str) -> None:
    content = us(80 if way == "viewer" else 90, frames=3)
    (stored,) = clinic.archive.add(content)
    dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    study, series, sop = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID
    assert series in clinic.objects()
    if way == "viewer":
        path = f"/proxy/dicom/studies/{study}/series/{series}/instances/{sop}/frames/1"
    else:
        path = f"/datastore/image?image={series}"
    assert clinic.get(path).status_code == 200
    eventually(lambda: not clinic.get("/info/").json()["serving"]["preparing"])
    address = f"{clinic.server.url}/infer/sam_refiner?image={series}&output=json"
    answer = requests.post(address, data={"params": '{"foreground": [[60, 40, 2]]}'}, timeout=60).json()
    assert answer["timings"]["cached"] == 1.0 and len(answer["frames"]) == 3
    journal = Journal(clinic.work / "journal.sqlite")
    try:
        assert len(journal.rows("SELECT id FROM shown WHERE image_id = ?", (series,))) == 1
    finally:
        journal.close()
    clinic.archive.rest("DELETE", f"/instances/{stored}")
    assert series not in clinic.objects()


def test_the_studies_are_not_changed_through_the_server(clinic: Clinic) -> None:
    url = clinic.server.url
    answer = requests.put(f"{url}/datastore/image?image=x", files={"file": ("x.png", b"x")}, timeout=30)
    assert answer.status_code == 400
    assert requests.delete(f"{url}/datastore/image?id={uid_of(FRAME)}", timeout=30).status_code == 400
    assert uid_of(FRAME) in clinic.objects()


def test_forget_removes_what_was_fetched(clinic: Clinic) -> None:
    image = uid_of(FRAME)
    assert clinic.get(f"/datastore/image?image={image}").status_code == 200
    report = forget(clinic.archive.url, image, clinic.work)
    assert report.mirrored == 2  # the file and the volume made from it
    assert not [p for p in clinic.work.rglob("*") if image in p.name]
    assert clinic.infer("transunet", image).status_code == 200  # fetched anew


@pytest.mark.slow
def test_work_goes_on_with_what_is_here_while_the_store_is_away(
    clinic: Clinic, checkpoint: Path, tmp_path: Path
) -> None:
    new = us(60)
    clinic.archive.add(new)
    ids = set(clinic.objects())
    assert clinic.infer("transunet", uid_of(CINE)).status_code == 200
    shutil.copytree(clinic.work, tmp_path / "work")
    clinic.archive.stop()
    try:
        answer = clinic.infer("transunet", uid_of(new))
        assert answer.status_code == 503 and "cannot be reached" in answer.json()["detail"]
        assert set(clinic.objects()) == ids
        assert clinic.infer("sam_refiner", uid_of(CINE), '{"foreground": [[60, 40, 1]]}').status_code == 200
        begun = time.monotonic()
        reply = requests.post(f"{clinic.server.url}/activelearning/first", json={}, timeout=60).json()
        assert reply["id"] != uid_of(new) and time.monotonic() - begun < 5
        assert not clinic.get("/info/").json()["pacs"]["reachable"]
        assert "The PACS is away" in clinic.get("/").text
        # A server that starts now has the list and the images of the one before.
        conf = {"pacs.user": USER, "pacs.password_file": clinic.work.parent / "password", "pacs.retries": 0}
        late = start(clinic.archive.url, checkpoint, tmp_path, work_dir=tmp_path / "work", **conf)  # type: ignore[arg-type]
        try:
            second = Clinic(clinic.archive, late, tmp_path / "work")
            assert eventually(lambda: "cannot be reached" in second.get("/info/").json()["pacs"]["problem"])
            assert set(second.objects()) == ids and "cannot be reached" in late.log
            assert second.infer("transunet", uid_of(CINE)).status_code == 200
            clinic.archive.start()
            for place in (clinic, second):
                assert eventually(lambda place=place: place.get("/info/").json()["pacs"]["reachable"])  # type: ignore[misc]
                assert place.infer("transunet", uid_of(new)).status_code == 200
        finally:
            late.stop()
    finally:
        if clinic.archive.process is None or clinic.archive.process.poll() is not None:
            clinic.archive.start()
