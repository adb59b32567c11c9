"""The mode "UltraRefiner" in OHIF on a PACS: what is accepted in the browser is a DICOM SEG there, on the frames it was drawn on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from app_server import eventually, picture, start
from browser import chromium  # noqa: F401 (a fixture)
from orthanc import us_file
from test_viewer import PATIENCE, mask_of

from ultrarefiner_monai.dicom.seg_reader import read_seg

pytestmark = [pytest.mark.server, pytest.mark.orthanc, pytest.mark.slow, pytest.mark.timeout(400)]
STATUS = "document.querySelector('.ultrarefiner [role=status]')?.textContent"


def test_an_outline_that_is_accepted_becomes_a_seg(run_orthanc, checkpoint, chromium, tmp_path: Path) -> None:  # noqa: F811
    archive = run_orthanc()
    content = us_file(np.stack([picture(k) for k in (1, 2, 3)]), 1, 0.08)
    archive.add(content)
    (tmp_path / "cine.dcm").write_bytes(content)
    source = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    conf = {"pacs.poll_seconds": 600, "pacs.store": "true", "learning.nice": 0}
    server = start(archive.url, checkpoint, tmp_path, work_dir=tmp_path / "work", **conf)
    try:
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(f"{server.url}/ohif/ultrarefiner?StudyInstanceUIDs={source.StudyInstanceUID}")
        page.wait_for_function(f"{STATUS} === 'Proposed'", timeout=PATIENCE)
        page.keyboard.press("c")
        page.keyboard.press("p")
        box = page.locator(".cornerstone-viewport-element").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 80, y + 30, steps=5)
        page.mouse.up()
        page.wait_for_function(f"{STATUS} === 'Changed'", timeout=PATIENCE)
        page.keyboard.press("a")
        page.wait_for_function(f"{STATUS} === 'Saved'", timeout=PATIENCE)
        page.close()
        image = str(source.SeriesInstanceUID)
        masks = requests.get(f"{server.url}/ultrarefiner/viewer/label?image={image}", timeout=60).json()["masks"]
        assert list(masks) == ["0"], "the frame that was painted on"

        def segs() -> list[pydicom.Dataset]:
            found = [pydicom.dcmread(io.BytesIO(archive.file(i))) for i in archive.instances()]
            return [d for d in found if d.Modality == "SEG"]

        stored = eventually(segs, 60)
        mask = read_seg(stored[-1], [tmp_path / "cine.dcm"])
        assert np.array_equal(mask[0], mask_of(masks["0"], mask.shape[1:])) and not mask[1:].any() and mask[0].any()
    finally:
        server.stop()
    assert "Traceback" not in server.log
