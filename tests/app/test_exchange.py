"""The running server on a real Orthanc: labels go to it as SEG and SR, SEGs that viewers store there come back."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import app_server
import nibabel
import numpy as np
import pydicom
import pytest
import requests
from app_server import Server, picture, start
from orthanc import Orthanc, us_file
from segs import viewers_seg
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app as cli
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.seg_reader import read_seg
from ultrarefiner_monai.dicomweb.client import Pacs
from ultrarefiner_monai.exchange.ask import send_label
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.journal_rows import StoredCorrection

pytestmark = [pytest.mark.server, pytest.mark.orthanc]
SIZE = (96, 130)
eventually = partial(app_server.eventually, seconds=40.0)  # a label goes out, is found and comes back


def us(number: int, frames: int, size: tuple[int, int] = SIZE, **changes: Any) -> bytes:
    return us_file(np.stack([picture(number + k, *size) for k in range(frames)]), number, 0.08, **changes)


def rectangle(frames: int, x: int, y: int = 20) -> np.ndarray:
    """(T, H, W): a lesion on the last frame."""
    mask = np.zeros((frames, *SIZE), np.uint8)
    mask[-1, y : y + 30, x : x + 40] = 1
    return mask


@dataclass
class Clinic:
    """An archive, a server that stores its labels there, and what a viewer and a client can do."""

    archive: Orthanc
    folder: Path
    checkpoint: Path
    server: Server | None = None

    def start(self) -> None:
        conf = {"pacs.store": "true", "pacs.sr": "true", "pacs.poll_seconds": 1, "pacs.retries": 0}
        work = self.folder / "work"
        self.server = start(self.archive.url, self.checkpoint, self.folder, work_dir=work, **conf)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    @property
    def pacs(self) -> Pacs:
        return Pacs(self.archive.url, retries=2)

    def add(self, content: bytes) -> tuple[str, list[Path]]:
        """(image id, its file) of a series that is stored in the archive and listed by the server."""
        self.archive.add(content)
        ds = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        path = self.folder / f"{ds.SOPInstanceUID}.dcm"
        path.write_bytes(content)
        eventually(lambda: str(ds.SeriesInstanceUID) in self.objects())
        return str(ds.SeriesInstanceUID), [path]

    def save(self, image: str, mask: np.ndarray, tag: str = "final", **info: Any) -> dict[str, Any]:
        """As 3D Slicer saves: a NIfTI on the grid of the image that the server hands out."""
        given = requests.get(f"{self.url}/datastore/image?image={image}", timeout=60).content
        affine = nibabel.Nifti1Image.from_bytes(gzip.decompress(given)).affine
        label = nibabel.Nifti1Image(mask.transpose(2, 1, 0), affine).to_bytes()
        address = f"{self.url}/datastore/label?image={image}&tag={tag}"
        answer = requests.put(address, files={"label": ("l.nii", label)}, data={"params": json.dumps(info)}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def final(self, image: str) -> np.ndarray:
        """(T, H, W) of the label in the studies."""
        answer = requests.get(f"{self.url}/datastore/label?label={image}&tag=final", timeout=60)
        content = answer.content
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        return np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj).transpose(2, 1, 0)

    def info(self, image: str) -> dict[str, Any]:
        return self.objects()[image]["labels"]["final"]["info"]

    def objects(self) -> dict[str, Any]:
        return requests.get(f"{self.url}/datastore/?output=all", timeout=60).json()["objects"]

    def stored(self, modality: str, image: str) -> list[Any]:
        """The objects of this modality in the archive that refer to the image."""
        held = [pydicom.dcmread(io.BytesIO(self.archive.file(i))) for i in self.archive.instances()]
        return [ds for ds in held if ds.Modality == modality and image in ds.to_json()]

    def corrections(self, image: str) -> list[StoredCorrection]:
        journal = Journal(self.folder / "work" / "journal.sqlite")
        try:
            return journal.corrections(image)
        finally:
            journal.close()


@pytest.fixture(scope="module")
def clinic(run_orthanc: Callable[..., Orthanc], tmp_path_factory: Any, checkpoint: Path) -> Iterator[Clinic]:
    place = Clinic(run_orthanc(), tmp_path_factory.mktemp("exchange"), checkpoint)
    place.start()
    yield place
    assert place.server is not None
    place.server.stop()
    assert "PHANTOM" not in place.server.log and "Traceback" not in place.server.log


def test_a_final_label_goes_to_the_archive(clinic: Clinic) -> None:
    image, files = clinic.add(us(100, 3))
    reply = requests.post(f"{clinic.url}/infer/ultrarefiner?image={image}&output=dicom_seg", timeout=60)
    assert reply.status_code == 200, reply.text
    proposal = pydicom.dcmread(io.BytesIO(reply.content))
    assert proposal.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert np.array_equal(read_seg(proposal, files), _proposal(clinic, image))
    mask = rectangle(3, 50)
    clinic.save(image, mask, client_id="dr-roe")
    eventually(lambda: clinic.stored("SR", image))
    seg, sr = clinic.stored("SEG", image)[0], clinic.stored("SR", image)[0]
    assert np.array_equal(read_seg(seg, files), mask)
    assert seg.ContentCreatorName == "dr-roe^" and seg.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert seg.SegmentSequence[0].SegmentAlgorithmName == "ultrarefiner"
    assert seg.SOPInstanceUID in sr.to_json()
    assert clinic.info(image)["pacs"] == {"seg": seg.SOPInstanceUID, "sr": sr.SOPInstanceUID}
    # An empty one is a result too; what was sent does not come back.
    clinic.save(image, mask * 0, client_id="dr-doe")
    segs = eventually(lambda: len(s := clinic.stored("SEG", image)) == 2 and s)
    empty = next(s for s in segs if s.SOPInstanceUID != seg.SOPInstanceUID)
    assert empty.ContentLabel == "NO_LESION" and not read_seg(empty, files).any()
    time.sleep(3)
    assert [c.author for c in clinic.corrections(image)] == ["dr-roe", "dr-doe"]
    assert requests.get(f"{clinic.url}/info/", timeout=60).json()["pacs"]["outbox"] == {
        "waiting": 0,
        "problem": "",
        "refused": 0,
    }


def _proposal(clinic: Clinic, image: str) -> np.ndarray:
    journal = Journal(clinic.folder / "work" / "journal.sqlite")
    try:
        return journal.proposals(image)[-1].mask
    finally:
        journal.close()


def test_a_viewers_seg_becomes_the_final_label(clinic: Clinic) -> None:
    image, files = clinic.add(us(200, 2))
    requests.post(f"{clinic.url}/infer/ultrarefiner?image={image}&output=json", timeout=60)
    clinic.save(image, rectangle(2, 10), client_id="dr-roe")
    eventually(lambda: clinic.stored("SEG", image))
    seg = viewers_seg(rectangle(2, 60), files)
    clinic.pacs.store([seg])
    info = eventually(lambda: (i := clinic.info(image)).get("from_pacs") and i)
    assert np.array_equal(clinic.final(image), rectangle(2, 60))
    assert info["user"] == "Roe Jane" and info["from_pacs"]["manufacturer"] == "A viewer's maker"
    assert info["from_pacs"]["sop_uid"] == seg.SOPInstanceUID and info["from_pacs"]["time"]
    versions = list((clinic.folder / "work" / "versions" / "final" / image).iterdir())
    assert len(versions) == 1 and np.asarray(nibabel.load(versions[0]).dataobj).sum() == 1200
    newest = clinic.corrections(image)[-1]
    assert newest.author == "Roe Jane" and newest.proposal_id is not None
    assert np.array_equal(newest.mask, rectangle(2, 60))
    # The next one wins; an older one, as from an import, is kept beside.
    clinic.pacs.store([viewers_seg(rectangle(2, 80), files)])
    eventually(lambda: np.array_equal(clinic.final(image), rectangle(2, 80)))
    old = {f"{p}Date": "20200101" for p in ("Content", "InstanceCreation", "Series")}
    clinic.pacs.store([viewers_seg(rectangle(2, 30), files, **old)])
    eventually(lambda: len(clinic.corrections(image)) == 4)
    assert np.array_equal(clinic.final(image), rectangle(2, 80))
    time.sleep(2)
    assert len(clinic.corrections(image)) == 4 and len(clinic.stored("SEG", image)) == 4  # nothing was sent back


def test_a_seg_that_cannot_be_used_changes_nothing(clinic: Clinic) -> None:
    image, files = clinic.add(us(300, 2))
    clinic.save(image, rectangle(2, 10))
    seg = viewers_seg(rectangle(2, 60), files)
    item = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    item.ReferencedFrameNumber = 9
    clinic.pacs.store([seg])
    assert clinic.server is not None
    eventually(lambda: "no longer exist" in clinic.server.log)  # type: ignore[union-attr]
    assert np.array_equal(clinic.final(image), rectangle(2, 10)) and len(clinic.corrections(image)) == 1


def test_a_seg_on_one_picture_of_a_series_of_several_sizes(clinic: Clinic) -> None:
    uid = "1.2.826.0.1.3680043.8.498.700"
    contents = [us(700, 1, size=(*SIZE[:1], width), SOPInstanceUID=f"{uid}.{width}") for width in (130, 140)]
    clinic.archive.add(*contents)
    files = []
    for content in contents:
        ds = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        files.append(clinic.folder / f"{ds.SOPInstanceUID}.dcm")
        files[-1].write_bytes(content)
    clinic.pacs.store([viewers_seg(rectangle(1, 60), files[:1])])
    eventually(lambda: f"{uid}.130" in clinic.objects() and clinic.objects()[f"{uid}.130"]["labels"])
    assert np.array_equal(clinic.final(f"{uid}.130"), rectangle(1, 60))
    assert not clinic.objects()[f"{uid}.140"]["labels"]


def test_two_users_who_save_at_once(clinic: Clinic) -> None:
    image, _ = clinic.add(us(400, 1))
    places = (10, 30, 50, 70)
    clinic.save(image, rectangle(1, 0))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda x: clinic.save(image, rectangle(1, x), client_id=f"user{x}"), places))
    kept = clinic.corrections(image)
    assert sorted(c.author for c in kept[1:]) == sorted(f"user{x}" for x in places)
    assert np.array_equal(clinic.final(image), kept[-1].mask)
    versions = (clinic.folder / "work" / "versions" / "final" / image).iterdir()
    drawn = {int(np.argmax(np.asarray(nibabel.load(v).dataobj).any((1, 2)))) for v in versions}
    assert drawn == {0, *places} - {int(kept[-1].author[4:])}

    def newest() -> str:
        segs = sorted(clinic.stored("SEG", image), key=lambda s: (s.ContentDate, s.ContentTime))
        return str(segs[-1].ContentCreatorName) if segs else ""

    eventually(lambda: newest() == f"{kept[-1].author}^")


def _waiting(clinic: Clinic) -> int:
    return requests.get(f"{clinic.url}/info/", timeout=60).json()["pacs"]["outbox"]["waiting"]


def test_on_demand(clinic: Clinic) -> None:
    image, files = clinic.add(us(500, 1))
    clinic.save(image, rectangle(1, 40), tag="original", model="transunet")
    answer = send_label(clinic.url, image, "original", sr=False)
    assert "sr" not in answer
    seg = eventually(lambda: clinic.stored("SEG", image))[0]
    assert seg.SOPInstanceUID == answer["seg"] and seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert np.array_equal(read_seg(seg, files), rectangle(1, 40)) and seg.ContentCreatorName == ""
    for name, tag, message in (
        (image, "final", "has no label 'final'"),
        ("1.2.3", "final", "there is no image"),
        ("../x", "final", "plain name"),
    ):
        with pytest.raises(InputError, match=message):
            send_label(clinic.url, name, tag)
    with pytest.raises(InputError, match="is the server running"):
        send_label("http://127.0.0.1:9", image)
    told = CliRunner().invoke(cli, ["send", image, "--server", clinic.url, "--tag", "original", "--sr"])
    assert told.exit_code == 0 and "on the way" in told.output and " and SR " in told.output


def test_nothing_is_lost_while_the_archive_is_away(clinic: Clinic) -> None:
    image, files = clinic.add(us(600, 1))
    clinic.save(image, rectangle(1, 5))
    eventually(lambda: clinic.stored("SEG", image))
    clinic.archive.stop()
    try:
        clinic.save(image, rectangle(1, 55), client_id="dr-night")
        eventually(lambda: _waiting(clinic) == 2)
        assert clinic.server is not None
        clinic.server.process.kill()
        clinic.server.process.wait(20)
        # As if it had died between saving and sending: a label with the mark only.
        for path in (clinic.folder / "work" / "exchange" / "outbox").glob("*.dcm"):
            path.unlink()
        index = clinic.folder / "work" / "datastore_v2.json"
        values = json.loads(index.read_text())
        values["objects"][image]["labels"]["final"]["info"]["pacs"] = {"send": "2026-01-02T03:04:05.000600+00:00"}
        index.write_text(json.dumps(values))
        clinic.start()
        eventually(lambda: _waiting(clinic) == 2)
    finally:
        clinic.archive.start()
    eventually(lambda: len(clinic.stored("SEG", image)) == 2)
    assert any(np.array_equal(read_seg(s, files), rectangle(1, 55)) for s in clinic.stored("SEG", image))
