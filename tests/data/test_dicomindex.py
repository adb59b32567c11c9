"""DICOM images below a studies folder: found under any name, read once, called by their UIDs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ultrarefiner_monai.data import dicomindex
from ultrarefiner_monai.data.dicomindex import DicomIndex, nested_images, remembered_images
from ultrarefiner_monai.data.samples import dicom_bytes

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
