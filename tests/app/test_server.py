"""The running server through MONAI Label's own client: what a radiologist's viewer does, on every file type."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import requests
from app_server import eventually
from PIL import Image

from ultrarefiner_monai.core.types import NOTICE, Clicks
from ultrarefiner_monai.dicom.seg_reader import read_seg
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import lost_position, write_mask
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal

pytestmark = pytest.mark.server

FILES = [
    "grey.png",
    "colour.png",
    "palette.png",
    "UPPER.PNG",
    "photo.jpg",
    "photo2.JPEG",
    "page.tif",
    "page2.tiff",
    "bitmap.bmp",
    "name with space é.png",
    "flat.nii.gz",
    "volume.nii",
    "volume2.nrrd",
    "frame.dcm",
    "cine.dcm",
    "rgb.dcm",
    "ybr.dcm",
    "ybr422.dcm",
    "jpeg2000.dcm",
]
UNREADABLE = ("broken.png", "broken.dcm", "nothing.jpg")


def id_of(client, name: str) -> str:
    objects = client.datastore()["objects"]
    (found,) = [i for i, o in objects.items() if i + o["image"]["ext"] == name]
    return found


@pytest.fixture(scope="session")
def predictor(checkpoint):
    return Predictor(load_system(checkpoint))


def journal_of(server) -> Journal:
    return Journal(server.studies / ".ultrarefiner" / "journal.sqlite")


# --- info and front page ----------------------------------------------------------------------------------------------


def test_info_offers_the_three_models_ultrarefiner_first(client):
    info = client.info()
    kinds = {name: m["type"] for name, m in info["models"].items()}
    assert kinds == {"ultrarefiner": "segmentation", "transunet": "segmentation", "sam_refiner": "deepgrow"}
    assert [n for n, kind in kinds.items() if kind == "segmentation"][0] == "ultrarefiner"
    assert info["labels"] == {"lesion": 1} and NOTICE in info["description"]
    for model in info["models"].values():
        assert model["labels"] == {"lesion": 1} and model["dimension"] == 3 and NOTICE in model["description"]
        assert model["config"] == {"frame": -1} and model["version"]
    assert info["serving"]["networks"] == (
        "compact CNN and ViT of TransUNet's design, 64 px; SAM's prompt encoder and mask decoder over a small ViT, 64 px"
    )
    assert {"name", "version", "trainers", "strategies", "scoring", "train_stats", "datastore"} <= info.keys()


def test_front_page_needs_no_other_host(server):
    page = requests.get(f"{server.url}/").text
    assert NOTICE in page and "ultrarefiner" in page and server.url in page
    assert "src=" not in page and "http://" not in page.replace(server.url, "") and "https://" not in page


# --- automatic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_file_type_comes_back_on_its_own_grid(client, server, predictor, name):
    image_id, image_file = id_of(client, name), read_image_file(server.studies / name)
    expected = np.stack([predictor.propose(image_file.frame(k)).mask for k in range(image_file.n_frames)])
    extensions = [".nrrd", ".nii.gz"] + ([] if image_file.is_volume else [".png"])
    for extension in extensions:
        path, reply = client.infer("ultrarefiner", image_id, {"result_extension": extension, "result_dtype": "uint8"})
        assert path.endswith(extension)
        np.testing.assert_array_equal(read_mask(path, image_file), expected)
        if extension == ".nrrd":
            values, header = nrrd.read(path)
            assert tuple(header["sizes"]) == image_file.geometry.shape and values.dtype == np.uint8
        elif extension == ".nii.gz":
            values = np.asarray(nibabel.Nifti1Image.load(path).dataobj)
            np.testing.assert_allclose(nibabel.Nifti1Image.load(path).affine, image_file.geometry.affine, atol=1e-4)
        else:
            values = np.asarray(Image.open(path))
            assert values.shape == (image_file.height, image_file.width)
            assert [w for w in reply["warnings"] if w.startswith("a .png")] == list(
                filter(None, [lost_position(extension, image_file)])
            )
        assert set(np.unique(values)) <= {0, 1}
    assert reply["label_names"] == {"lesion": 1} and reply["refiner"] == "trained" and reply["notice"] == NOTICE
    assert reply["version"] == client.info()["models"]["ultrarefiner"]["version"]
    assert reply["iou_pred"] is None or 0 <= reply["iou_pred"] <= 1  # nothing found: nothing to predict
    assert 0 <= reply["uncertainty"] <= 1
    assert reply["unit"] == ("mm" if image_file.spacing_mm else "px") and reply["long_axis"] >= reply["short_axis"] >= 0
    assert reply["unit_reason"].endswith("sizes are given in pixels") == (reply["unit"] == "px")
    assert reply["n_frames"] == image_file.n_frames and "safety_rule" in reply and reply["timings"]["total"] > 0


def test_nifti_keeps_its_affine(client, server):
    for name in ("flat.nii.gz", "volume.nii"):
        path, _ = client.infer("ultrarefiner", id_of(client, name), {"result_extension": ".nii.gz"})
        image, mask = nibabel.Nifti1Image.load(server.studies / name), nibabel.Nifti1Image.load(path)
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)


def test_spacing_of_a_dicom_comes_from_its_ultrasound_region(client, server):
    _, reply = client.infer("ultrarefiner", id_of(client, "frame.dcm"), {})
    assert reply["spacing_mm"] == [0.08, 0.08] and (reply["unit"], reply["area_unit"]) == ("mm", "mm2")


def test_transunet_is_the_coarse_mask(client, server, predictor):
    path, reply = client.infer("transunet", id_of(client, "grey.png"), {"result_extension": ".nrrd"})
    image_file = read_image_file(server.studies / "grey.png")
    np.testing.assert_array_equal(read_mask(path, image_file)[0], predictor.coarse(image_file.frame()).mask)
    assert reply["model"] == "transunet" and reply["refiner"] == "off"


def test_one_frame_of_a_cine(client, server, predictor):
    image_file = read_image_file(server.studies / "cine.dcm")
    whole, _ = client.infer("ultrarefiner", "cine", {"result_extension": ".nrrd"})
    path, reply = client.infer("ultrarefiner", "cine", {"result_extension": ".nrrd", "frame": 2})
    mask = read_mask(path, image_file)
    np.testing.assert_array_equal(mask[2], read_mask(whole, image_file)[2])
    assert not mask[[0, 1, 3]].any() and reply["frame"] == 2 and [f["frame"] for f in reply["frames"]] == [2]
    png, _ = client.infer("ultrarefiner", "cine", {"result_extension": ".png", "frame": 2})
    np.testing.assert_array_equal(np.asarray(Image.open(png)), mask[2])
    answer = requests.post(f"{server.url}/infer/ultrarefiner?image=cine&frame=2&output=json", data={"params": "{}"})
    assert answer.json()["frame"] == 2


def test_outputs_image_and_json(server):
    url = f"{server.url}/infer/ultrarefiner?image=grey&output="
    answer = requests.post(url + "image", data={"params": '{"result_extension": ".png"}'})
    assert answer.headers["content-type"] == "image/png" and answer.content.startswith(b"\x89PNG")
    assert requests.post(url + "json", data={"params": "{}"}).json()["label_names"] == {"lesion": 1}


def test_a_dicom_seg_holds_the_mask_that_other_formats_hold(client, server):
    image_file, clicks = read_image_file(server.studies / "cine.dcm"), {"foreground": [[70, 30, 1], [12, 80, 3]]}
    path, _ = client.infer("sam_refiner", "cine", {"result_extension": ".nrrd", **clicks})
    url = f"{server.url}/infer/sam_refiner?image=cine&output=dicom_seg"
    answer = requests.post(url, data={"params": json.dumps(clicks)})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/dicom"
    mask = read_seg(pydicom.dcmread(io.BytesIO(answer.content)), [image_file.path])
    np.testing.assert_array_equal(mask, read_mask(path, image_file, confirmed=True))  # of random weights
    assert mask[1, 30, 70] == mask[3, 80, 12] == 1


# --- interactive ------------------------------------------------------------------------------------------------------


def refine(client, image_id: str, **prompts):
    """As 3D Slicer sends it: points, roi, and every option of the task along with them."""
    request = {"label": "lesion", "frame": -1, "result_extension": ".nrrd", "result_dtype": "uint8", **prompts}
    return client.infer("sam_refiner", image_id, request)


def test_clicks_are_honoured_in_any_order_and_undone_exactly(client, server, predictor):
    image_file = read_image_file(server.studies / "grey.png")
    foreground, background = [[100, 20, 0], [31, 60, 0], [12, 80]], [[64, 40, 0], [90, 90, 0]]
    path, reply = refine(client, "grey", foreground=foreground, background=background)
    mask = read_mask(path, image_file)
    assert all(mask[0, p[1], p[0]] == 1 for p in foreground) and all(mask[0, p[1], p[0]] == 0 for p in background)
    assert reply["model"] == "sam_refiner" and reply["refiner"] == "trained"
    again, _ = refine(client, "grey", foreground=foreground[::-1], background=background[::-1])
    np.testing.assert_array_equal(read_mask(again, image_file), mask)
    clicks = Clicks(tuple((p[0], p[1]) for p in foreground), tuple((p[0], p[1]) for p in background))
    np.testing.assert_array_equal(mask[0], predictor.interact(image_file.frame(), clicks).mask)
    refine(client, "grey", foreground=[*foreground, [5, 5, 0]], background=background)
    undone, _ = refine(client, "grey", foreground=foreground, background=background)
    np.testing.assert_array_equal(read_mask(undone, image_file), mask)


def test_no_prompt_is_the_automatic_result(client, server):
    image_file = read_image_file(server.studies / "photo.jpg")
    automatic, _ = client.infer("ultrarefiner", "photo", {"result_extension": ".nrrd"})
    path, _ = refine(client, "photo", foreground=[], background=[], roi=[])
    np.testing.assert_array_equal(read_mask(path, image_file), read_mask(automatic, image_file))


def test_a_box_with_swapped_ends_is_the_same_box(client, server, predictor):
    image_file = read_image_file(server.studies / "page.tif")
    one, _ = refine(client, "page", roi=[90, 20, 70, 30, 0, 0])
    other, _ = refine(client, "page", roi=[20, 90, 30, 70, -1, 1])
    mask = read_mask(one, image_file)
    np.testing.assert_array_equal(mask, read_mask(other, image_file))
    np.testing.assert_array_equal(
        mask[0], predictor.interact(image_file.frame(), Clicks(box_xyxy=(20, 30, 90, 70))).mask
    )


@pytest.mark.parametrize("name", ["cine.dcm", "volume.nii", "volume2.nrrd"])
def test_clicks_change_their_frame_of_a_volume_and_no_other(client, server, predictor, name):
    image_id, image_file = id_of(client, name), read_image_file(server.studies / name)
    automatic, _ = client.infer("ultrarefiner", image_id, {"result_extension": ".nrrd"})
    path, reply = refine(client, image_id, foreground=[[70, 30, 1]], background=[[10, 10, 1]])
    before, after = read_mask(automatic, image_file), read_mask(path, image_file)
    np.testing.assert_array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))
    np.testing.assert_array_equal(
        after[1], predictor.interact(image_file.frame(1), Clicks(((70, 30),), ((10, 10),))).mask
    )
    assert after[1, 30, 70] == 1 and after[1, 10, 10] == 0 and reply["frame"] == 1


def test_a_click_just_outside_is_moved_onto_the_border(client, server):
    image_file = read_image_file(server.studies / "grey.png")
    outside, _ = refine(client, "grey", foreground=[[image_file.width, -0.6, 0]])
    border, _ = refine(client, "grey", foreground=[[image_file.width - 1, 0, 0]])
    np.testing.assert_array_equal(read_mask(outside, image_file), read_mask(border, image_file))
    assert read_mask(border, image_file)[0, 0, -1] == 1


# --- several clients --------------------------------------------------------------------------------------------------


def test_info_and_saving_are_answered_while_a_long_cine_computes(client, server):
    done = threading.Event()

    def compute():
        try:
            return client.infer("ultrarefiner", "long", {"result_extension": ".nrrd"})
        finally:
            done.set()

    answered = 0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(compute)
        while not done.is_set() and answered < 20:
            requests.get(f"{server.url}/info/", timeout=30).raise_for_status()
            requests.post(f"{server.url}/activelearning/first", json={}, timeout=30).raise_for_status()
            answered += not done.is_set()
        assert future.result()[1]["n_frames"] == 60
    assert answered >= 2, "the server answered nobody else while it computed"


def test_many_clients_get_what_one_gets(client, server):
    image_file = read_image_file(server.studies / "bitmap.bmp")
    alone, _ = refine(client, "bitmap", foreground=[[40, 40, 0]])
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: refine(client, "bitmap", foreground=[[40, 40, 0]]), range(12)))
    expected = read_mask(alone, image_file)
    assert all(np.array_equal(read_mask(path, image_file), expected) for path, _ in replies)


# --- next sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "first"])
def test_next_sample_offers_every_readable_image_before_one_comes_back(client, server, strategy):
    readable = {i for i in client.datastore()["objects"] if not i.startswith(("broken", "nothing"))}
    offered = [client.next_sample(strategy, {}) for _ in range(len(readable) // 3)]
    names = [o["id"] for o in offered]
    assert len(set(names)) == len(names) and set(names) <= readable
    assert all(Path(o["path"]).is_file() and o["name"] == Path(o["path"]).name for o in offered)


def test_unreadable_images_are_never_offered(client, server):
    objects = client.datastore()["objects"]
    names = {i + o["image"]["ext"] for i, o in objects.items()}
    assert set(UNREADABLE) <= names
    offered = {Path(client.next_sample("first", {})["path"]).resolve().name for _ in range(2 * len(names))}
    assert not offered & set(UNREADABLE)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_saved_label_comes_back_and_is_journalled_with_its_proposal(client, server, tmp_path):
    image_file = read_image_file(server.studies / "UPPER.PNG")
    proposed, _ = client.infer("ultrarefiner", "UPPER", {"result_extension": ".nii.gz"})
    mask = read_mask(proposed, image_file)
    mask[0, 10:30, 10:40] = 1
    image = nibabel.Nifti1Image.load(proposed)
    label = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image_file.geometry.to_grid(mask), image.affine), label)
    info = {"label_info": [{"name": "lesion", "idx": 1}], "model": "ultrarefiner"}
    assert client.save_label("UPPER", str(label), params=info) == {"image": "UPPER", "label": "UPPER"}
    assert (server.studies / "labels" / "final" / "UPPER.nii.gz").read_bytes() == label.read_bytes()
    np.testing.assert_array_equal(read_mask(client.download_label("UPPER", "final"), image_file), mask)
    assert client.info()["datastore"]["completed"] >= 1
    assert client.next_sample("first", {})["id"] != "UPPER"
    journal = journal_of(server)
    correction = eventually(lambda: journal.corrections("UPPER"))[-1]
    (proposal,) = [p for p in journal.proposals("UPPER") if p.id == correction.proposal_id]
    np.testing.assert_array_equal(correction.mask, mask)
    np.testing.assert_array_equal(proposal.mask, read_mask(proposed, image_file))
    assert (proposal.client, correction.client, proposal.model) == ("test-client", "test-client", "ultrarefiner")
    assert proposal.version == client.info()["models"]["ultrarefiner"]["version"] and proposal.cache_keys

    mask[0, 50:60, 50:60] = 1
    nibabel.save(nibabel.Nifti1Image(image_file.geometry.to_grid(mask), image.affine), label)
    before = (server.studies / "labels" / "final" / "UPPER.nii.gz").read_bytes()
    client.save_label("UPPER", str(label), params=info)
    kept = list((server.studies / ".ultrarefiner" / "versions" / "final" / "UPPER").iterdir())
    assert [k.read_bytes() for k in kept] == [before]


def test_prompts_are_journalled(client, server):
    refine(client, "page2", foreground=[[30, 40, 0]], background=[[3, 4, 0]], roi=[10, 60, 20, 70, 0, 0])
    # The journal is written after the reply, and other tests have asked for this image without prompts.
    stored = eventually(lambda: [p for p in journal_of(server).proposals("page2") if p.prompts])[-1]
    assert stored.prompts == {
        "0": {"foreground_xy": [[30, 40]], "background_xy": [[3, 4]], "box_xyxy": [10, 20, 60, 70]}
    }


def test_two_files_of_one_stem_are_two_images(client, server, tmp_path):
    ids = {id_of(client, "same.png"), id_of(client, "same.jpg")}
    assert len(ids) == 2
    image_id = id_of(client, "same.jpg")
    path, _ = client.infer("ultrarefiner", image_id, {"result_extension": ".nrrd"})
    client.save_label(image_id, path)
    objects = client.datastore()["objects"]
    assert "final" in objects[image_id]["labels"] and not objects[id_of(client, "same.png")]["labels"]


def put_label(server, image: str, path: Path, tag: str = "draft", **params) -> requests.Response:
    files = {"label": (path.name, path.read_bytes())}
    url = f"{server.url}/datastore/label?image={image}&tag={tag}"
    return requests.put(url, files=files, data={"params": json.dumps(params)})


def test_a_label_of_another_size_is_refused(client, server, tmp_path):
    label = tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((7, 5, 1), np.uint8), np.eye(4)), label)
    for tag in ("draft", "final"):
        answer = put_label(server, "photo2", label, tag)
        assert answer.status_code == 400 and "7 x 5" in answer.json()["detail"]
    assert client.datastore()["objects"]["photo2"]["labels"] == {}
    assert not list((server.studies / ".ultrarefiner" / "versions").rglob("photo2"))


def test_a_label_of_an_image_that_cannot_be_read_is_refused(client, server, tmp_path):
    label = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.eye(130, 96, dtype=np.uint8)[..., None], np.eye(4)), label)
    for image in UNREADABLE:
        image_id = id_of(client, image)
        answer = put_label(server, image_id, label)
        assert answer.status_code == 400 and answer.json()["detail"], answer.text
        assert client.datastore()["objects"][image_id]["labels"] == {}


def test_what_is_odd_about_an_image_is_said_to_who_saves_its_label(client, server, tmp_path):
    image_file = read_image_file(server.studies / "rgb.dcm")
    write_mask(tmp_path / "label.nrrd", np.zeros(image_file.shape, np.uint8), image_file)
    answer = put_label(server, id_of(client, "rgb.dcm"), tmp_path / "label.nrrd")
    assert answer.status_code == 200 and answer.json()["warnings"] == image_file.warnings and image_file.warnings


def test_a_label_of_nearly_the_whole_picture_says_that_it_was_meant(client, server, tmp_path):
    image_file = read_image_file(server.studies / "grey.png")
    write_mask(tmp_path / "label.nrrd", np.ones(image_file.shape, np.uint8), image_file)
    assert put_label(server, "grey", tmp_path / "label.nrrd", confirm="yes").status_code == 400
    answer = put_label(server, "grey", tmp_path / "label.nrrd", confirm=True, confirmed=False)
    assert answer.status_code == 200, answer.text
    info = client.datastore()["objects"]["grey"]["labels"]["draft"]["info"]
    assert info["confirmed"] is True and "confirm" not in info


# --- sessions, uploads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_session_takes_every_file_type(client, server, name):
    image_file = read_image_file(server.studies / name)
    session = client.create_session(str(server.studies / name))["session_id"]
    assert client.get_session(session)["name"] == session
    path, reply = client.infer("ultrarefiner", "", {"result_extension": ".nrrd"}, session_id=session)
    direct, _ = client.infer("ultrarefiner", id_of(client, name), {"result_extension": ".nrrd"})
    np.testing.assert_array_equal(read_mask(path, image_file), read_mask(direct, image_file))
    client.remove_session(session)
    answer = requests.post(f"{server.url}/infer/ultrarefiner?session_id={session}", data={"params": "{}"})
    assert answer.status_code == 404 and session in answer.json()["detail"]


def test_an_uploaded_image_joins_the_studies_once(client, server, tmp_path):
    source = tmp_path / "new one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)).save(source)
    assert client.upload_image(str(source), "uploaded")["image"] == "uploaded"
    assert (server.studies / "uploaded.png").read_bytes() == source.read_bytes()
    answer = requests.put(
        f"{server.url}/datastore/?image=uploaded", files={"file": ("x.png", source.read_bytes())}, data={"params": "{}"}
    )
    assert answer.status_code == 400 and "already" in answer.json()["detail"]


def test_an_image_sent_along_is_outlined_and_not_kept(client, server, predictor):
    image_file = read_image_file(server.studies / "grey.png")
    path, _ = client.infer("ultrarefiner", "", {"result_extension": ".nrrd"}, file=str(server.studies / "grey.png"))
    np.testing.assert_array_equal(read_mask(path, image_file)[0], predictor.propose(image_file.frame()).mask)
    assert not list((server.studies / ".ultrarefiner" / "tmp").glob("*"))


def test_a_file_that_is_copied_in_appears(client, server):
    Image.fromarray(np.full((30, 40), 90, np.uint8)).save(server.studies / "arrived.png")
    eventually(lambda: "arrived" in client.datastore()["objects"])
    (server.studies / "arrived.png").unlink()
    eventually(lambda: "arrived" not in client.datastore()["objects"])


def test_batches_run_on_ids(client, server):
    answer = requests.post(
        f"{server.url}/batch/infer/transunet?run_sync=true", json={"images": ["frame"], "label_tag": "batch"}
    )
    assert answer.status_code == 200, answer.text
    assert (server.studies / "labels" / "batch" / "frame.nrrd").is_file()
    assert json.loads(json.dumps(answer.json()))["frame"]["params"]["model"] == "transunet"
