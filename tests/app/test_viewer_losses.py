"""Nothing that a user drew is lost, lands on another picture or replaces somebody else's label unknowingly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import requests
from app_server import eventually, picture, save_tiny_system, start
from browser import chromium  # noqa: F401 (a fixture)
from orthanc import us_file
from PIL import Image
from pydicom.uid import generate_uid
from test_viewer import ask
from viewer_page import ViewerPage

from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.masks.runs import mask_of, runs_of

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(400)]
SHAPE = (96, 130)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    studies = folder / "studies"
    studies.mkdir()
    for k, name in enumerate(("brush", "quick", "other", "away", "slow", "kept", "last")):
        Image.fromarray(picture(k)).save(studies / f"{name}.png")
    (studies / "cine.dcm").write_bytes(dicom_bytes(np.stack([picture(20 + k) for k in range(3)]), 2, 0.08))
    running = start(studies, save_tiny_system(folder / "tiny.safetensors"), folder, **{"learning.nice": 0})
    yield running
    running.stop()
    assert "Traceback" not in running.log


def drawn(top: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[top : top + 20, 30:60] = 1
    return mask


def label_of(server, image: str) -> dict[int, np.ndarray]:
    masks = ask(server, "GET", "label", params={"image": image})["masks"] or {}
    return {int(k): mask_of(runs, SHAPE) for k, runs in masks.items()}


def put(server, image: str, frames: dict[int, np.ndarray], status: int = 200, **more: Any) -> Any:
    masks = {str(k): runs_of(mask) for k, mask in frames.items()}
    return ask(server, "PUT", "label", status, json={"image": image, "masks": masks, "client_id": "api", **more})


class TestServer:
    def test_another_label_is_not_replaced_unknowingly(self, server) -> None:
        first = put(server, "last", {0: drawn(10)}, label_state="")
        told = put(server, "last", {0: drawn(50)}, 409, label_state="")
        assert "saved a label of this image" in told["detail"] and told["label_state"] == first["label_state"]
        assert np.array_equal(label_of(server, "last")[0], drawn(10))
        second = put(server, "last", {0: drawn(50)}, label_state=told["label_state"])
        assert second["label_state"] != first["label_state"]
        assert np.array_equal(label_of(server, "last")[0], drawn(50))

    def test_frames_that_a_viewer_does_not_show_keep_what_they_have(self, server) -> None:
        put(server, "cine", {0: drawn(10), 2: drawn(30)})
        put(server, "cine", {1: drawn(50)}, shown=[1, 2])
        found = label_of(server, "cine")
        assert list(found) == [0, 1] and np.array_equal(found[0], drawn(10)) and np.array_equal(found[1], drawn(50))

    def test_a_label_that_cannot_be_read_may_be_replaced(self, server) -> None:
        put(server, "last", {0: drawn(10)})
        (file,) = (server.studies / "labels" / "final").glob("last.*")
        file.write_bytes(b"broken")
        put(server, "last", {0: drawn(50)})
        assert np.array_equal(label_of(server, "last")[0], drawn(50))

    def test_a_picture_that_is_another_one_now_is_no_place_for_a_label(self, server) -> None:
        told = put(server, "away", {0: drawn(10)}, 409, instances=[["1.2.3", 1]])
        assert "is gone" in told["detail"] and not label_of(server, "away")
        told = put(server, "away", {0: drawn(10)}, 400, instances=[["1.2.3", 10**12]])
        assert "more than 100000 frames" in told["detail"]
        told = ask(server, "POST", "outline", 409, json={"image": "away", "instances": [["1.2.3", 1]]})
        assert "not as it was" in told["detail"]

    def test_the_next_image_is_another_one(self, server) -> None:
        for image in ("brush", "quick", "other"):
            for _ in range(2):
                assert ask(server, "POST", "next", json={"image": image, "client_id": "x"})["id"] != image

    def test_a_size_is_measured(self, server) -> None:
        found = ask(server, "POST", "measure", json={"image": "cine", "frame": 1, "runs": runs_of(drawn(10))})
        assert found["unit"] == "mm" and found["area"] == pytest.approx(20 * 30 * 0.08**2, abs=1e-3)
        told = ask(server, "POST", "measure", 400, json={"image": "cine", "frame": 3, "runs": [1]})
        assert "no frame 3" in told["detail"]


def test_a_brush_that_is_chosen_right_after_a_click_paints_nothing(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("brush")
    for key in ("e", "p", "e", "p"):
        page.press("f")
        page.click(65, 48)
        clicked = page.shown()
        page.press(key)
        page.page.wait_for_timeout(700)
        assert np.array_equal(page.shown(), clicked), key
    page.close()


def test_figures_are_those_of_what_is_drawn(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("brush")
    figures = page.page.locator(".ultrarefiner dd")
    page.press("c")
    page.wait("Cleared")
    assert figures.all_text_contents()[:2] == ["nothing marked", "–"]
    page.press("l")
    page.drag((20, 20), (60, 20), (60, 50), (20, 50))
    page.wait("Changed")
    eventually(lambda: "px" in figures.first.text_content())
    size = figures.first.text_content()
    page.press("z")
    eventually(lambda: figures.first.text_content() == "nothing marked")
    page.press("y")
    assert eventually(lambda: figures.first.text_content() == size)
    page.close()


def test_accept_and_next_at_once(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("quick")
    held: list = []
    page.page.route("**/viewer/outline", lambda route: held.append(route))
    page.page.mouse.click(*page.at(65, 48))
    page.press("a")
    page.press("n")
    page.page.wait_for_timeout(300)
    assert page.image == "quick" and not label_of(server, "quick")
    held.pop().continue_()
    page.page.unroute("**/viewer/outline")
    page.page.wait_for_function(
        "() => !['', 'quick'].includes(document.querySelector('.ultrarefiner h2')?.textContent ?? '')", timeout=60_000
    )
    assert label_of(server, "quick")[0].any() and not any("not saved" in text for text in page.dialogs)
    page.close()


def test_a_refused_label_is_not_left_without_a_question(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("away")
    page.page.route("**/viewer/label", lambda route: route.fulfill(status=507, json={"detail": "the disk is full"}))
    page.click(65, 48)
    page.press("a")
    with page.page.expect_navigation():  # the question is answered with yes
        page.press("n")
    assert any("What you changed is not saved" in text for text in page.dialogs)
    page.page.close()


def test_a_login_page_in_place_of_an_answer(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("away")
    page.click(65, 48)
    mask = page.shown()
    login = "<html>log in</html>"
    page.page.route("**/viewer/label", lambda route: route.fulfill(status=200, body=login, content_type="text/html"))
    page.press("a")
    page.page.wait_for_function(
        "() => document.querySelector('.ultrarefiner [role=status]').textContent.includes('Perhaps you are logged out')",
        timeout=60_000,
    )
    assert np.array_equal(page.shown(), mask)
    page.page.unroute("**/viewer/label")
    page.accept()
    assert np.array_equal(label_of(server, "away")[0].ravel(), mask)
    page.close()


def test_somebody_else_saves_meanwhile(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("other")
    put(server, "other", {0: drawn(10)})
    page.click(65, 48)
    page.accept()  # every question is answered with yes
    assert any("saved a label of this image" in text and "in its place" in text for text in page.dialogs)
    assert np.array_equal(label_of(server, "other")[0].ravel(), page.shown())
    page.close()


def test_what_is_said_of_an_image_stays(server, chromium) -> None:  # noqa: F811
    study = requests.get(f"{server.url}/proxy/dicom/studies?PatientID=kept", timeout=60).json()[0]["0020000D"]["Value"]
    place = {"study": study[0], "series": ""}
    found = requests.get(f"{server.url}/proxy/dicom/studies/{study[0]}/series", timeout=60).json()
    ask(server, "GET", "image", params={**place, "series": found[0]["0020000E"]["Value"][0], "client_id": "ben"})
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("kept")
    page.click(65, 48)
    assert "Another user works on this image" in page.page.locator(".ultrarefiner").text_content()
    page.close()


def test_nothing_can_be_drawn_before_the_label_is_there(server, chromium) -> None:  # noqa: F811
    put(server, "slow", {0: drawn(10)})
    page = ViewerPage(chromium, server.url)
    page.page.route("**/viewer/label?*", lambda route: route.fulfill(status=503, json={"detail": "in a while"}))
    page.page.goto(f"{server.url}/ultrarefiner/worklist?search=slow")
    page.page.locator("li a").click()
    page.wait("Not done: in a while. Key o: try again")
    page.press("a")
    page.page.unroute("**/viewer/label?*")
    page.press("o")
    page.wait("Final label")
    assert np.array_equal(page.shown(), drawn(10).ravel()) and np.array_equal(label_of(server, "slow")[0], drawn(10))
    page.close()


def test_what_could_not_be_saved_when_it_was_left_is_shown_again(server, chromium) -> None:  # noqa: F811
    page = ViewerPage(chromium, server.url)
    page.open_from_worklist("kept")
    kept = {"0": runs_of(drawn(40))}
    page.page.evaluate("kept => sessionStorage.setItem('ultrarefiner-kept:kept', JSON.stringify(kept))", kept)
    page.page.reload()
    page.wait("Changed")
    assert np.array_equal(page.shown(), drawn(40).ravel()) and "was not saved" in page.dialogs[-1]
    page.accept()
    assert np.array_equal(label_of(server, "kept")[0], drawn(40))
    page.close()


@pytest.fixture
def archive(run_orthanc, checkpoint, tmp_path):
    """(a server on an archive, UIDs of a series in it, its objects' UIDs, adds the object of a number with its frames)."""
    orthanc = run_orthanc()
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    sops = [generate_uid() for _ in range(4)]

    def add(k: int, frames: int = 1) -> None:
        pixels = np.stack([picture(10 * k + j) for j in range(frames)])
        orthanc.add(us_file(pixels, 4, 0.07, **uids, SOPInstanceUID=sops[k], InstanceNumber=k + 1))

    running = start(orthanc.url, checkpoint, tmp_path, work_dir=tmp_path / "work", **{"pacs.poll_seconds": 600})
    yield running, uids, sops, add
    running.stop()
    assert "Traceback" not in running.log


def facts_of(server, uids: dict[str, str]) -> dict[str, Any]:
    requests.get(f"{server.url}/ultrarefiner/worklist", timeout=60)  # which asks what is new
    return ask(server, "GET", "image", params=dict(zip(("study", "series"), uids.values())))


def test_a_series_that_grows_while_somebody_draws(archive) -> None:
    server, uids, sops, add = archive
    add(1)
    add(2)
    facts = facts_of(server, uids)
    assert facts["instances"] == [[sops[1], 1], [sops[2], 1]]
    add(0)
    assert facts_of(server, uids)["instances"][0] == [sops[0], 1]
    put(server, facts["id"], {0: drawn(10)}, instances=facts["instances"], label_state="")
    assert list(label_of(server, facts["id"])) == [1], "the picture that was drawn on is the second one now"
    told = ask(server, "POST", "outline", 409, json={"image": facts["id"], "instances": facts["instances"]})
    assert "open it again" in told["detail"]


def test_a_series_that_the_viewer_shows_in_parts(archive, chromium) -> None:  # noqa: F811
    """A still, a clip, a still, a clip of one size: OHIF shows the clips apart."""
    server, uids, _, add = archive
    for k, frames in enumerate((1, 3, 1, 2)):
        add(k, frames)
    image = facts_of(server, uids)["id"]
    put(server, image, {k: drawn(10 + k) for k in range(7)})
    page = ViewerPage(chromium, server.url)
    page.open_study(uids["StudyInstanceUID"])
    assert "more frames of this image are shown" in page.page.locator(".ultrarefiner").text_content()
    shown = page.page.evaluate(
        """() => { const v = window.cornerstone.getRenderingEngines()[0].getViewports()[0];
        return v.getImageIds().map(i => window.cornerstone.metaData.get('instance', i).InstanceNumber - 1) }"""
    )
    first = [0, 1, 4, 5]  # where each object's frames begin
    frames = [first[k] + shown[:at].count(k) for at, k in enumerate(shown)]
    assert 0 < len(frames) < 7
    for at, frame in enumerate(frames):
        assert np.array_equal(page.shown(at), drawn(10 + frame).ravel()), "each picture has its own label"
    page.press("c")
    page.press("l")
    page.drag((20, 20), (60, 20), (60, 50), (20, 50))
    page.wait("Changed")
    page.accept()
    found = label_of(server, image)
    changed = [k for k in range(7) if not np.array_equal(found[k], drawn(10 + k))]
    assert len(changed) == 1 and changed[0] in frames, "the frame that was drawn on, and no other"
    page.close()
