"""What the model gets wrong, by size, echogenicity and device: the groups, the picture and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.learning.mistakes import Mistake
from ultrarefiner_monai.learning.mistakes_picture import (
    COLOURS,
    NAMES,
    Look,
    device_of,
    picture_of,
    read_devices,
    write_picture,
)
from ultrarefiner_monai.studies.journal import Journal

MISTAKES = [
    Mistake("a@0", {"over": 1.0}, 0.7, True, 0.1),
    Mistake("b@0", {"identity": 1.0}, 0.97, True, 0.3),
    Mistake("b2@0", {"identity": 0.5, "under": 0.5}, 0.9, True, 0.3, 0.5),
    Mistake("c@0", {"islands": 1.0}, 0.0, False),
    Mistake("d@0", {}, 1.0, False),
]
LOOKS = {"a@0": Look(0.3, "one"), "b@0": Look(1.0, "two"), "c@0": Look(None, "two")}


def test_the_groups_say_where_it_goes_wrong() -> None:
    picture = picture_of(MISTAKES, LOOKS)
    assert picture.everything.images == 4.5
    assert picture.everything.dice == pytest.approx((0.7 + 0.97 + 0.45) / 2.5)
    assert picture.everything.shares == pytest.approx(
        {"identity": 2.25 / 4.5, "over": 1 / 4.5, "islands": 1 / 4.5, "under": 0.25 / 4.5}
    )
    sizes = {g.name: g for g in picture.by["size"]}
    assert list(sizes) == ["small", "medium", "no lesion"] and sizes["small"].shares == {"over": 1.0}
    assert sizes["no lesion"].shares == {"islands": 0.5, "identity": 0.5} and sizes["no lesion"].dice is None
    assert [g.name for g in picture.by["echogenicity"]] == [
        "very dark",
        "as its surroundings",
        "no lesion",
        "not known",
    ]
    assert [(g.name, g.images) for g in picture.by["device"]] == [("two", 2), ("not known", 1.5), ("one", 1)]
    assert list(picture_of(MISTAKES).by) == ["size"]
    json.dumps(picture.to_dict())


def test_every_kind_has_a_name_and_a_colour() -> None:
    from ultrarefiner_monai.config.refine import TWELVE_KINDS

    assert set(NAMES) == set(TWELVE_KINDS) == set(COLOURS)


@pytest.mark.parametrize("name", ["mistakes.png", "mistakes.svg"])
def test_the_picture_is_written_whole(tmp_path: Path, name: str) -> None:
    path = write_picture(picture_of(MISTAKES, LOOKS), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name.endswith("png"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        expected = [int(COLOURS["over"][k : k + 2], 16) for k in (1, 3, 5)]
        assert (pixels == expected).all(1).sum() > 1000, "the bar of what was too large"
    else:
        assert "<svg" in path.read_text()


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="ending in .png"):
        write_picture(picture_of(MISTAKES), tmp_path / "mistakes.doc")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as where it is not installed
    with pytest.raises(InputError, match="needs matplotlib"):
        write_picture(picture_of(MISTAKES), tmp_path / "mistakes.png")
    assert not list(tmp_path.iterdir())


def test_devices_come_from_dicom_files_or_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(np.zeros((1, 8, 8), np.uint8), 1, 0.1))
    dataset = pydicom.dcmread(path)
    dataset.Manufacturer, dataset.ManufacturerModelName = "ACME", "Scan 3"
    dataset.save_as(path)
    assert device_of(path) == "ACME Scan 3" == device_of(tmp_path)
    assert device_of(tmp_path / "a.png") == ""
    table = tmp_path / "devices.csv"
    table.write_text("id,class,device\nb,benign,ACME\nc,benign,\n")
    assert read_devices(table) == {"b": "ACME", "c": ""}
    table.write_text("name,device\nb,ACME\n")
    with pytest.raises(InputError, match="columns id and device"):
        read_devices(table)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Three images with a dark lesion; the outline of the first is too large, the second one's lesion was missed."""
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    journal, objects = Journal(folder / ".ultrarefiner" / "journal.sqlite"), {}
    rows, columns = np.mgrid[:100, :120]
    for name, radius in zip("abc", (30, 0, 20)):
        image = np.where((rows - 50) ** 2 + (columns - 60) ** 2 < 20**2, 20, 120).astype(np.uint8)
        image[0, 0] = ord(name)
        Image.fromarray(image).save(folder / f"{name}.png")
        masks = [((rows - 50) ** 2 + (columns - 60) ** 2 < r**2)[None] for r in (radius, 20)]
        sha256 = sha256_of(folder / f"{name}.png")
        journal.record_proposal(name, sha256, masks[0], model="ultrarefiner", version="v", reply={"frame": 0})
        journal.record_correction(name, sha256, masks[1])
        (folder / "labels" / "final" / f"{name}.nrrd").write_bytes(b"label")
        objects[name] = {"image": {"ext": ".png"}, "labels": {"final": {"ext": ".nrrd"}}}
    (folder / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    journal.close()
    return folder


def run(*words: object) -> str:
    command = [str(word) for word in ("journal", "mistakes", *words)]
    result = CliRunner().invoke(app, command, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    return result.output


def test_the_command_shows_the_table_and_draws(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "devices.csv").write_text("id,device\na,ACME\n")
    out = tmp_path / "mistakes.png"
    text = run("--studies", studies, "--out", out, "--devices", tmp_path / "devices.csv")
    for word in ("too large", "missed", "right", "size: medium", "echogenicity: very dark", "device: ACME"):
        assert word in text
    (row,) = (line for line in text.splitlines() if "device: ACME" in line)
    assert "100" in row and out.stat().st_size > 5000
    assert "picture" not in run("--studies", studies), "a table alone needs no matplotlib"


def test_the_command_says_what_is_missing(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="needs matplotlib"):
        run("--studies", studies, "--out", tmp_path / "m.png")
    assert "too large" in run("--studies", studies)
    (studies / ".ultrarefiner" / "journal.sqlite").unlink()
    with pytest.raises(InputError, match="no final label has an automatic proposal"):
        run("--studies", studies)
