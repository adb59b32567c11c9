"""DICOM images below a studies folder: found under any name, read once, called by their UIDs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.studies import dicom_index as dicomindex
from ultrarefiner_monai.studies.dicom_index import DicomIndex, nested_images, remembered_images

PIXELS = np.zeros((1, 24, 24), np.uint8)


def put(path: Path, number: int = 1, instance: int = 1, **values: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(PIXELS, number, 0.1, instance=instance))
    if values:
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    return str(pydicom.dcmread(path).SOPInstanceUID)


@pytest.fixture
def disc(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    root = tmp_path / "studies"
    uids = {
        "A/DOE^JANE/IM_0001": put(root / "A" / "DOE^JANE" / "IM_0001"),
        "A/Müller, Ä/2.dcm": put(root / "A" / "Müller, Ä" / "2.dcm", instance=2),
        "top": put(root / "top", number=2),
    }
    put(root / "A" / "report", instance=3, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    put(root / "A" / "seg.dcm", instance=4, Modality="SEG")
    put(root / "A" / ".hidden", instance=5)
    put(root / "DICOMDIR", instance=6)
    put(root / "labels" / "x", instance=7)
    put(root / "B" / "copy", instance=2)
    put(root / "B" / "top again", number=2)
    (root / "A" / "notes").write_text("no DICOM")
    (root / "A" / "broken.dcm").write_bytes(b"junk")
    (root / "A" / "cut.dcm").write_bytes((root / "top").read_bytes()[:600])
    (root / "A" / "loop").symlink_to(root)
    return root, uids


def test_images_by_uid_without_reports_copies_and_hidden_files(disc: tuple[Path, dict[str, str]]) -> None:
    root, uids = disc
    found = DicomIndex(root, root.parent / "headers.json").scan([root / "labels"])
    assert nested_images(found) == {uids[p]: p for p in ("A/DOE^JANE/IM_0001", "A/Müller, Ä/2.dcm")}
    kinds = {path: header.kind for path, header in found.items()}
    assert kinds["A/report"] == kinds["A/seg.dcm"] == kinds["DICOMDIR"] == "other"
    assert (
        kinds["A/broken.dcm"] == kinds["A/cut.dcm"] == "damaged"
        and kinds["A/notes"] == "foreign"
        and kinds["top"] == "image"
    )
    assert remembered_images(root.parent / "headers.json") == nested_images(found)
    assert remembered_images(root.parent / "nothing") == {}


def test_a_file_is_opened_once_for_each_of_its_states(
    disc: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = disc
    opened: list[str] = []
    look = dicomindex._look
    monkeypatch.setattr(dicomindex, "_look", lambda path: opened.append(path.name) or look(path))
    first = DicomIndex(root, root.parent / "headers.json").scan()
    assert len(opened) == len(first)
    opened.clear()
    index = DicomIndex(root, root.parent / "headers.json")
    assert index.scan() == first and not opened
    new = put(root / "A" / "broken.dcm", instance=9)
    (root / "B" / "copy").unlink()
    assert nested_images(index.scan())[new] == "A/broken.dcm" and opened == ["broken.dcm"]
    (root.parent / "headers.json").write_text("{ half")
    opened.clear()
    assert DicomIndex(root, root.parent / "headers.json").scan() == index.scan() and len(opened) == len(first) - 1


def test_what_is_no_uid_never_becomes_an_id(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a" / "1", SOPInstanceUID="DOE^JANE")
    put(tmp_path / "s" / "a" / "2", SOPInstanceUID="")
    put(tmp_path / "s" / "a" / "3", SOPInstanceUID="../../etc")
    images = nested_images(DicomIndex(tmp_path / "s", tmp_path / "h").scan())
    assert sorted(images.values()) == ["a/1", "a/2", "a/3"]
    assert all(i.startswith("dicom-") and len(i) == 30 for i in images)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a" / "1")
    os.rename(tmp_path / "s" / "a" / "1", os.fsencode(tmp_path / "s" / "a") + b"/\xe4")
    index = DicomIndex(tmp_path / "s", tmp_path / "h")
    images = nested_images(index.scan())
    assert len(images) == 1 and remembered_images(tmp_path / "h") == images


# --- different pictures with one UID ----------------------------------------------------------------------------------

UID = "1.2.826.0.1.3680043.8.498.77"


def same_uid(path: Path, seed: int, **values: object) -> Path:
    """A picture of its own, under ``UID``; large enough that it is not looked at as a whole at first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 400, 600), dtype=np.uint8)
    path.write_bytes(dicom_bytes(pixels, 1, 0.1))
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


class Disc:
    """A studies folder, looked at by a server that starts anew each time; pictures are told apart by their pixels."""

    def __init__(self, folder: Path):
        self.root, self.store = folder / "studies", folder / "headers.json"

    def offered(self) -> dict[str, float]:
        """id -> the picture's mean grey."""
        found = nested_images(DicomIndex(self.root, self.store).scan())
        return {name: float(pydicom.dcmread(self.root / path).pixel_array.mean()) for name, path in found.items()}


def test_different_pictures_with_one_uid_are_all_offered_and_keep_their_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disc = Disc(tmp_path)
    for k in range(4):
        same_uid(disc.root / "a" / f"{k}", k)
    first = disc.offered()
    assert len(first) == len(set(first.values())) == 4
    assert UID in first and all(name == UID or name.startswith(f"{UID}-") for name in first)
    assert all(name in caplog.text for name in first)
    assert disc.offered() == first and remembered_images(disc.store).keys() == first.keys()
    # The one that has the UID for itself goes: its id goes with it, and comes back with it.
    owner = next(p for p in (disc.root / "a").iterdir() if pydicom.dcmread(p).pixel_array.mean() == first[UID])
    owner.rename(tmp_path / "away")
    assert disc.offered() == {name: mean for name, mean in first.items() if name != UID}
    (disc.root / "0 first").mkdir()
    (tmp_path / "away").rename(disc.root / "0 first" / "renamed")
    (disc.root / "a" / "3").rename(disc.root / "0 first" / "before all")
    assert disc.offered() == first
    disc.store.unlink()
    assert disc.offered() == first


def test_a_picture_that_comes_later_takes_no_id(tmp_path: Path) -> None:
    disc = Disc(tmp_path)
    same_uid(disc.root / "m" / "old", 1)
    before = disc.offered()
    assert list(before) == [UID]
    same_uid(disc.root / "a" / "new", 2)
    both = disc.offered()
    assert both[UID] == before[UID] and len(both) == 2
    (disc.root / "m" / "old").unlink()
    alone = disc.offered()
    assert UID not in alone and len(alone) == 1
    disc.store.with_name("headers-uids.json").write_text("{ half")
    assert UID not in disc.offered()


def test_a_picture_is_not_taken_for_the_one_that_went(tmp_path: Path) -> None:
    disc = Disc(tmp_path)
    same_uid(disc.root / "a" / "x", 1)
    disc.offered()
    (disc.root / "a" / "x").unlink()
    same_uid(disc.root / "b" / "y", 2)
    assert UID not in disc.offered()


def test_copies_are_offered_once_whatever_else_their_headers_say(tmp_path: Path) -> None:
    disc = Disc(tmp_path)
    same_uid(disc.root / "a" / "x", 1)
    same_uid(disc.root / "b" / "x", 1, PatientName="SOMEBODY^ELSE^ENTIRELY", StudyDescription="sent again")
    assert list(disc.offered()) == [UID]
    near = pydicom.dcmread(disc.root / "a" / "x")
    near.decompress()
    near.save_as(disc.root / "a" / "x")
    content = bytearray((disc.root / "a" / "x").read_bytes())
    content[-180_000] ^= 1  # between the pieces that are looked at, of 240,000 bytes of pixels at the end
    (disc.root / "b" / "x").write_bytes(content)
    assert len(disc.offered()) == 2


def test_at_the_top_and_in_folders(tmp_path: Path) -> None:
    disc = Disc(tmp_path)
    same_uid(disc.root / "top.dcm", 1)
    same_uid(disc.root / "top2.dcm", 2)
    same_uid(disc.root / "a" / "copy", 1)
    assert disc.offered() == {}
    same_uid(disc.root / "a" / "other", 3)
    assert len(disc.offered()) == 1


def test_what_a_version_before_remembered_still_counts(tmp_path: Path) -> None:
    import json

    disc = Disc(tmp_path)
    same_uid(disc.root / "a" / "x", 1)
    stat = (disc.root / "a" / "x").stat()
    disc.store.write_text(json.dumps({"a/x": [stat.st_size, stat.st_mtime_ns, "image", UID]}))
    assert remembered_images(disc.store) == {UID: "a/x"}
    assert list(disc.offered()) == [UID]


def test_a_damaged_modality_hides_no_image(tmp_path: Path) -> None:
    uid = put(tmp_path / "s" / "a" / "1")
    content = (tmp_path / "s" / "a" / "1").read_bytes()
    (tmp_path / "s" / "a" / "1").write_bytes(
        content.replace(b"\x08\x00\x60\x00CS\x02\x00US", b"\x08\x00\x60\x00FD\x02\x00US")
    )
    assert nested_images(DicomIndex(tmp_path / "s", tmp_path / "h").scan()) == {uid: "a/1"}
