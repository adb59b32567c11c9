"""Batches over a real Orthanc: what is fetched, outlined, stored, and what happens when it goes away."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from orthanc import Orthanc
from test_batch import picture, save_tiny

from ultrarefiner_monai.batch.archive import Summary, plan_batch, run_batch
from ultrarefiner_monai.batch.work import Worker
from ultrarefiner_monai.config import ConfigError, PacsConfig, ServeConfig
from ultrarefiner_monai.datasets.samples import dicom_bytes, make_cine
from ultrarefiner_monai.dicom.seg_reader import read_seg, seg_info
from ultrarefiner_monai.dicom.series import read_series
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

pytestmark = pytest.mark.orthanc
QUICK = ServeConfig(pacs=PacsConfig(retries=0))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("weights") / "tiny.safetensors", 1)


def cine(number: int, frames: int = 1, height: int = 48, instance: int = 1) -> bytes:
    images, _ = make_cine(np.random.default_rng(number), height, 64, frames, "benign")
    return dicom_bytes(images, number, 0.2, instance=instance)


def changed(content: bytes, **values: str) -> bytes:
    dataset, out = pydicom.dcmread(io.BytesIO(content)), io.BytesIO()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.save_as(out)
    return out.getvalue()


def rows_of(summary: Summary) -> list[dict[str, str]]:
    with summary.results.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stored_segs(orthanc: Orthanc) -> dict[str, pydicom.Dataset]:
    files = [pydicom.dcmread(io.BytesIO(orthanc.file(i))) for i in orthanc.instances()]
    return {str(ds.SOPInstanceUID): ds for ds in files if ds.Modality == "SEG"}


@pytest.mark.slow
def test_proposals_of_an_archive_come_back_as_segs(orthanc: Orthanc, tiny: Path, tmp_path: Path) -> None:
    single, loop, first, second = cine(1), cine(2, 3), cine(3, 2), cine(3, 1, 40, instance=2)
    document = changed(cine(4), SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    files = {}
    for content in (single, loop, first, second, document, changed(cine(5), Modality="CT")):
        orthanc.add(content)
        path = tmp_path / f"{len(files)}.dcm"
        path.write_bytes(content)
        files[str(pydicom.dcmread(path).SOPInstanceUID)] = path
    jobs, setup = plan_batch(orthanc.url, tmp_path / "out", tiny, "seg", store=True)
    assert len(jobs) == 4  # the CT is not asked for, the sizes of one series differ
    summary = run_batch(jobs, setup)
    rows = rows_of(summary)
    assert (summary.done, summary.stored, summary.failed) == (4, 4, 1)
    assert "holds no picture, only 1 Encapsulated PDF Storage" in summary.failures[0][1]
    assert [bool(row["sop_uid"]) for row in rows].count(True) == 2 and {row["unit"] for row in rows} <= {"mm", ""}
    predictor, segs = Predictor(load_system(tiny)), stored_segs(orthanc)
    assert len(segs) == 4
    for row in rows:
        if row["status"] == "failed":
            continue
        seg = segs[row["stored"]]
        uid = str(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)
        image_file = read_series([files[uid]])
        wanted = np.stack([predictor.propose(image_file.frame(k)).mask for k in range(image_file.n_frames)])
        np.testing.assert_array_equal(read_seg(seg, [files[uid]]), wanted)
        assert seg_info(seg).ours and seg_info(seg).automatic  # or a server would take it for a correction
        assert pydicom.dcmread(setup.out / row["mask"]).SOPInstanceUID == row["stored"]

    # Killed after it was stored and before its row was written: the store gets the same object again.
    loose = next(row["series_uid"] for row in rows if row["stored"])
    [again] = [job for job in jobs if job.series_uid == loose]
    answered, _ = Worker(setup).answer(again)
    assert {row["stored"] for row in answered} <= set(segs) and set(stored_segs(orthanc)) == set(segs)
    assert not list((setup.out / "masks").glob(".*"))  # nothing that was fetched is left

    orthanc.add(cine(2, 3, instance=2))  # one more loop in the second series
    jobs, _ = plan_batch(orthanc.url, tmp_path / "out", tiny, "seg", store=True)
    summary = run_batch(jobs, setup)
    assert (summary.done, summary.skipped, summary.failed) == (1, 3, 1)
    assert "6" in {row["frames"] for row in rows_of(summary)}


@pytest.mark.slow
def test_a_store_that_goes_away_stops_the_batch_and_the_next_one_goes_on(
    orthanc: Orthanc, tiny: Path, tmp_path: Path
) -> None:
    orthanc.add(*[dicom_bytes(picture(k)[None], k, 0.2) for k in range(7)])
    jobs, setup = plan_batch(orthanc.url, tmp_path / "out", tiny, config=QUICK)
    summary = run_batch(jobs, setup, progress=lambda answered, *_: orthanc.stop() if answered == 2 else None)
    assert (summary.done, summary.failed, summary.left) == (2, 3, 2)
    assert "cannot be reached" in summary.stopped
    orthanc.start()
    summary = run_batch(jobs, setup)
    assert (summary.done, summary.skipped, summary.failed, summary.left) == (5, 2, 0, 0)


def test_filters_reach_the_store(orthanc: Orthanc, tiny: Path, tmp_path: Path) -> None:
    orthanc.add(cine(1), changed(cine(2), StudyDate="20240215"), changed(cine(3), Modality="OT"))

    def count(*filters: str) -> int:
        return len(plan_batch(orthanc.url, tmp_path, tiny, filters=filters)[0])

    assert count() == 2 and count("StudyDate=20240101-20241231") == count("Modality=OT") == 1
    with pytest.raises(ConfigError, match="--filter expects NAME=VALUE"):
        count("StudyDate")
