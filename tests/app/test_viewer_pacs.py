"""The mode "UltraRefiner" in OHIF on a PACS: what is accepted in the browser is a DICOM SEG there, on the frames it was drawn on."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from app_server import eventually, picture, start
from browser import chromium  # noqa: F401 (a fixture)
from orthanc import us_file
from pydicom.uid import generate_uid
from viewer_page import PATIENCE, ViewerPage

from ultrarefiner_monai.dicom.seg_reader import read_seg
from ultrarefiner_monai.masks.runs import mask_of

pytestmark = [pytest.mark.server, pytest.mark.orthanc, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def served(run_orthanc, checkpoint, tmp_path: Path):
    """(a server on an archive, the archive, (T, H, W) file -> what it is added as)."""
    archive = run_orthanc()
    conf = {"pacs.poll_seconds": 600, "pacs.store": "true", "learning.nice": 0}
    server = start(archive.url, checkpoint, tmp_path, work_dir=tmp_path / "work", **conf)
    yield server, archive
    server.stop()
    assert "Traceback" not in server.log


def stored_segs(archive) -> list[pydicom.Dataset]:
    found = [pydicom.dcmread(io.BytesIO(archive.file(i))) for i in archive.instances()]
    return [d for d in found if d.Modality == "SEG"]


def test_an_outline_that_is_accepted_becomes_a_seg(served, chromium, tmp_path: Path) -> None:  # noqa: F811
    server, archive = served
    content = us_file(np.stack([picture(k) for k in (1, 2, 3)]), 1, 0.08)
    archive.add(content)
    (tmp_path / "cine.dcm").write_bytes(content)
    source = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    page = ViewerPage(chromium, server.url)
    page.page.goto(f"{server.url}/ultrarefiner/worklist")
    assert page.page.locator("li").count() == 1 and "PHANTOM 01" in page.page.locator("li").text_content()
    assert page.page.locator("li strong").text_content() == "new"
    drawn = page.page.locator("li img").evaluate(
        "async i => { await i.decode(); return [i.naturalWidth, i.naturalHeight] }"
    )
    assert min(drawn) > 50, "the PACS draws the picture"
    page.page.locator("li a").click()
    page.wait("Proposed")
    page.press("c")
    page.press("p")
    page.drag((65, 48), (90, 60))
    page.wait("Changed")
    page.accept()
    page.page.goto(f"{server.url}/ultrarefiner/worklist?state=final")
    assert page.page.locator("li").count() == 1
    page.close()
    image = str(source.SeriesInstanceUID)
    masks = requests.get(f"{server.url}/ultrarefiner/viewer/label?image={image}", timeout=60).json()["masks"]
    assert list(masks) == ["0"], "the frame that was painted on"
    stored = eventually(lambda: stored_segs(archive), 60)
    mask = read_seg(stored[-1], [tmp_path / "cine.dcm"])
    assert np.array_equal(mask[0], mask_of(masks["0"], mask.shape[1:])) and not mask[1:].any() and mask[0].any()


def test_pictures_of_a_series(served, chromium) -> None:  # noqa: F811
    """Of one size they are the frames of one image, in the order of their numbers; of several sizes each is an image."""
    server, archive = served
    for number, sizes in ((3, [(96, 130)] * 2), (4, [(96, 130), (80, 100)])):
        uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        # The UIDs' order is not that of the numbers.
        sops = sorted(generate_uid() for _ in sizes)[::-1]
        for k, size in enumerate(sizes):
            told = {**uids, "SOPInstanceUID": sops[k], "InstanceNumber": k + 1}
            archive.add(us_file(picture(10 * number + k, *size)[None], number, 0.07, **told))
        page = ViewerPage(chromium, server.url)
        page.open_study(uids["StudyInstanceUID"])
        assert page.image == (uids["SeriesInstanceUID"] if number == 3 else sops[0])
        page.page.mouse.move(*page.at(60, 40))
        page.page.mouse.wheel(0, 100)
        if number == 4:
            page.page.wait_for_function(
                "id => document.querySelector('.ultrarefiner h2').textContent === id", arg=sops[1], timeout=PATIENCE
            )
            page.wait("Proposed")
        else:
            page.page.wait_for_timeout(500)
            assert page.asked(partial(page.press, "o"))["frame"] == 1
        page.press("c")
        page.press("l")
        page.drag((20, 20), (60, 20), (60, 50), (20, 50))
        page.wait("Changed")
        page.accept()
        page.close()
        (seg,) = eventually(lambda n=number: [s for s in stored_segs(archive) if s.PatientID.endswith(str(n))], 60)
        named = {
            str(source.ReferencedSOPInstanceUID)
            for frame in seg.PerFrameFunctionalGroupsSequence
            for source in frame.DerivationImageSequence[0].SourceImageSequence
        }
        # Images of one size: the label has both frames, the proposal of the first and the lasso on the second.
        assert sops[1] in named and named <= set(sops[:2] if number == 3 else sops[1:])
