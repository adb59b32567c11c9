"""The studies as a place: they go and come back, their index is edited, links lead out of them, killed processes leave
files in them, and two servers want them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from app_server import APP, encoded, eventually, picture, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from PIL import Image

from lib.datastore import StudiesFolder
from lib.names import is_name
from lib.page import front_page
from lib.startup import OnlyServer, clear
from ultrarefiner_monai.config import ServeConfig, load_yaml
from ultrarefiner_monai.data import notoffered
from ultrarefiner_monai.data.readers import read_study
from ultrarefiner_monai.data.samples import dicom_bytes
from ultrarefiner_monai.presence import StudiesAway
from ultrarefiner_monai.types import InputError
from ultrarefiner_monai.workfolder import WorkFolder

EXTENSIONS = load_yaml(ServeConfig, APP / "config.yaml").extensions
PNG = encoded(Image.fromarray(picture(1)), "PNG")
LABEL = encoded(Image.fromarray((np.arange(96 * 130).reshape(96, 130) % 130 < 40).astype(np.uint8) * 255), "PNG")


def make_store(studies: Path, work_dir: Path | None = None) -> StudiesFolder:
    return StudiesFolder(str(studies), WorkFolder.of(studies, work_dir), EXTENSIONS, read_study, auto_reload=False)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PNG)
    return folder


@pytest.fixture
def label(tmp_path: Path) -> str:
    (tmp_path / "label.png").write_bytes(LABEL)
    return str(tmp_path / "label.png")


def everything_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# --- away and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work_dir", [None, "work"])
@pytest.mark.parametrize("instead", ["empty", "nothing", "another"])
def test_where_the_studies_were_nothing_is_created(studies, tmp_path, label, instead, work_dir):
    store = make_store(studies, work_dir and tmp_path / work_dir)
    store.save_label("a", label, "final", {"user": "first"})
    shutil.move(studies, tmp_path / "elsewhere")  # as a disk that is unplugged: another folder lies under its path
    if instead != "nothing":
        studies.mkdir()
    if instead == "another":
        (studies / "a.png").write_bytes(PNG)
        make_store(studies, tmp_path / "work of another")
    time.sleep(0.6)
    before = everything_below(studies)
    for work in (
        lambda: store.save_label("a", label, "final", {}),
        lambda: store.remove_label("a", "final"),
        lambda: store.remove_image("a"),
        lambda: store.add_image("new", str(tmp_path / "elsewhere" / "a.png"), {}),
        lambda: store.update_image_info("a", {"x": 1}),
        lambda: store.update_label_info("a", "final", {"x": 1}),
        lambda: store.image_path("a"),
        lambda: store.get_image_uri("a"),
        lambda: store.get_label_uri("a", "final"),
        lambda: store.get_dataset_archive(None),
        lambda: store.is_readable("a"),
        store.refresh,
    ):
        with pytest.raises(StudiesAway, match=r"away.*Tell your IT"):
            work()
    if work_dir is None:
        with pytest.raises(FileNotFoundError):
            store.work.make(store.work.tmp / "x")
    assert everything_below(studies) == before and store.list_images() == ["a", "b"]
    assert str(tmp_path) not in store.presence.problem and "away" in store.presence.problem

    shutil.rmtree(studies, ignore_errors=True)
    shutil.move(tmp_path / "elsewhere", studies)
    store.refresh()
    assert store.presence.problem == "" and store.get_label_info("a", "final")["user"] == "first"
    store.save_label("b", label, "final", {})
    assert store.get_labeled_images() == ["a", "b"]


def test_studies_that_cannot_be_written_are_known_by_their_inode(studies, tmp_path, label, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != studies and access(path, mode))
    store = make_store(studies, tmp_path / "work")
    assert everything_below(studies) == ["a.png", "b.png"]
    store.save_label("a", label, "final", {})
    shutil.move(studies, tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", studies)
    with pytest.raises(StudiesAway):
        store.save_label("a", label, "final", {})


def test_a_label_is_taken_only_where_its_image_is(studies, label):
    store = make_store(studies)
    (studies / "a.png").unlink()
    with pytest.raises(ImageNotFoundException, match="not in the studies any more"):
        store.save_label("a", label, "final", {})
    assert not (studies / "labels" / "final" / "a.png").exists() and not store.is_readable("a")


def mounted(source: Path | str, target: Path, *options: str) -> None:
    done = subprocess.run(["mount", *options, str(source), str(target)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.mark.server
def test_a_disk_goes_comes_back_and_is_full(tmp_path, checkpoint):
    """The real server on a small disk, and a second server on it."""
    disk, studies = tmp_path / "disk", tmp_path / "studies"
    disk.mkdir()
    studies.mkdir()
    mounted("tmpfs", disk, "-t", "tmpfs", "-o", "size=4m")
    running = None
    try:
        (disk / "a.png").write_bytes(PNG)
        part = disk / f".{'0' * 32}.part"
        part.write_bytes(b"an outline, half written")
        os.utime(part, (0, 0))
        mounted(disk, studies, "--bind")
        running = start(studies, checkpoint, tmp_path, disk_cache_mb=0)
        url = running.url

        def save() -> requests.Response:
            files = {"label": ("l.png", LABEL)}
            return requests.put(f"{url}/datastore/label?image=a&tag=final", files=files, data={"params": "{}"})

        def asked(method: str, path: str, **body: object) -> tuple[int, str]:
            answer = requests.request(method, url + path, **body)
            assert str(tmp_path) not in answer.text
            return answer.status_code, answer.text

        assert not part.exists() and save().status_code == 200
        with pytest.raises(RuntimeError, match=rf"already runs.*process {running.process.pid}.*port {url[-5:]}"):
            start(studies, checkpoint, tmp_path)
        assert save().status_code == 200

        subprocess.run(["umount", "-l", str(studies)], check=True)
        upload = {"files": {"file": ("n.png", PNG)}}
        for method, path, body in (
            ("PUT", "/datastore/label?image=a&tag=final", {"files": {"label": ("l.png", LABEL)}}),
            ("PUT", "/datastore/label/info?label=a&tag=final", {"data": {"info": '{"x": 1}'}}),
            ("PUT", "/datastore/?image=n", upload),
            ("PUT", "/session/", {"files": {"files": ("n.png", PNG)}}),
            ("DELETE", "/datastore/label?id=a&tag=final", {}),
            ("POST", "/activelearning/first", {"json": {}}),
            ("POST", "/infer/ultrarefiner?image=a", {}),
            ("POST", "/infer/ultrarefiner", upload),
            ("POST", "/batch/infer/ultrarefiner", {"json": {}}),
            ("POST", "/train/transunet", {"json": {}}),
            ("GET", "/datastore/image?image=a", {}),
            ("GET", "/datastore/label?label=a&tag=final", {}),
            ("GET", "/datastore/dataset", {}),
        ):
            status, text = asked(method, path, **body)
            assert (status, "away" in text) == (503, True), (method, path, status, text)
        assert "Keep 3D Slicer open" in save().text
        found = eventually(lambda: requests.get(f"{url}/info/").json()["problems"])
        assert "away" in found[0] and "away" in requests.get(f"{url}/").text
        assert requests.get(f"{url}/info/").json()["datastore"]["total"] == 1
        time.sleep(1.5)
        assert everything_below(studies) == []

        mounted(disk, studies, "--bind")
        assert save().status_code == 200
        eventually(lambda: not requests.get(f"{url}/info/").json()["problems"])
        (disk / "new.png").write_bytes(PNG)
        eventually(lambda: requests.get(f"{url}/info/").json()["datastore"]["total"] == 2)

        subprocess.run(f"cat /dev/zero > '{disk}/filler'", shell=True, capture_output=True)
        before = (disk / "labels" / "final" / "a.png").read_bytes()
        answer = save()
        assert answer.status_code == 507 and "disk of the server is full. Your outline is not saved" in answer.text
        assert asked("PUT", "/session/", files={"files": ("n.png", PNG)})[0] == 507
        assert (disk / "labels" / "final" / "a.png").read_bytes() == before
        (disk / "filler").unlink()
        assert save().status_code == 200
    finally:
        if running is not None:
            running.stop()
        subprocess.run(["umount", "-l", str(studies)], capture_output=True)
        subprocess.run(["umount", "-l", str(disk)], capture_output=True)


# --- an edited index --------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["a", "b", "../a", "/etc/passwd", "..", "", "passwd", ".ultrarefiner", "notes", "a/b", "a\\b", "\0"]
)
ENDS = st.sampled_from([".png", "", "/../../etc/passwd", ".txt", "/passwd", ".PNG", ".nii.gz", "\0"])
DATA = st.one_of(
    st.fixed_dictionaries({"ext": ENDS, "info": st.dictionaries(NAMES, NAMES | st.floats(), max_size=2)}),
    st.sampled_from([None, 5, [], {"ext": 5}]),
)
ENTRY = st.one_of(
    st.fixed_dictionaries({"image": DATA, "labels": st.dictionaries(NAMES, DATA, max_size=2)}),
    st.sampled_from([None, 1]),
)
PLACES = st.sampled_from(["/etc", "..", "", ".", "labels", "/"])
INDEX = st.one_of(
    st.fixed_dictionaries(
        {"images_dir": PLACES, "labels_dir": PLACES, "base_path": PLACES, "objects": st.dictionaries(NAMES, ENTRY)}
    ),
    st.sampled_from([[], None, {"objects": []}, {}, "x"]),
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(INDEX)
def test_an_edited_index_shows_nothing_else(studies, label, index):
    """Whatever stands in it: places are ours, and what is opened is an image of the studies or one of their labels."""
    (studies / "notes").write_text("nobody's")
    store = make_store(studies)
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    for look in (lambda: store.update_image_info("a", {"x": 1}), store.refresh, lambda: make_store(studies).refresh()):
        try:
            look()
        except ImageNotFoundException:
            pass
        model = store._datastore
        assert (model.base_path, model.images_dir, model.labels_dir) == (str(studies), ".", "labels")
        for image_id, entry in model.objects.items():
            assert is_name(image_id)
            json.dumps(store.get_image_info(image_id), allow_nan=False)
            try:
                assert store.image_path(image_id) in (studies / "a.png", studies / "b.png")
            except ImageNotFoundException:
                pass
            for tag in entry.labels:
                assert Path(store.get_label_uri(image_id, tag)).parent.parent == studies / "labels"
    offered = {store.image_path(image_id).name: image_id for image_id in store.list_images()}
    assert offered.keys() == {"a.png", "b.png"} and len(store.list_images()) == 2
    store.save_label(offered["a.png"], label, "final", {})
    assert (studies / "labels" / "final" / f"{offered['a.png']}.png").read_bytes() == LABEL
    for aside in studies.glob("datastore_v2.json.broken-*"):
        aside.unlink()


def test_what_an_edited_index_says_of_people_stays(studies, label, caplog):
    make_store(studies).save_label("a", label, "final", {"user": "rose"})
    path = studies / "datastore_v2.json"
    values = json.loads(path.read_text())
    values |= {"images_dir": "/etc", "labels_dir": "/etc"}
    values["objects"]["../../x"] = values["objects"]["a"]
    path.write_text(json.dumps(values))
    again = make_store(studies)
    assert again.get_label_info("a", "final")["user"] == "rose" and again.list_images() == ["a", "b"]
    assert "no plain names" in caplog.text and again.get_label_uri("a", "final").startswith(str(studies))


def test_readers_never_see_half_of_a_new_index(studies, label):
    """Another server rewrites the index all the time, this one reads it in as often: paths stay in the studies."""
    one, other = make_store(studies), make_store(studies)
    seen: set[str] = set()
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            other.update_image_info("b", {"t": time.monotonic()})

    def look() -> None:
        while not stop.is_set():
            seen.add(str(one.label_file("a", "final", ".png")))
            seen.add(one.get_image_uri("a"))

    threads = [threading.Thread(target=work) for work in (write, look)]
    for thread in threads:
        thread.start()
    try:
        for n in range(60):
            one._init_from_datastore_file()
            if n % 10 == 0:
                one.save_label("a", label, "final", {"n": n})
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen == {str(studies / "labels" / "final" / "a.png"), str(studies / "a.png")}
    other.refresh()
    assert other.get_label_info("a", "final")["n"] == 50


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_that_leave_are_not_followed(studies, tmp_path, label, caplog):
    outside = tmp_path / "outside"
    (outside / "final").mkdir(parents=True)
    (outside / "secret.png").write_bytes(PNG)
    (outside / "secret.dcm").write_bytes(dicom_bytes(picture(3)[None], 1, 0.08))
    (outside / "final" / "a.png").write_bytes(LABEL)
    (studies / "out.png").symlink_to(outside / "secret.png")
    (studies / "inside.png").symlink_to(studies / "a.png")
    (studies / "nowhere.png").symlink_to(outside / "nothing.png")
    (studies / "below").mkdir()
    (studies / "below" / "IM1").symlink_to(outside / "secret.dcm")
    (studies / "folder").symlink_to(outside)
    store = make_store(studies)
    assert set(store.list_images()) == {"a", "b", "inside"}
    assert store.not_offered.counts() == {notoffered.LINK: 4}
    assert caplog.text.count("not followed") == 4 and "'out.png'" in caplog.text

    (studies / "b.png").unlink()  # exchanged for a link after the list was made
    (studies / "b.png").symlink_to(outside / "secret.png")
    for ask in (
        store.image_path,
        store.get_image_uri,
        lambda i: store.save_label(i, label, "final", {}),
        store.remove_image,
    ):
        with pytest.raises(ImageNotFoundException, match="not followed"):
            ask("b")
    assert (outside / "secret.png").is_file()

    store.save_label("a", label, "final", {})
    (studies / "labels" / "final" / "a.png").unlink()
    (studies / "labels" / "final" / "a.png").symlink_to(outside / "final" / "a.png")
    with pytest.raises(LabelNotFoundException):
        store.get_label_uri("a", "final")
    store.save_label("a", label, "final", {"again": True})  # takes the link's place
    assert not (studies / "labels" / "final" / "a.png").is_symlink()
    shutil.rmtree(studies / "labels" / "final")
    (studies / "labels" / "final").symlink_to(outside / "final")
    with pytest.raises(InputError, match="not followed"):
        store.save_label("a", label, "final", {})
    store.refresh()
    assert store.get_labeled_images() == [] and everything_below(outside / "final") == ["a.png"]
    store.remove_image("inside")
    assert (studies / "a.png").is_file()


def test_a_folder_in_the_way_of_a_nested_image_becomes_a_link(studies, tmp_path):
    (studies / "disc").mkdir()
    (studies / "disc" / "IM1").write_bytes(dicom_bytes(picture(3)[None], 1, 0.08))
    store = make_store(studies)
    nested = next(i for i in store.list_images() if i not in ("a", "b"))
    assert store.image_path(nested).is_file()
    shutil.move(studies / "disc", tmp_path / "outside")
    (studies / "disc").symlink_to(tmp_path / "outside")
    with pytest.raises(ImageNotFoundException, match="not followed"):
        store.image_path(nested)


@pytest.mark.parametrize("name", ["labels", "datastore_v2.json", ".ultrarefiner"])
def test_our_own_places_are_no_links_out_of_the_studies(studies, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    if name.endswith(".json"):
        (outside / name).write_text("{}")
    (studies / name).symlink_to(outside / name if name.endswith(".json") else outside)
    with pytest.raises(InputError, match="link.*work_dir"):
        make_store(studies)
    assert everything_below(outside) == ([name] if name.endswith(".json") else [])


def test_studies_that_are_a_link_are_fine(studies, tmp_path, label):
    (tmp_path / "link").symlink_to(studies)
    store = make_store(tmp_path / "link")
    store.save_label("a", label, "final", {})
    assert store.is_readable("a") and store.get_labeled_images() == ["a"]


# --- one server, and what killed ones left ----------------------------------------------------------------------------


def test_a_second_server_ends_with_words(studies, tmp_path):
    code = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\nfrom pathlib import Path\nfrom lib.startup import OnlyServer\n"
        "from ultrarefiner_monai.workfolder import WorkFolder\nstudies = Path(sys.argv[1])\n"
        "only = OnlyServer(studies, WorkFolder.of(studies))\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(studies), str(APP.parents[1]), str(APP)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline()
        for work in (WorkFolder.of(studies), WorkFolder.of(studies, tmp_path / "work of its own")):
            with pytest.raises(InputError, match=rf"process {first.pid} .*since \d"):
                OnlyServer(studies, work)
        make_store(studies).refresh()  # a batch, a training
    finally:
        first.kill()
        first.wait()
    OnlyServer(studies, WorkFolder.of(studies)).release()  # one that was killed does not count


def test_servers_with_work_folders_of_their_own_see_each_other(studies, tmp_path):
    first = OnlyServer(studies, WorkFolder.of(studies, tmp_path / "one"))
    with pytest.raises(InputError, match="already runs"):
        OnlyServer(studies, WorkFolder.of(studies, tmp_path / "two"))
    with pytest.raises(InputError, match="already runs"):
        OnlyServer(studies, WorkFolder.of(studies))
    first.release()


def test_half_written_files_are_cleared_and_nothing_else(studies, label):
    store = make_store(studies)
    store.save_label("a", label, "final", {})
    store.save_label("a", label, "final", {})
    work, part = store.work, f".{'0123456789abcdef' * 2}.part"
    session = work.sessions / "11-22"
    gone = [
        studies / part,
        studies / "labels" / "final" / part,
        work.root / part,
        work.root / "tmpabcd1234" / "l.nii.gz",
    ]
    gone += [
        work.versions / "final" / "a" / part,
        work.models / "x.safetensorsabcd1234.part",
        work.embeddings / ".tmp-x",
    ]
    gone += [work.mirror / "series" / ".part-x" / "1.dcm", work.training.data / "masks" / part, session / "x.png"]
    gone += [work.exchange / "segs-x" / "1.dcm", work.exchange / "outbox" / part]
    kept = [
        studies / "x.part",
        studies / ".other.part",
        studies / "holiday" / part,
        work.sessions / "33-44" / "meta.info",
    ]
    kept += [work.versions / "final" / "tmpabcd1234" / "1.png", work.root / "forgotten", work.models / "x.safetensors"]
    for path in (*gone, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    young, used = work.root / f".{'1' * 32}.part", work.root / f".{'2' * 32}.part"
    young.write_bytes(b"x")
    used.write_bytes(b"x")
    before = set(everything_below(studies))
    for path in (*studies.rglob("*"), studies / part):
        if path != young:
            os.utime(path, (0, 0), follow_symlinks=False)
    with used.open("rb"):
        clear(studies, studies / "labels", work)
    left = {p for p in before if not (studies / p).exists()}
    assert not any(path.exists() for path in gone) and young.exists() and used.exists()
    assert left <= {str(p.relative_to(studies)) for path in gone for p in (path, path.parent)}
    clear(studies, studies / "labels", work)
    assert not used.exists()


# --- not offered ------------------------------------------------------------------------------------------------------


def test_each_file_that_is_not_offered_is_named_once_with_its_reason(studies, caplog):
    caplog.set_level(logging.WARNING)
    for name in (
        "x.svg",
        "x.mha",
        "archive.zip",
        "nothing",
        "notes.txt",
        f"{'n' * 230}.png",
        "below/p.png",
        "below/q.xyz",
    ):
        (studies / name).parent.mkdir(exist_ok=True)
        (studies / name).write_bytes(PNG)
    (studies / "below" / "cut.dcm").write_bytes(dicom_bytes(picture(1)[None], 1, 0.1)[:600])
    (studies / "empty.png").write_bytes(b"")
    (studies / "broken.png").write_bytes(PNG[:200])
    store = make_store(studies)
    (studies / "labels" / "final" / "other.png").write_bytes(LABEL)
    counts = {
        notoffered.FORMAT: 6,
        notoffered.NAME: 1,
        notoffered.FOLDER: 1,
        notoffered.DAMAGED: 1,
        notoffered.EMPTY: 1,
    }
    assert store.not_offered.counts() == counts
    lines = [r.message for r in caplog.records if "is not offered" in r.message]
    assert len(lines) == 10 and any("'.../p.png'" in line and "serve that folder" in line for line in lines)
    store.refresh()
    assert len([r for r in caplog.records if "is not offered" in r.message]) == 10
    assert not store.is_readable("broken") and store.not_offered.counts() == counts | {notoffered.DAMAGED: 2}
    (studies / "broken.png").write_bytes(PNG)
    (studies / "empty.png").write_bytes(PNG)
    (studies / "x.svg").unlink()
    make_store(studies)
    store.refresh()
    assert store.is_readable("broken") and store.not_offered.counts() == {
        notoffered.FORMAT: 5,
        notoffered.NAME: 1,
        notoffered.FOLDER: 1,
        notoffered.DAMAGED: 1,
    }


def test_many_files_that_are_not_offered_do_not_fill_the_log(studies, caplog):
    for n in range(300):
        (studies / f"{n:03}.zip").touch()
    store = make_store(studies)
    lines = [r.message for r in caplog.records if "not offered" in r.message]
    assert len(lines) == 51 and lines[-1].startswith("250 more files are not offered")
    assert store.not_offered.counts() == {notoffered.FORMAT: 300}


def test_the_start_page_says_what_is_not_offered_and_what_is_wrong():
    info = {"name": "n", "models": {}, "datastore": {}, "problems": ["<b>away"], "not_offered": {"<i>": 2, "y": 3}}
    page = front_page(info, "http://here")
    assert "&lt;b&gt;away" in page and "5 files" in page and "2 x &lt;i&gt;" in page
    assert "not offered" not in front_page({**info, "not_offered": {}, "problems": []}, "http://here")
