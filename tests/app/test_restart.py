"""What survives a restart, what `forget` removes under a running server, studies that cannot be written."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import requests
from app_server import picture, start
from PIL import Image

from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import forget

pytestmark = pytest.mark.server


def test_restart_and_forget(tmp_path, checkpoint):
    """One server, stopped and started again on studies that it must not write to."""
    from monailabel.client import MONAILabelClient

    studies, work = tmp_path / "studies", tmp_path / "work"
    studies.mkdir()
    for n in range(3):
        Image.fromarray(picture(n)).save(studies / f"image{n}.png")
    os.chmod(studies, 0o555)  # root may write all the same: then the work folder alone is configured elsewhere
    running = start(studies, checkpoint, tmp_path, work_dir=work)
    try:
        client = MONAILabelClient(running.url, tmpdir=str(tmp_path), client_id="one")
        skipped = client.next_sample("first", {})["id"]
        first, _ = client.infer("ultrarefiner", "image0", {"result_extension": ".nii.gz"})
        client.infer("sam_refiner", "image1", {"result_extension": ".nrrd", "foreground": [[20, 20, 0]]})
        client.save_label("image0", first)
    finally:
        running.stop()
    assert not (studies / ".ultrarefiner").exists()
    journal = Journal(work / "journal.sqlite")  # what was queued is written before the process ends
    assert [len(journal.proposals(f"image{n}")) for n in range(3)] == [1, 1, 0]
    assert journal.corrections("image0")[0].proposal_id == journal.proposals("image0")[0].id
    stored = {p.name for p in (work / "embeddings").iterdir()}
    keys = [image_key(read_image_file(studies / f"image{n}.png").frame()) for n in range(2)]
    assert all(any(name.startswith(key) for name in stored) for key in keys)

    running = start(studies, checkpoint, tmp_path, work_dir=work)
    try:
        client = MONAILabelClient(running.url, tmpdir=str(tmp_path), client_id="two")
        assert client.info()["datastore"]["completed"] == 1
        assert client.next_sample("first", {})["id"] not in (skipped, "image0")
        again, reply = client.infer("ultrarefiner", "image0", {"result_extension": ".nii.gz"})
        image_file = read_image_file(studies / "image0.png")
        np.testing.assert_array_equal(read_mask(again, image_file), read_mask(first, image_file))
        assert reply["timings"]["encode"] == 0 and reply["timings"]["coarse"] == 0, "embeddings were not kept"

        label = next(p for p in (studies / "labels", work / "labels") if (p / "final" / "image0.nii.gz").is_file())
        assert skipped == "image0" and list((work / "handed").rglob("image0*"))
        report = forget(studies, "image0", work_dir=work)
        assert not list((work / "handed").rglob("image0*"))
        assert report.proposals >= 1 and report.corrections == 1 and report.embeddings >= 1
        assert not any(p.name.startswith(keys[0]) for p in (work / "embeddings").iterdir())
        assert any(p.name.startswith(keys[1]) for p in (work / "embeddings").iterdir())
        assert (label / "final" / "image0.nii.gz").is_file() and (studies / "image0.png").is_file()
        _, reply = client.infer("ultrarefiner", "image0", {"result_extension": ".nii.gz"})
        assert reply["timings"]["encode"] > 0, "the running server still held what was forgotten"
        assert requests.get(f"{running.url}/info/").status_code == 200
    finally:
        running.stop()
        os.chmod(studies, 0o755)
        shutil.rmtree(studies)
