"""The studies as a place: they go and come back, links lead out of them, and files lie in them that are not offered."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import requests
from app_server import eventually, picture, start
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from small_studies import LABEL, PNG, everything_below, make_store

from lib.routes.page import front_page
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.studies import not_offered as notoffered
from ultrarefiner_monai.studies.availability import StudiesAway

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


@pytest.mark.slow
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
    info["serving"] = {"networks": "SAM & more"}
    page = front_page(info, "http://here")
    assert "&lt;b&gt;away" in page and "SAM &amp; more" in page and "5 files" in page and "2 x &lt;i&gt;" in page
    assert "not offered" not in front_page({**info, "not_offered": {}, "problems": []}, "http://here")
