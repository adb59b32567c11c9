"""Corrections for training: what was offered beside what is final, as long as the files say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.dicom.series import sha256_of_image
from ultrarefiner_monai.studies.corrections import chosen_frames, final_labels, read_corrections
from ultrarefiner_monai.studies.journal import Journal
from ultrarefiner_monai.studies.work_folder import WorkFolder


def mask_of(*marked: int, frames: int = 1) -> np.ndarray:
    mask = np.zeros((frames, 6, 8), np.uint8)
    for k in marked:
        mask[k, 1:3, k % 5 : k % 5 + 3] = 1
    return mask


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Images a (one frame), b (a cine of 20), c (labelled without a proposal), as a server leaves them."""
    (tmp_path / "labels" / "final").mkdir(parents=True)
    objects = {}
    for name in "abc":
        Image.new("L", (8, 6), ord(name)).save(tmp_path / f"{name}.png")
        (tmp_path / "labels" / "final" / f"{name}.nrrd").write_bytes(b"label")
        objects[name] = {"image": {"ext": ".png"}, "labels": {"final": {"ext": ".nrrd"}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    journal = Journal(tmp_path / ".ultrarefiner" / "journal.sqlite")
    add(journal, tmp_path, "a", mask_of(0), mask_of(0))
    add(journal, tmp_path, "b", mask_of(*range(20), frames=20), mask_of(2, 3, 4, frames=20))
    journal.record_correction("c", sha256_of(tmp_path / "c.png"), mask_of(0))
    journal.close()
    return tmp_path


def add(journal: Journal, studies: Path, name: str, offered: np.ndarray, saved: np.ndarray) -> None:
    sha256 = sha256_of(studies / f"{name}.png")
    journal.record_proposal(
        name,
        sha256,
        offered,
        model="ultrarefiner",
        version="v7",
        reply={"frames": [{"frame": k} for k in range(len(offered))]} if len(offered) > 1 else {"frame": 0},
    )
    journal.record_correction(name, sha256, saved, author="reader 2")


def test_what_was_offered_stands_beside_the_final_label(studies: Path) -> None:
    found = read_corrections(studies / ".ultrarefiner")
    assert [c.id for c in found] == ["a@0", "b@2", "b@3", "b@4"]
    first, cine = found[0], found[1]
    assert first.frame is None and first.image == studies / "a.png" and first.model_version == "v7"
    assert first.author == "reader 2" and first.label == studies / "labels" / "final" / "a.nrrd"
    np.testing.assert_array_equal(first.proposal, mask_of(0)[0])
    assert cine.frame == 2
    np.testing.assert_array_equal(cine.proposal, mask_of(2, frames=3)[2])


def test_what_no_longer_fits_is_left_out_and_logged(studies: Path, caplog: pytest.LogCaptureFixture) -> None:
    (studies / "a.png").write_bytes(b"another image of the same name")
    (studies / "labels" / "final" / "b.nrrd").unlink()
    assert read_corrections(studies / ".ultrarefiner") == []
    assert "replaced" in caplog.text and "gone" in caplog.text


def test_frames_that_were_not_asked_for_were_not_offered(studies: Path) -> None:
    journal = Journal(studies / ".ultrarefiner" / "journal.sqlite")
    sha256 = sha256_of(studies / "c.png")
    only = mask_of(1, frames=3)
    journal.record_proposal("c", sha256, only, model="sam_refiner", version="v7", reply={"frame": 1})
    journal.record_correction("c", sha256, mask_of(0, 1, 2, frames=3))
    found = [c for c in read_corrections(studies / ".ultrarefiner") if c.id.startswith("c@")]
    assert [(c.frame, c.model) for c in found] == [(1, "sam_refiner")]


def test_a_work_folder_elsewhere_needs_the_studies_named(studies: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (studies / ".ultrarefiner").rename(work)
    with pytest.raises(InputError, match="which folder was served"):
        read_corrections(work)
    assert len(read_corrections(work, studies)) == 4
    WorkFolder(work).note_studies(studies)
    assert len(read_corrections(work)) == 4
    assert [p.image_id for p in final_labels(work, studies)] == ["a", "b", "c"]


def test_a_confirmed_label_is_one_in_training(studies: Path) -> None:
    """Who saved it said that it is meant to mark nearly everything; other values of an index say nothing."""
    index = json.loads((studies / "datastore_v2.json").read_text())
    for name, info in zip("abc", ({"confirmed": True}, {"confirmed": "yes"}, ["confirmed"])):
        index["objects"][name]["labels"]["final"]["info"] = info
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    assert [p.confirmed for p in final_labels(studies / ".ultrarefiner")] == [True, False, False]


def test_few_frames_stand_for_a_cine() -> None:
    assert chosen_frames(mask_of(frames=1)) == [0]
    assert chosen_frames(mask_of(5, frames=40)) == [5]
    many = chosen_frames(mask_of(*range(10, 40), frames=50))
    assert many[0] == 10 and many[-1] == 39 and len(many) == 8 == len(set(many))


def test_corrections_of_a_pacs_lie_beside_what_was_fetched(tmp_path: Path) -> None:
    work = WorkFolder.of("http://pacs.example/dicom-web", tmp_path / "work")
    work.note_studies("http://pacs.example/dicom-web")
    image = work.mirror / "images" / "1.2.3"
    image.mkdir(parents=True)
    for k in (1, 2):
        (image / f"{k}.dcm").write_bytes(dicom_bytes(np.zeros((1, 6, 8), np.uint8), 1, 0.1, instance=k))
    (work.root / "labels" / "final").mkdir(parents=True)
    (work.root / "labels" / "final" / "1.2.3.nii.gz").write_bytes(b"label")
    entry = {"image": {"ext": ""}, "labels": {"final": {"ext": ".nii.gz"}}}
    (work.root / "datastore_v2.json").write_text(json.dumps({"objects": {"1.2.3": entry}}))
    reply = {"frames": [{"frame": 0}, {"frame": 1}]}
    journal = Journal(work.journal)
    journal.record_proposal(
        "1.2.3", sha256_of_image(image), mask_of(0, 1, frames=2), model="ultrarefiner", version="v7", reply=reply
    )
    journal.record_correction("1.2.3", sha256_of_image(image), mask_of(1, frames=2))
    journal.close()
    for studies in (None, "http://pacs.example/dicom-web"):  # as it was noted, and as a server says it
        assert [(p.image_id, p.image) for p in final_labels(work.root, studies)] == [("1.2.3", image)]
        assert [(c.id, c.image) for c in read_corrections(work.root, studies)] == [("1.2.3@1", image)]
