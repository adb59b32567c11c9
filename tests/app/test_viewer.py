"""The mode "UltraRefiner" in OHIF, in a real browser on a real server; and what it asks the server for."""

from __future__ import annotations

import base64
import json
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

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

VIEWER = APP / "viewer"
PATIENCE = 60_000  # milliseconds


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


def mask_of(text: str, shape: tuple[int, int]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=shape[0] * shape[1]).reshape(shape)


def packed(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask.astype(bool)).tobytes()).decode()


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
        assert facts["id"] == name and (facts["frames"], *shape) == image_file.shape and not facts["labelled"]
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
        sent = {"image": name, "masks": {"0": packed(mask)}, "client_id": "a"}
        ask(server, "PUT", "label", json=sent)
        assert np.array_equal(label_of(server, name)[0], mask) and not label_of(server, name)[1:].any()
        back = ask(server, "GET", "label", params={"image": name})["masks"]
        assert list(back) == ["0"] and np.array_equal(mask_of(back["0"], mask.shape), mask)
        facts = ask(server, "GET", "image", params=dict(zip(("study", "series"), row_of(server, name))))
        assert facts["labelled"]

    @pytest.mark.parametrize(
        ("method", "path", "sent", "words"),
        [
            ("POST", "outline", {"frame": 0}, "which image"),
            ("POST", "outline", {"image": "plain", "foreground": [[1, 2]]}, "expected 3 numbers"),
            ("POST", "outline", {"image": "plain", "foreground": [[5000, 2, 0]]}, "outside"),
            ("POST", "outline", {"image": "plain", "box": [1, 2, 3]}, "expected 4 numbers"),
            ("POST", "outline", {"image": "plain", "secret": 1}, "no parameter"),
            ("PUT", "label", {"image": "plain", "masks": {"7": "AA=="}}, "no frame '7'"),
            ("PUT", "label", {"image": "plain", "masks": {"0": "AA=="}}, "bytes"),
            ("PUT", "label", {"image": "plain", "masks": {"0": "?"}}, "not base64"),
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
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    answered: list[str] = []
    page.on("response", lambda response: answered.append(response.url))
    page.goto(f"{server.url}/ultrarefiner/worklist?search=plain")
    page.get_by_role("link", name="plain").click()
    status = page.locator(".ultrarefiner [role=status]")

    def wait(*words: str) -> None:
        page.wait_for_function(
            "words => words.includes(document.querySelector('.ultrarefiner [role=status]')?.textContent)",
            arg=list(words), timeout=PATIENCE,
        )  # fmt: skip

    def shown(frame: int = 0) -> np.ndarray:
        """The mask that is on the screen, as the viewer holds it."""
        text = page.evaluate(
            """frame => { const ct = window.cornerstoneTools, c = window.cornerstone;
            const s = ct.segmentation.state.getSegmentations().at(-1);
            const id = s.representationData.Labelmap.imageIds[frame];
            return JSON.stringify(Array.from(c.cache.getImage(id).voxelManager.getScalarData())) }""",
            frame,
        )
        return np.array(json.loads(text), np.uint8)

    wait("Proposed")
    image_file = read_image_file(server.studies / "plain.png")
    shape = (image_file.height, image_file.width)
    predictor = Predictor(load_system(server.checkpoint))
    assert np.array_equal(shown().reshape(shape) > 0, predictor.propose(image_file.frame(0)).mask > 0)
    box = page.locator(".cornerstone-viewport-element").first.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    before = shown()
    with page.expect_response(lambda r: r.url.endswith("/outline") and r.ok, timeout=PATIENCE) as asked:
        page.mouse.click(*middle)
    (click,) = asked.value.request.post_data_json["foreground"]
    assert abs(click[0] - shape[1] / 2) < 3 and abs(click[1] - shape[0] / 2) < 3, "the middle of the picture"
    wait("Proposed")
    clicked = shown()
    own = predictor.interact(image_file.frame(0), Clicks(((float(click[0]), float(click[1])),)))
    assert np.array_equal(clicked.reshape(shape) > 0, own.mask > 0)
    # A click on a click takes it away; dragged, it is moved.
    with page.expect_response(lambda r: r.url.endswith("/outline") and r.ok, timeout=PATIENCE) as asked:
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 60, middle[1], steps=5)
        page.mouse.up()
    (moved,) = asked.value.request.post_data_json["foreground"]
    assert moved[0] > click[0] + 5 and moved[1] == click[1]
    wait("Proposed")
    with page.expect_response(lambda r: r.url.endswith("/outline") and r.ok, timeout=PATIENCE) as asked:
        page.mouse.click(middle[0] + 60, middle[1])
    assert asked.value.request.post_data_json["foreground"] == []
    wait("Proposed")
    assert np.array_equal(shown(), before), "without clicks it is the automatic outline"
    for _ in range(2):
        page.keyboard.press("z")
    assert np.array_equal(shown(), clicked)
    # The eraser and the brush, and back; then back to before the click, and forth again.
    states = [clicked]
    for key in ("e", "p"):
        page.keyboard.press(key)
        page.mouse.move(middle[0] + 100, middle[1] - 100)
        page.mouse.down()
        page.mouse.move(middle[0] + (180 if key == "e" else 130), middle[1] - 60, steps=6)
        page.mouse.up()
        page.wait_for_timeout(500)
        states.append(shown())
    erased, painted = states[1:]
    assert (erased > 0).sum() < (painted > 0).sum() < (clicked > 0).sum()
    for key, mask in (("z", erased), ("z", clicked), ("z", before), ("y", clicked), ("y", erased), ("y", painted)):
        page.keyboard.press(key)
        assert np.array_equal(shown(), mask), key
    page.keyboard.press("a")
    wait("Saved")
    final = eventually(lambda: list((server.studies / "labels" / "final").glob("plain.*")))
    assert final and np.array_equal(label_of(server, "plain")[0] > 0, painted.reshape(shape) > 0), "to the pixel"
    page.reload()
    wait("Final label")
    assert np.array_equal(shown() > 0, painted > 0)
    page.keyboard.press("n")
    page.wait_for_function("old => location.search !== old", arg=page.evaluate("location.search"), timeout=PATIENCE)
    wait("Proposed", "Final label")
    assert status.text_content() and not errors
    assert all(url.startswith((server.url, "blob:", "data:")) for url in answered), "nothing is loaded from elsewhere"
    page.close()


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cine_goes_on_frame_by_frame(server, chromium) -> None:  # noqa: F811
    study, _ = row_of(server, "PHANTOM-02")
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{server.url}/ohif/ultrarefiner?StudyInstanceUIDs={study}")
    words = "document.querySelector('.ultrarefiner [role=status]')?.textContent"
    page.wait_for_function(f"{words} === 'Proposed'", timeout=PATIENCE)
    box = page.locator(".cornerstone-viewport-element").first.bounding_box()
    assert box is not None
    with page.expect_response(lambda r: r.url.endswith("/outline") and r.ok, timeout=PATIENCE):
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(f"{words} === 'Proposed'", timeout=PATIENCE)
    for frame in (1, 2):
        with page.expect_response(lambda r: r.url.endswith("/outline") and r.ok, timeout=PATIENCE) as asked:
            page.keyboard.press("t")
        assert asked.value.request.post_data_json["frame"] == frame
        page.wait_for_function(f"{words} === 'Proposed'", timeout=PATIENCE)
    page.keyboard.press("t")
    page.wait_for_function(f"{words} === 'This is the last frame'", timeout=PATIENCE)
    page.keyboard.press("a")
    page.wait_for_function(f"{words} === 'Saved'", timeout=PATIENCE)
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
