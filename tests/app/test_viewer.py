"""The mode "UltraRefiner" in OHIF, in a real browser on a real server; and what it asks the server for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from app_server import APP, eventually, picture, save_tiny_system, start
from browser import chromium  # noqa: F401 (a fixture)
from PIL import Image
from viewer_page import PATIENCE, ViewerPage

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.masks.runs import mask_of, runs_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

VIEWER = APP / "viewer"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    studies = folder / "studies"
    studies.mkdir()
    Image.fromarray(picture(0)).save(studies / "plain.png")
    Image.fromarray(picture(1)).save(studies / "second.png")
    volume = np.stack([picture(30 + k, 70, 110).T for k in range(2)], -1)
    nibabel.save(nibabel.Nifti1Image(volume[:, ::-1], np.diag([-0.2, 0.1, 1, 1])), studies / "volume.nii.gz")
    (studies / "cine.dcm").write_bytes(dicom_bytes(np.stack([picture(20 + k) for k in range(3)]), 2, 0.08))
    weights = save_tiny_system(folder / "tiny.safetensors")
    running = start(studies, weights, folder, **{"learning.nice": 0})
    yield running
    running.stop()
    assert "Traceback" not in running.log


def row_of(server, name: str) -> tuple[str, str]:
    """(study, series) of an image by its PatientID."""
    base = f"{server.url}/proxy/dicom/studies"
    (found,) = requests.get(f"{base}?PatientID={name}", timeout=60).json()
    study = found["0020000D"]["Value"][0]
    (series,) = requests.get(f"{base}/{study}/series", timeout=60).json()
    return study, series["0020000E"]["Value"][0]


def ask(server, method: str, path: str, status: int = 200, **options: Any) -> Any:
    answer = requests.request(method, f"{server.url}/ultrarefiner/viewer/{path}", timeout=60, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


def label_of(server, name: str) -> np.ndarray:
    path = next((server.studies / "labels" / "final").glob(f"{name}.*"))
    # Tiny random networks mark nearly all of a picture, which the viewer asks about.
    return read_mask(path, read_image_file(next(server.studies.glob(f"{name}.*"))), confirmed=True)


@pytest.mark.server
@pytest.mark.slow
class TestServer:
    @pytest.mark.parametrize("name", ["plain", "volume"])
    def test_masks_are_in_the_pixels_that_are_shown(self, server, name: str) -> None:
        facts = ask(server, "GET", "image", params=dict(zip(("study", "series"), row_of(server, name))))
        image_file = read_image_file(next(server.studies.glob(f"{name}.*")))
        shape = (facts["height"], facts["width"])
        assert facts["id"] == name and (facts["frames"], *shape) == image_file.shape and not facts["label_state"]
        k = facts["frames"] - 1
        click, box = [40, 30, k], [20.0, 15.0, 60.0, 50.0]
        found = ask(server, "POST", "outline", json={"image": name, "frame": k, "foreground": [click], "box": box})
        predictor = Predictor(load_system(server.checkpoint))
        own = predictor.interact(image_file.frame(k), Clicks(((40.0, 30.0),), (), (20.0, 15.0, 60.0, 50.0)))
        assert np.array_equal(mask_of(found["masks"][str(k)], shape), own.mask)

    @pytest.mark.parametrize("name", ["second", "volume"])
    def test_a_label_comes_back_to_the_same_pixels(self, server, name: str) -> None:
        facts = ask(server, "GET", "image", params=dict(zip(("study", "series"), row_of(server, name))))
        mask = np.zeros((facts["height"], facts["width"]), np.uint8)
        mask[10:30, 25:60] = mask[12, 70] = 1
        sent = {"image": name, "masks": {"0": runs_of(mask)}, "client_id": "a"}
        ask(server, "PUT", "label", json=sent)
        assert np.array_equal(label_of(server, name)[0], mask) and not label_of(server, name)[1:].any()
        back = ask(server, "GET", "label", params={"image": name})["masks"]
        assert list(back) == ["0"] and np.array_equal(mask_of(back["0"], mask.shape), mask)
        facts = ask(server, "GET", "image", params=dict(zip(("study", "series"), row_of(server, name))))
        assert facts["label_state"]

    @pytest.mark.parametrize(
        ("method", "path", "sent", "words"),
        [
            ("POST", "outline", {"frame": 0}, "which image"),
            ("POST", "outline", {"image": "plain", "foreground": [[1, 2]]}, "expected 3 numbers"),
            ("POST", "outline", {"image": "plain", "foreground": [[5000, 2, 0]]}, "outside"),
            ("POST", "outline", {"image": "plain", "box": [1, 2, 3]}, "expected 4 numbers"),
            ("POST", "outline", {"image": "plain", "secret": 1}, "no parameter"),
            ("PUT", "label", {"image": "plain", "masks": {"7": [1]}}, "no frame 7"),
            ("PUT", "label", {"image": "plain", "masks": {"0": [1, 2]}}, "the runs are 3 pixels in sum"),
            ("PUT", "label", {"image": "plain", "masks": {"0": "?"}}, "lengths of runs"),
            ("PUT", "label", {"image": "plain", "masks": {"x": [1]}}, "numbers of frames"),
            ("PUT", "label", {"image": "plain", "masks": {}, "shown": [9]}, "no frame 9"),
            ("PUT", "label", {"image": "plain", "masks": {}, "instances": [["1.2"]]}, "SOPInstanceUID"),
        ],
    )
    def test_bad_requests_say_what_is_wrong(self, server, method: str, path: str, sent: Any, words: str) -> None:
        assert words in ask(server, method, path, 400, json=sent)["detail"]
        assert not list((server.studies / "labels" / "final").glob("plain.*"))

    def test_a_second_user_on_an_image_is_told(self, server) -> None:
        place = dict(zip(("study", "series"), row_of(server, "plain")))
        first, second = ({**place, "client_id": name} for name in ("anna", "ben"))
        assert [ask(server, "GET", "image", params=p)["others"] for p in (first, second, first)] == [False, True, False]

    def test_what_is_not_there(self, server) -> None:
        ask(server, "GET", "image", 404, params={"study": "1.2", "series": "1.3"})
        ask(server, "POST", "outline", 404, json={"image": "nothing"})

    def test_the_worklist_names_each_image_and_its_state(self, server) -> None:
        page = requests.get(f"{server.url}/ultrarefiner/worklist", timeout=60).text
        assert page.count("<li>") == 4 and "ohif/ultrarefiner?StudyInstanceUIDs=" in page and "<script" not in page
        found = requests.get(f"{server.url}/ultrarefiner/worklist?state=final&search=SECOND", timeout=60).text
        assert found.count("<li>") == 1 and "second" in found
        nothing = requests.get(f"{server.url}/ultrarefiner/worklist?search=%3Cscript%3E", timeout=60).text
        assert "No image is like this" in nothing and "<script>" not in nothing


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_radiologist_works_in_the_browser(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("plain")
    shown, mouse = page.shown, page.page.mouse
    image_file = read_image_file(server.studies / "plain.png")
    shape = (image_file.height, image_file.width)
    predictor = Predictor(load_system(server.checkpoint))
    assert np.array_equal(shown().reshape(shape) > 0, predictor.propose(image_file.frame(0)).mask > 0)
    before = shown()
    assert page.click(65, 48)["foreground"] == [[65, 48, 0]]
    clicked = shown()
    own = predictor.interact(image_file.frame(0), Clicks(((65.0, 48.0),)))
    assert np.array_equal(clicked.reshape(shape) > 0, own.mask > 0)
    # A click on a click takes it away; dragged, it is moved.
    ((x, y, _),) = page.asked(lambda: page.drag((65, 48), (80, 48)))["foreground"]
    assert abs(x - 80) <= 1 and y == 48
    assert page.click(x, y)["foreground"] == []
    assert np.array_equal(shown(), before), "without clicks it is the automatic outline"
    for _ in range(2):
        page.press("z")
    assert np.array_equal(shown(), clicked)
    # The eraser and the brush, and back; then back to before the click, and forth again.
    states = [clicked]
    for key, end in (("e", (110, 38)), ("p", (98, 38))):
        page.press(key)
        page.drag((90, 25), end)
        page.page.wait_for_timeout(500)
        states.append(shown())
    erased, painted = states[1:]
    assert (erased > 0).sum() < (painted > 0).sum() < (clicked > 0).sum()
    for key, mask in (("z", erased), ("z", clicked), ("z", before), ("y", clicked), ("y", erased), ("y", painted)):
        page.press(key)
        assert np.array_equal(shown(), mask), key
    mouse.move(0, 0)
    page.accept()
    final = eventually(lambda: list((server.studies / "labels" / "final").glob("plain.*")))
    assert final and np.array_equal(label_of(server, "plain")[0] > 0, painted.reshape(shape) > 0), "to the pixel"
    page.page.reload()
    page.wait("Final label")
    assert np.array_equal(shown() > 0, painted > 0)
    here = page.page.evaluate("location.search")
    page.press("n")
    page.page.wait_for_function("old => location.search !== old", arg=here, timeout=PATIENCE)
    page.wait("Proposed", "Final label")
    page.page.get_by_role("link", name="What it learns").click()
    page.page.wait_for_url("**/ultrarefiner/status")
    page.close()


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cine_goes_on_frame_by_frame(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_study(row_of(server, "PHANTOM-02")[0])
    page.click(65, 48)
    seen = []
    page.page.expose_function("seen", lambda frame: seen.append(frame))
    page.page.evaluate(
        """() => { const v = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
        v.element.addEventListener('CORNERSTONE_STACK_NEW_IMAGE', () => window.seen(v.getCurrentImageIdIndex())) }"""
    )
    page.press("k")
    page.page.wait_for_timeout(1500)
    page.press("k")
    assert {0, 1, 2} <= set(seen), "the loop is played"
    for _ in range(3):
        if page.frame == 0:
            break
        page.page.mouse.move(*page.at(65, 48))
        page.page.mouse.wheel(0, -100)
        page.page.wait_for_timeout(300)
    for frame in (1, 2):
        assert page.asked(lambda: page.press("t"))["frame"] == frame
    page.press("t")
    page.wait("This is the last frame")
    page.accept()
    assert [frame.any() for frame in label_of(server, "cine")] == [True] * 3
    page.close()


def test_the_bundle_is_what_the_sources_build(tmp_path: Path) -> None:
    import os

    if shutil.which("esbuild") is None or shutil.which("tsc") is None:
        said = "the viewer's bundle needs esbuild and tsc (apt-get install esbuild node-typescript)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    subprocess.run([VIEWER / "build.sh", tmp_path / "built.js"], check=True, timeout=120)
    assert (tmp_path / "built.js").read_text() == (VIEWER / "built" / "ultrarefiner.js").read_text()
