"""How the probe was held, as DICOM's View Code says it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file


def coded(meaning: str, value: str = "1", modifiers: tuple[str, ...] = ()) -> Dataset:
    entry = Dataset()
    entry.CodeValue, entry.CodingSchemeDesignator, entry.CodeMeaning = value, "SCT", meaning
    if modifiers:
        entry.ViewModifierCodeSequence = [coded(m) for m in modifiers]
    return entry


def written(path: Path, sequence: list[Dataset] | None) -> Path:
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(np.full((1, 40, 50), 90, np.uint8), 1, 0.08)))
    if sequence is not None:
        dataset.ViewCodeSequence = sequence
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("sequence", "view"),
    [
        (None, ""),
        ([], ""),
        ([coded("Antiradial")], "anti-radial"),
        ([coded("Transverse", "62824007")], "transverse"),
        ([coded("Breast", modifiers=("Radial",))], "radial"),
        ([Dataset(), coded("Sagittal")], "longitudinal"),
        ([coded("Transverse", "62824007", modifiers=("Left",))], "transverse"),
    ],
)
def test_the_view_is_read(tmp_path: Path, sequence: Any, view: str) -> None:
    assert read_image_file(written(tmp_path / "a.dcm", sequence)).view == view


def test_a_damaged_one_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.dcm", [coded("Radial")])
    real = Dataset.get

    def get(self: Dataset, key: Any, default: Any = None) -> Any:
        if key == "ViewCodeSequence":
            raise NotImplementedError("a VR that is none")
        return real(self, key, default)

    monkeypatch.setattr(Dataset, "get", get)
    assert read_image_file(path).view == ""


def test_a_series_of_several_views_has_none(tmp_path: Path) -> None:
    for name, views in (("same", ("Radial", "Radial")), ("two", ("Radial", "Antiradial"))):
        (tmp_path / name).mkdir()
        for k, view in enumerate(views, 1):
            file = dicom_bytes(np.full((1, 40, 50), 90, np.uint8), 1, 0.08, instance=k)
            dataset = pydicom.dcmread(io.BytesIO(file))
            dataset.ViewCodeSequence = [coded(view)]
            dataset.save_as(tmp_path / name / f"{k}.dcm")
    assert read_image_file(tmp_path / "same").view == "radial" and read_image_file(tmp_path / "two").view == ""


def test_pictures_have_none(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((40, 50), 90, np.uint8)).save(tmp_path / "a.png")
    assert read_image_file(tmp_path / "a.png").view == ""
