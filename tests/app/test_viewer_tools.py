"""The mode "UltraRefiner" in a real browser: each kind of file, each tool, several images in a series, and who cannot see well."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import requests
from app_server import eventually, picture, save_tiny_system, start
from browser import chromium  # noqa: F401 (a fixture)
from orthanc import us_file
from PIL import Image
from pydicom.uid import generate_uid
from viewer_page import ViewerPage

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(300)]
KINDS = {"nrrd": "wide.nrrd", "nifti": "tall.nii.gz", "dicom": "single.dcm"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    studies = folder / "studies"
    studies.mkdir()
    space = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.1, 0.2, 1.0]),
        "space origin": [5, 6, 7],
    }
    nrrd.write(str(studies / "wide.nrrd"), picture(3, 64, 150).T[..., None], space)
    flipped = picture(4, 140, 60).T[:, ::-1, None]
    nibabel.save(nibabel.Nifti1Image(flipped, np.diag([-0.2, 0.1, 1, 1])), studies / "tall.nii.gz")
    (studies / "single.dcm").write_bytes(dicom_bytes(picture(5)[None], 5, 0.07))
    Image.fromarray(picture(6)).save(studies / "tools.png")
    series, study = generate_uid(), generate_uid()
    for number, shape in ((1, (96, 130)), (2, (80, 100))):
        uids = {"SeriesInstanceUID": series, "StudyInstanceUID": study, "SOPInstanceUID": generate_uid()}
        content = us_file(picture(6 + number, *shape)[None], 6, 0.07, InstanceNumber=number, **uids)
        (studies / f"part{number}.dcm").write_bytes(content)
    running = start(studies, save_tiny_system(folder / "tiny.safetensors"), folder, **{"learning.nice": 0})
    running.two = study
    yield running
    running.stop()
    assert "Traceback" not in running.log


def final_of(server, name: str) -> np.ndarray | None:
    """The final label's first frame; the tiny networks mark nearly all of a picture, which the page confirms."""
    found = list((server.studies / "labels" / "final").glob(f"{name}.*"))
    image = next(server.studies.glob(f"{name}.*"))
    return read_mask(found[0], read_image_file(image), confirmed=True)[0] if found else None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_worked_on_in_its_own_pixels(server, chromium, kind: str) -> None:  # noqa: F811
    path: Path = server.studies / KINDS[kind]
    name = path.name.split(".")[0]
    image_file = read_image_file(path)
    shape = (image_file.height, image_file.width)
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist(name)
    assert page.image == name
    asked = page.click(40, 20)
    assert asked["foreground"] == [[40, 20, 0]] and asked["image"] == name
    own = Predictor(load_system(server.checkpoint)).interact(image_file.frame(0), Clicks(((40.0, 20.0),)))
    assert np.array_equal(page.shown().reshape(shape), own.mask > 0)
    page.press("e")
    page.drag((10, 30), (30, 45))
    page.wait("Changed")
    erased = page.shown().reshape(shape)
    assert 0 < (erased < (own.mask > 0)).sum() and not (erased > (own.mask > 0)).any()
    assert (erased < (own.mask > 0))[36:39, 18:21].any(), "where the eraser went"
    page.accept()
    saved = eventually(lambda: final_of(server, name) is not None) and final_of(server, name)
    assert np.array_equal(saved, erased), "to the pixel"
    page.page.reload()
    page.wait("Final label")
    assert np.array_equal(page.shown().reshape(shape), erased)
    page.close()


def test_scribble_lasso_and_hints(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("tools")
    before = page.shown()
    shape = (96, 130)
    # A scribble is a click where it begins, at once, and some along the line at its end: one step for undo.
    asked = []
    page.page.on("request", lambda r: asked.append(r.post_data_json) if r.url.endswith("/outline") else None)
    page.drag((30, 30), (60, 30), (60, 60))
    page.page.wait_for_function("() => document.querySelectorAll('.ultrarefiner-marks > div').length === 5")
    page.wait("Proposed")
    assert [len(a["foreground"]) for a in asked] == [1, 5] and not any(a["hint"] for a in asked)
    line = np.array(asked[1]["foreground"])[:, :2]
    assert np.abs(line - [[30, 30], [45, 30], [60, 30], [60, 45], [60, 60]]).max() <= 2
    scribbled = page.shown()
    page.press("z")
    assert np.array_equal(page.shown(), before)
    page.press("y")
    assert np.array_equal(page.shown(), scribbled)
    # A lasso adds what it encloses, without the server.
    page.press("c")
    page.press("l")
    page.drag((20, 20), (60, 20), (60, 50), (20, 50))
    page.wait("Changed")
    enclosed = page.shown().reshape(shape)
    assert enclosed[22:48, 22:58].all() and enclosed.sum() <= 32 * 42 and len(asked) == 2
    # Hints: none until they are asked for; what is shown is not recorded, and nothing of the mask changes.
    page.press("f")
    page.page.mouse.move(*page.at(70, 70))
    page.page.wait_for_timeout(300)
    assert len(asked) == 2
    page.press("h")
    hinted = page.asked(lambda: page.page.mouse.move(*page.at(80, 60)), hint=True)
    assert hinted["foreground"][-1] == [80, 60, 0]
    page.page.wait_for_selector("canvas.ultrarefiner-hint:not([hidden])", timeout=60_000)
    assert np.array_equal(page.shown().reshape(shape), enclosed)
    place, picture_at = page.page.locator("canvas.ultrarefiner-hint").bounding_box(), page.at(-0.5, -0.5)
    assert abs(place["x"] - picture_at[0]) < 1 and abs(place["y"] - picture_at[1]) < 1
    page.press("h")
    assert page.page.locator("canvas.ultrarefiner-hint").is_hidden()
    status = requests.get(f"{server.url}/ultrarefiner/worklist?search=tools", timeout=60).text
    assert "proposed" in status
    page.press("c")
    page.close()


def test_a_series_may_hold_several_images(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_study(server.two)
    assert page.image == "part1"
    other = ViewerPage(chromium, server.url)
    other.open_from_worklist("part2")
    assert other.image == "part2", "the worklist's entry is the image, not the study"
    other.close()
    page.click(40, 30)
    page.page.mouse.move(*page.at(50, 40))
    page.page.mouse.wheel(0, 100)
    page.page.wait_for_function("() => document.querySelector('.ultrarefiner h2').textContent === 'part2'")
    page.wait("Proposed")
    assert page.dialogs == ["What you changed is not saved. Go on without it?"]
    assert page.shown().size == 80 * 100
    page.press("c")
    page.press("l")
    page.drag((20, 20), (60, 20), (60, 50), (20, 50))
    page.wait("Changed")
    mask = page.shown().reshape(80, 100)
    page.accept()
    assert np.array_equal(final_of(server, "part2"), mask) and final_of(server, "part1") is None
    page.close()


def test_next_sample_from_the_worklist_is_the_users_own(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.page.goto(f"{server.url}/ultrarefiner/worklist")
    page.page.get_by_role("button", name="Next image").click()
    page.wait("Proposed", "Final label")
    assert "Another user" not in page.page.locator(".ultrarefiner").text_content()
    handed = page.image
    page.press("n")
    page.page.wait_for_function("old => document.querySelector('.ultrarefiner h2')?.textContent !== old", arg=handed)
    page.wait("Proposed", "Final label")
    page.close()


def test_what_is_not_saved_stays_while_the_server_is_slow(server, chromium) -> None:  # noqa: F811
    """A stroke that is made while an answer is awaited can be undone, and an answer never lands on another image."""
    page = ViewerPage(chromium, server.url)
    page.open_study(server.two)
    held: list = []
    page.page.route("**/viewer/outline", lambda route: held.append(route))
    before = page.shown()
    page.page.mouse.click(*page.at(40, 30))
    page.page.wait_for_function("() => document.querySelectorAll('.ultrarefiner-marks > div').length === 1")
    page.press("l")
    page.drag((20, 20), (60, 20), (60, 50), (20, 50))
    page.wait("Changed")
    drawn = page.shown()
    assert not np.array_equal(drawn, before)
    held.pop().continue_()
    page.wait("Proposed")
    page.press("z")
    assert np.array_equal(page.shown(), drawn), "undo brings back what was drawn meanwhile"
    page.press("f")
    page.page.mouse.click(*page.at(70, 60))
    page.page.wait_for_timeout(200)
    page.page.mouse.wheel(0, 100)
    page.page.wait_for_function("() => document.querySelector('.ultrarefiner h2').textContent === 'part2'")
    page.wait("Outlining …", "Final label")
    own = page.shown()
    held.pop(0).continue_()
    page.page.wait_for_timeout(1000)
    assert np.array_equal(page.shown(), own), "an answer about part1 is not drawn on part2"
    for route in held:
        route.continue_()
    page.wait("Proposed", "Final label")
    page.page.unroute("**/viewer/outline")
    page.close()
