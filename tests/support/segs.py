"""DICOM series and masks for the tests of what is stored in a PACS."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from ultrarefiner_monai.datasets.samples import dicom_bytes

SPACING = 0.08


def require(program: str, package: str) -> None:
    """Skip where a program is missing; fail in CI, where it may not be left out."""
    if not shutil.which(program):
        text = f"this test needs {program}: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def picture(seed: int, count: int = 1, size: tuple[int, int] = (61, 83)) -> np.ndarray:
    """(T, H, W); odd sizes: the bits of a SEG's frames do not end on a byte."""
    return np.random.default_rng(seed).integers(0, 255, (count, *size), dtype=np.uint8)


def cine(folder: Path, count: int = 5, number: int = 1) -> list[Path]:
    """One multi-frame instance."""
    path = folder / "cine.dcm"
    path.write_bytes(dicom_bytes(picture(number, count), number, SPACING))
    return [path]


def stills(folder: Path, count: int = 3, number: int = 2) -> list[Path]:
    """A series of single-frame instances."""
    first = pydicom.dcmread(io.BytesIO(dicom_bytes(picture(number), number, SPACING)))
    paths = []
    for k in range(count):
        ds: Any = pydicom.dcmread(io.BytesIO(dicom_bytes(picture(number + k), 100 * number + k, SPACING)))
        ds.StudyInstanceUID, ds.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
        ds.PatientID, ds.PatientName, ds.InstanceNumber = first.PatientID, first.PatientName, k + 1
        paths.append(folder / f"still{k}.dcm")
        ds.save_as(paths[-1])
    return paths


def lesions(count: int, size: tuple[int, int] = (61, 83)) -> np.ndarray:
    """(T, H, W): another rectangle in every second frame."""
    mask = np.zeros((count, *size), np.uint8)
    for k in range(0, count, 2):
        mask[k, 10 + k : 20 + 2 * k, 30 : 50 + 3 * k] = 1
    return mask


def change(path: Path, **values: Any) -> Path:
    """Other values in the header; None removes one."""
    ds = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    ds.save_as(path)
    return path


def viewers_seg(
    mask: np.ndarray,
    files: list[Path],
    kind: tuple[str, str] = ("85756007", "Tissue"),
    made: str = "MANUAL",
    **changes: Any,
) -> Any:
    """A SEG as another program writes it: ours with another origin. ``kind``: (code, meaning) of the segment."""
    from ultrarefiner_monai.dicom.seg import make_seg

    ds: Any = pydicom.Dataset(make_seg(mask, files, made=made, author="Roe^Jane"))  # type: ignore[arg-type]
    ds.file_meta = make_meta(ds)
    ds.Manufacturer, ds.ManufacturerModelName = "A viewer's maker", "Viewer"
    segment = ds.SegmentSequence[0]
    segment.SegmentLabel = "Segment 1"
    item = segment.SegmentedPropertyTypeCodeSequence[0]
    item.CodeValue, item.CodeMeaning = kind
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def make_meta(ds: Any) -> Any:
    meta: Any = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return meta
