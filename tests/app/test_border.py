"""The parts of the app that need no server: requests to clicks, the studies folder, the strategies, --conf."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from app_server import APP, picture
from coded_file import NATIVE, card, dicom
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st
from monailabel.interfaces.exception import ImageNotFoundException
from PIL import Image

from lib.routes.guard import check_target
from lib.routes.pacs import way_to
from lib.store.datastore import StudiesFolder
from lib.store.sessions import SessionStore
from lib.tasks.answers import _bytes
from lib.tasks.clicks import frame_of, requested_clicks
from lib.tasks.scoring import Scorer
from lib.tasks.strategies import NextSample, Sampler
from ultrarefiner_monai.cli import main
from ultrarefiner_monai.config import ConfigError, LearningConfig, ServeConfig, load_yaml, serve_config
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.names import check_name
from ultrarefiner_monai.studies.work_folder import WorkFolder

# --- clicks -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 129), st.integers(0, 95), st.integers(0, 4)), max_size=6),
    st.permutations(range(6)),
)
def test_order_of_points_carries_no_meaning(points, order):
    shuffled = [points[n] for n in order if n < len(points)]
    one, other = (requested_clicks({"foreground": [list(p) for p in ps]}, 5, 96, 130) for ps in (points, shuffled))
    assert one == other and set(one) == {p[2] for p in points}
    assert all((i, j) in one[k].foreground_xy for i, j, k in points)


def test_a_volume_whose_first_axis_counts_frames():
    found = requested_clicks({"foreground": [[2, 7, 9]], "roi": [1, 2, 5, 6, 8, 9]}, 4, 96, 130, axes=(1, 2, 0))
    assert found == {2: Clicks(((7, 9),), (), (5, 8, 6, 9)), 1: Clicks(box_xyxy=(5, 8, 6, 9))}


def test_roi_is_cut_to_the_image_and_reaches_its_frames():
    found = requested_clicks({"roi": [200, -50, 10, 20, 3.2, 0.9]}, 6, 96, 130)
    assert found == dict.fromkeys([1, 2, 3], Clicks(box_xyxy=(0, 10, 129, 20)))


@pytest.mark.parametrize("value", [None, "", "all", -1, "-1"])
def test_all_frames(value):
    assert frame_of({"frame": value}, 3) is None


@pytest.mark.parametrize(("value", "frame"), [(0, 0), ("2", 2), (1.0, 1)])
def test_one_frame(value, frame):
    assert frame_of({"frame": value}, 3) == frame


@pytest.mark.parametrize("value", ["9" * 5000, "²", "--1", 10**400, -(10**400), float("nan")])
def test_frames_that_no_number_type_holds(value):
    with pytest.raises(InputError, match="frame"):
        frame_of({"frame": value}, 3)


@pytest.mark.parametrize(
    "request_", [{"foreground": [[10**400, 1]]}, {"roi": [1, -(10**400), 2, 3]}], ids=["point", "roi"]
)
def test_coordinates_beyond_any_float(request_):
    with pytest.raises(InputError, match="finite"):
        requested_clicks(request_, 1, 96, 130)


# --- names ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=12))
def test_whatever_passes_as_a_name_stays_in_its_folder(text):
    try:
        name = check_name(text, "image")
    except InputError:
        return
    assert Path(os.path.normpath(Path("/studies") / name)).parent == Path("/studies")
    check_target(f"/infer/{name}", b"")


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_the_guard_answers_any_query(query):
    try:
        check_target("/infer/ultrarefiner", b"image=" + query)
    except InputError:
        pass


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        (
            "GET",
            "wado/studies/1.2/series/1.3/instances/1.4/frames/1,2",
            "studies/1.2/series/1.3/instances/1.4/frames/1,2",
        ),
        ("GET", "studies/", "studies"),
        ("POST", "stow/studies/1.2", "studies/1.2"),
        ("GET", "servers", None),
        ("GET", "studies/%2e%2e/%2e%2e/system", None),  # requests would decode it, and leave DICOMweb by it
        ("GET", "studies/.%2E/x", None),
        ("GET", "studies/../x", None),
        ("GET", "studies//x", None),
        ("GET", "studies/1.2?x", None),
        ("GET", "wado/", None),
        ("POST", "studies/1.2/series/1.3/reject/113001^DCM", None),
        ("POST", "series", None),
    ],
)
def test_viewers_reach_dicomweb_and_nothing_else(method, path, meant):
    if meant is not None:
        assert way_to(method, path) == meant
    else:
        with pytest.raises(HTTPException):
            way_to(method, path)


# --- studies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    studies = tmp_path / "st udies"
    studies.mkdir()
    for name in ("a.png", "B.PNG", "twin.png", "twin.jpg"):
        Image.fromarray(picture(1)).save(studies / name)
    (studies / "broken.png").write_bytes((studies / "a.png").read_bytes()[:300])
    (studies / "notes.txt").write_text("no image")
    return studies


def make_store(studies: Path) -> StudiesFolder:
    extensions = load_yaml(ServeConfig, APP / "config.yaml").extensions
    return StudiesFolder(str(studies), WorkFolder.of(studies), extensions, read_image_file, auto_reload=False)


def label_at(path: Path, value: int = 1) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.full((130, 96, 1), value, np.uint8), np.eye(4)), path)
    return path


def test_ids_are_stems_unless_two_files_share_one(folder):
    store = make_store(folder)
    assert set(store.list_images()) == {"a", "B", "twin.png", "twin.jpg", "broken"}
    assert store.image_path("B").name == "B.PNG" and store.get_image_uri("twin.jpg").endswith("twin.jpg")
    Image.fromarray(picture(2)).save(folder / "a.bmp")
    store.refresh()
    assert store.image_path("a").name == "a.png" and store.image_path("a.bmp").name == "a.bmp"
    assert set(make_store(folder).list_images()) == set(store.list_images())


def test_files_of_odd_names_do_not_stop_the_others(folder):
    for name in (" y.png", "x .png", "v.seg.png"):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    with open(os.fsencode(folder) + b"/\xe4.png", "wb") as file:  # a name that is no UTF-8
        file.write((folder / "a.png").read_bytes())
    store = make_store(folder)
    found = set(store.list_images())
    assert {"a", "x .png", "v.seg"} <= found and not any(i != i.strip() for i in found)
    for image_id in found:
        assert check_name(image_id, "image")
    store.refresh()


def test_a_label_of_an_image_called_seg(folder, tmp_path):
    (folder / "v.seg.png").write_bytes((folder / "a.png").read_bytes())
    source = tmp_path / "l.nrrd"
    source.write_bytes(b"NRRD0004")
    store = make_store(folder)
    store.save_label("v.seg", str(source), "final", {})
    store.refresh()
    assert store.get_labeled_images() == ["v.seg"] == make_store(folder).get_labeled_images()


@pytest.mark.parametrize("value", [float("nan"), "\ud800", 10**400, [[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]], ids=str)
def test_info_that_json_cannot_hold_spoils_nothing(folder, tmp_path, value):
    store = make_store(folder)
    with pytest.raises(InputError):
        store.update_image_info("a", {"x": value})
    with pytest.raises(InputError):
        store.save_label("a", str(label_at(tmp_path / "l.nii.gz")), "final", {"x": value})
    store.update_image_info("a", {"x": 1})
    assert make_store(folder).get_image_info("a")["x"] == 1 and store.get_labeled_images() == []


def test_index_that_cannot_be_written_leaves_memory_as_it_was(folder, monkeypatch):
    store = make_store(folder)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError):
            store.update_image_info("a", {"x": 1})
    assert "x" not in store.get_image_info("a")


def test_two_processes_change_the_index(folder, tmp_path):
    one, other = make_store(folder), make_store(folder)
    one.update_image_info("a", {"by": "one"})
    other.save_label("B", str(label_at(tmp_path / "l.nii.gz")), "final", {"by": "other"})
    one.update_image_info("twin.png", {"by": "one"})
    again = make_store(folder)
    assert again.get_image_info("a")["by"] == again.get_image_info("twin.png")["by"] == "one"
    assert again.get_label_info("B", "final")["by"] == "other"


def test_the_archive_holds_the_labelled_images(folder, tmp_path):
    store = make_store(folder)
    with pytest.raises(InputError, match="no final label"):
        store.get_dataset_archive(None)
    store.save_label("a", str(label_at(tmp_path / "l.nii.gz")), "final", {})
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        assert set(archive.namelist()) == {"image/a.png", "label/a.nii.gz", "metadata.json"}


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_sessions_half_written_are_cleared_away(tmp_path):
    store = SessionStore(str(tmp_path / "sessions"), 3600)
    image = tmp_path / "i.png"
    image.write_bytes(b"x")
    kept, _ = store.add_session(str(image))
    for name, meta in (("00-11", ""), ("00-22", "[1]"), ("00-33", None)):
        (tmp_path / "sessions" / name).mkdir()
        if meta is not None:
            (tmp_path / "sessions" / name / "meta.info").write_text(meta)
    os.utime(tmp_path / "sessions" / "00-33", (0, 0))
    again = SessionStore(str(tmp_path / "sessions"), 3600)
    assert again.get_session("00-11") is None
    assert again.remove_expired() == 3 and [p.name for p in (tmp_path / "sessions").iterdir()] == [kept]
    assert again.get_session(kept) is not None


def test_an_expired_session_is_gone_at_once(tmp_path):
    store = SessionStore(str(tmp_path / "sessions"), 3600)
    image = tmp_path / "i.png"
    image.write_bytes(b"x")
    name, info = store.add_session(str(image), expiry=60)
    info.last_access_ts -= 61
    assert store.get_session(name) is None and not (tmp_path / "sessions" / name).exists()


def test_what_is_kept_of_a_series_counts_its_bytes(tmp_path):
    frames = np.stack([card(k) for k in range(3)])
    content = dicom(NATIVE["Explicit VR Little Endian"], "RGB", frames, NumberOfFrames=3, InstanceNumber=1)
    for k in range(2):
        (tmp_path / f"{k}.dcm").write_bytes(content.replace(b"043.8.498.1", b"043.8.498.%d" % k))
    assert read_image_file(tmp_path).n_frames == 6
    assert _bytes(read_image_file(tmp_path)) == 2 * _bytes(read_image_file(tmp_path / "0.dcm")) == 2 * frames.nbytes


def test_dicom_is_known_without_an_extension(folder):
    for name in ("IM_0001", "1.2.840.99"):
        (folder / name).write_bytes(dicom_bytes(picture(3)[None], 1, 0.08))
    store = make_store(folder)
    assert {"IM_0001", "1.2.840.99"} <= set(store.list_images()) and "notes" not in store.list_images()
    assert store.image_path("1.2.840.99").name == "1.2.840.99" and store.is_readable("IM_0001")


def test_a_label_never_changes_its_image(folder, tmp_path):
    store = make_store(folder)
    store.save_label("a", str(label_at(tmp_path / "l.nii.gz")), "final", {})
    Image.fromarray(picture(2)).save(folder / "a.bmp")
    (folder / "datastore_v2.json").unlink()
    again = make_store(folder)
    assert {"a.png", "a.bmp"} <= set(again.list_images())
    assert again.get_labeled_images() == [] and (folder / "labels" / "final" / "a.nii.gz").is_file()


def test_a_damaged_index_is_kept_aside_and_made_anew(folder, tmp_path):
    make_store(folder).save_label("a", str(label_at(tmp_path / "l.nii.gz")), "final", {})
    (folder / "datastore_v2.json").write_text("{ half of it")
    again = make_store(folder)
    assert again.get_labeled_images() == ["a"] and len(list(folder.glob("datastore_v2.json.broken-*"))) == 1


def test_saving_keeps_what_was_there(folder, tmp_path):
    store = make_store(folder)
    for value in (1, 2, 3):
        store.save_label("a", str(label_at(tmp_path / "l.nii.gz", value)), "final", {"user": str(value)})
    kept = sorted((folder / ".ultrarefiner" / "versions" / "final" / "a").iterdir())
    assert [int(nibabel.Nifti1Image.load(k).dataobj[0, 0, 0]) for k in kept] == [1, 2]
    assert store.get_label_info("a", "final")["user"] == "3"
    Image.fromarray(np.ones((96, 130), np.uint8)).save(tmp_path / "l.png")
    store.save_label("a", str(tmp_path / "l.png"), "final", {})
    assert [p.name for p in (folder / "labels" / "final").iterdir()] == ["a.png"]
    store.remove_label("a", "final")
    assert store.get_labeled_images() == [] and len(list(kept[0].parent.iterdir())) == 4


@pytest.mark.parametrize("tag", ["../x", "/tmp/x", "a/b", "..", ".hidden", "a\\b"])
def test_tags_are_plain_names(folder, tmp_path, tag):
    label = label_at(tmp_path / "l.nii.gz")
    with pytest.raises(InputError, match="tag"):
        make_store(folder).save_label("a", str(label), tag, {})


def test_only_what_is_listed_is_opened(folder):
    store = make_store(folder)
    for image_id in ("/etc/passwd", "../a", "notes", "notes.txt", "", None, ["a"]):
        with pytest.raises(ImageNotFoundException):
            store.image_path(image_id)


def test_lossy_labels_are_refused(folder, tmp_path):
    Image.fromarray(np.ones((96, 130), np.uint8)).save(tmp_path / "l.jpg")
    with pytest.raises(InputError, match="lossless"):
        make_store(folder).save_label("a", str(tmp_path / "l.jpg"), "final", {})


# --- next sample ------------------------------------------------------------------------------------------------------


def next_sample(store: StudiesFolder, name: str) -> NextSample:
    return NextSample(name, Sampler(Scorer(None, None, lambda: store), LearningConfig()))


@pytest.mark.parametrize("shuffled", [False, True])
def test_rounds_of_offers(folder, tmp_path, shuffled):
    store = make_store(folder)
    strategy = next_sample(store, "random" if shuffled else "first")
    readable = {"a", "B", "twin.png", "twin.jpg"}

    def offer() -> str:
        image_id = strategy({}, store)["id"]
        store.update_image_info(image_id, {"strategy": {"any": {"ts": time.time()}}})
        return image_id

    first_round = [offer() for _ in readable]
    assert set(first_round) == readable
    last = first_round[-1]
    for _ in range(8):
        following = offer()
        assert following != last and following in readable
        last = following
    for image_id in readable:
        store.save_label(image_id, str(label_at(tmp_path / "l.nii.gz")), "final", {})
    assert "id" not in strategy({}, store)


def test_first_goes_by_name(folder):
    store = make_store(folder)
    assert next_sample(store, "first")({}, store) == {"id": "B"}


# --- configuration ----------------------------------------------------------------------------------------------------


def test_shipped_config_is_valid_and_conf_overrides_it():
    config = serve_config(
        APP / "config.yaml", {"weights": "mine", "max_upload_mb": "7", "cors_origins": "http://a, http://b"}
    )
    assert (config.weights, config.max_upload_mb, config.cors_origins) == ("mine", 7, ("http://a", "http://b"))
    assert serve_config(APP / "config.yaml") == load_yaml(ServeConfig, APP / "config.yaml") == ServeConfig()
    assert serve_config(APP / "config.yaml", {"server_mode": "true"}) == ServeConfig()


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"wieghts": "x"}, "wieghts.*known: .*weights"),
        ({"workers": "two"}, "workers.*whole number.*two"),
        ({"workers": "0"}, "workers must be at least 1"),
        ({"device": "tpu"}, "device"),
        ({"cors_origins": "*"}, "cors_origins.*https://"),
        ({"cors_origins": "viewer.example"}, "cors_origins.*https://"),
        ({"cors_origins": "https://viewer.example/path"}, "cors_origins.*https://"),
        ({"allowed_hosts": "http://us.example"}, "allowed_hosts.*without http://"),
        ({"allowed_hosts": "us.example:8000"}, "allowed_hosts.*without a port"),
        ({"allowed_hosts": "*"}, "allowed_hosts"),
        ({"open_to_network": "yes"}, "open_to_network.*true or false"),
    ],
)
def test_conf_that_cannot_be_used(conf, message):
    with pytest.raises(ConfigError, match=message):
        serve_config(APP / "config.yaml", conf)


# --- forget -----------------------------------------------------------------------------------------------------------


def test_forget_says_where_there_is_nothing_of_an_image(folder, capsys, monkeypatch):
    make_store(folder)
    for image_id, code, words in (
        ("a", 0, "a: removed 0"),
        ("a.png", 1, "did you mean 'a'"),
        ("nosuch", 1, "lists the ids"),
    ):
        monkeypatch.setattr("sys.argv", ["ultrarefiner", "forget", image_id, "--studies", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code and words in said.out + said.err
