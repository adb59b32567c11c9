"""DICOMweb of a studies folder through the running server, with DICOM's own client: what a viewer sees are the files' pixels."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import requests
from app_server import picture, save_tiny_system, start
from dicomweb_client.api import DICOMwebClient
from PIL import Image

from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file

pytestmark = [pytest.mark.server, pytest.mark.slow]


def colourful(seed: int) -> np.ndarray:
    grey = picture(seed, 64, 90)
    return np.stack([grey, grey // 2, 255 - grey], axis=-1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicomweb")
    studies = folder / "studies"
    (studies / "below").mkdir(parents=True)
    Image.fromarray(picture(0)).save(studies / "grey.png")
    Image.fromarray(colourful(1)).save(studies / "colour.png")
    flash = [Image.fromarray(colourful(k)) for k in (2, 3, 4)]
    flash[0].save(studies / "moving.gif", save_all=True, append_images=flash[1:], duration=50, loop=0)
    volume = np.stack([picture(30 + k, 70, 110).T for k in range(3)], -1)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.2, -0.1, 1, 1])), studies / "volume.nii.gz")
    (studies / "frame.dcm").write_bytes(dicom_bytes(picture(10)[None], 1, 0.08))
    (studies / "below" / "cine.dcm").write_bytes(dicom_bytes(np.stack([picture(20 + k) for k in range(4)]), 2, 0.08))
    weights = save_tiny_system(folder / "tiny.safetensors")
    running = start(studies, weights, folder, **{"learning.nice": 0})
    yield running
    running.stop()
    assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def client(server) -> DICOMwebClient:
    return DICOMwebClient(f"{server.url}/proxy/dicom")


def studies_of(client: DICOMwebClient, **filters: str) -> dict[str, dict]:
    found = client.search_for_studies(search_filters=filters or None)
    return {d["00100020"]["Value"][0]: d for d in found}


def uids(client: DICOMwebClient, patient: str) -> tuple[str, str, str]:
    study = studies_of(client)[patient]["0020000D"]["Value"][0]
    (row,) = client.search_for_instances(study)
    return study, row["0020000E"]["Value"][0], row["00080018"]["Value"][0]


def test_each_image_is_a_study_and_dicom_keeps_its_own(server, client) -> None:
    found = studies_of(client)
    assert set(found) == {"grey", "colour", "moving", "volume", "PHANTOM-01", "PHANTOM-02"}
    own = pydicom.dcmread(server.studies / "frame.dcm")
    assert uids(client, "PHANTOM-01") == (own.StudyInstanceUID, own.SeriesInstanceUID, own.SOPInstanceUID)
    assert all(d["00080061"]["Value"] == ["US"] and d["00201208"]["Value"] == [1] for d in found.values())


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"PatientID": "gr*"}, {"grey"}),
        ({"PatientName": "*PHANTOM*"}, {"PHANTOM-01", "PHANTOM-02"}),
        ({"StudyDate": "19990101-20001231"}, {"PHANTOM-01", "PHANTOM-02"}),
        ({"StudyDate": "20010101-"}, set()),
        ({"00100020": "colour"}, {"colour"}),
        ({"ModalitiesInStudy": "MR"}, set()),
    ],
)
def test_queries(client, filters: dict[str, str], names: set[str]) -> None:
    assert set(studies_of(client, **filters)) == names


def test_limit_offset_and_what_is_no_query(server, client) -> None:
    both = [d["00100020"]["Value"][0] for d in client.search_for_studies(limit=2, offset=0)]
    rest = [d["00100020"]["Value"][0] for d in client.search_for_studies(limit=10, offset=2)]
    assert len(both) == 2 and len(rest) == 4 and not set(both) & set(rest)
    for query, words in (("limit=x", "limit must be a whole number"), ("Secret=1", "knows StudyInstanceUID")):
        answer = requests.get(f"{server.url}/proxy/dicom/studies?{query}", timeout=60)
        assert answer.status_code == 400 and words in answer.text


@pytest.mark.parametrize(
    ("patient", "file"),
    [("grey", "grey.png"), ("volume", "volume.nii.gz"), ("colour", "colour.png"), ("moving", "moving.gif")],
)
def test_pictures_are_wrapped_and_keep_pixels_sizes_and_colours(server, client, patient: str, file: str) -> None:
    image_file = read_image_file(server.studies / file)
    study, series, instance = uids(client, patient)
    (metadata,) = client.retrieve_study_metadata(study)
    dataset = pydicom.Dataset.from_json(metadata)
    assert dataset.Modality == "US" and (dataset.Rows, dataset.Columns) == (image_file.height, image_file.width)
    count = image_file.n_frames
    assert int(dataset.get("NumberOfFrames", 1)) == count
    frames = client.retrieve_instance_frames(study, series, instance, list(range(1, count + 1)))
    colours = patient in ("colour", "moving")
    assert dataset.PhotometricInterpretation == ("RGB" if colours else "MONOCHROME2")
    for k, data in enumerate(frames):
        if not colours:
            shown = np.frombuffer(data, np.uint8).reshape(image_file.height, image_file.width)
            assert np.array_equal(shown, np.rint(image_file.frame(k) * 255))
        else:
            shown = np.frombuffer(data, np.uint8).reshape(image_file.height, image_file.width, 3)
            image = Image.open(server.studies / file)
            image.seek(k)
            assert np.array_equal(shown, np.asarray(image.convert("RGB")))
    if image_file.spacing_mm:
        (region,) = dataset.SequenceOfUltrasoundRegions
        assert (region.PhysicalDeltaY * 10, region.PhysicalDeltaX * 10) == pytest.approx(image_file.spacing_mm)


@pytest.mark.parametrize("patient", ["grey", "colour", "volume", "PHANTOM-01", "PHANTOM-02"])
def test_the_whole_object_is_a_dicom_file_that_is_read_alike(server, client, tmp_path: Path, patient: str) -> None:
    names = {"grey": "grey.png", "colour": "colour.png", "volume": "volume.nii.gz", "PHANTOM-01": "frame.dcm"}
    before = read_image_file(server.studies / names.get(patient, "below/cine.dcm"))
    (tmp_path / "a.dcm").write_bytes(b"")
    client.retrieve_instance(*uids(client, patient)).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    after = read_image_file(tmp_path / "a.dcm")
    assert after.shape == before.shape and after.spacing_mm == (before.spacing_mm and pytest.approx(before.spacing_mm))
    for k in range(before.n_frames):
        assert np.abs(after.frame(k) - before.frame(k)).max() < 1 / 254


def test_rendered_frames_and_thumbnails(server, client) -> None:
    study, series, instance = uids(client, "PHANTOM-02")
    url = f"{server.url}/proxy/dicom/studies/{study}/series/{series}/instances/{instance}"
    answer = requests.get(f"{url}/frames/3/rendered", headers={"Accept": "image/png"}, timeout=60)
    image_file = read_image_file(server.studies / "below" / "cine.dcm")
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.array_equal(shown, np.rint(image_file.frame(2) * 255))
    small = Image.open(io.BytesIO(requests.get(f"{url}/rendered?viewport=50,50", timeout=60).content))
    assert small.format == "JPEG" and max(small.size) == 50
    assert max(Image.open(io.BytesIO(requests.get(f"{url}/thumbnail", timeout=60).content)).size) <= 200


def test_what_is_not_there(server, client) -> None:
    study, series, instance = uids(client, "grey")
    base = f"{server.url}/proxy/dicom"
    for path in (
        "patients", "studies/1.2.3/metadata", f"studies/{study}/series/1.2/metadata", "studies/../x",
        f"studies/{study}/series/{series}/instances/{instance}/frames/2",
        f"studies/{study}/series/{series}/instances/{instance}/frames/0",
        f"studies/{study}/series/{series}/instances/{instance}/frames/7/rendered",
    ):  # fmt: skip
        assert requests.get(f"{base}/{path}", timeout=60).status_code == 404, path
    answer = requests.post(f"{base}/studies", data=b"x", timeout=60)
    assert answer.status_code == 404 and "not stored into" in answer.text


def test_uids_stay_and_only_the_instance_changes_with_the_file(server, client) -> None:
    before = uids(client, "grey")
    assert uids(client, "grey") == before
    Image.fromarray(picture(9)).save(server.studies / "grey.png")
    after = uids(client, "grey")
    assert after[:2] == before[:2] and after[2] != before[2]
    data = client.retrieve_instance_frames(*after, [1])[0]
    assert np.array_equal(np.frombuffer(data, np.uint8).reshape(96, 130), picture(9))
