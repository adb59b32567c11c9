"""DICOM files with pixels -> ``ImageFile``. Meant for ultrasound; other modalities are read with a warning.

Spacing, for measuring: the tissue region of SequenceOfUltrasoundRegions (PS3.3 C.8.5.5), then PixelSpacing,
ImagerPixelSpacing, the shared functional groups. Geometry, for placing: what ITK's reader (so 3D Slicer) gives the same
file (``dicom.geometry``). It does **not** know the ultrasound regions; a mask that carried their spacing would lie shrunken
in the corner of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import (
    IN_PIXELS,
    NO_SIZE,
    Geometry,
    ImageFile,
    Limits,
    plausible_spacing,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.core.views import coded_view
from ultrarefiner_monai.dicom.file import not_an_image, open_dicom
from ultrarefiner_monai.dicom.geometry import itk_affine
from ultrarefiner_monai.dicom.header import drop_damaged, element, fill_in, frames_said, transfer_syntax
from ultrarefiner_monai.dicom.pixels import frame_loader
from ultrarefiner_monai.dicom.regions import region_spacing_mm, tissue_regions
from ultrarefiner_monai.dicom.values import Scale


def read_dicom(
    path: Path, limits: Limits, region_spacing: bool = False, decode: bool = True, scale: Scale | None = None
) -> ImageFile:
    """One DICOM file; frames of a cine are decoded when they are asked for. Raises InputError (see ``read_image_file``).

    region_spacing: place the grid by the pixels' known size instead of as ITK does (``series.read_series``).
    decode: also decode a single frame at once; without it a damaged one raises at ``frame``, as a cine's.
    scale: that of a series, whose files are to agree in their greys (``dicom.values``).
    """
    dataset = open_dicom(path)
    passed_over = getattr(dataset, "passed_over", ())
    warnings = [f"the sequence {tag} is broken: it is not used" for tag in passed_over]
    drop_damaged(dataset, warnings)
    modality = str(element(dataset, "Modality", "unknown"))
    kind = not_an_image(dataset)
    if kind is not None:
        raise InputError(f"{path.name} is {kind}: expected an image")
    if "PixelData" not in dataset:
        raise InputError(f"{path.name} holds no pixels (modality {modality}), or is cut off before them")
    fill_in(path.name, dataset, warnings)
    height, width, count = int(dataset.Rows), int(dataset.Columns), frames_said(dataset, warnings)
    limits.check(path.name, height, width, count)
    transfer_syntax(path.name, dataset, warnings)
    if modality != "US":
        warnings.append(f"modality {modality}: made for breast ultrasound (US)")
    load = frame_loader(path.name, dataset, count, warnings, scale)
    if count == 1 and decode:
        only = load(0)  # a damaged picture must be refused now, not at the first click
        load = _same(only)
    said = len(warnings)
    spacing = pixel_spacing_mm(dataset, warnings)
    if spacing is None and len(warnings) == said:
        warnings.append(NO_SIZE)
    geometry = _geometry(dataset, height, width, count, spacing if region_spacing else None)
    patient = str(element(dataset, "PatientID", ""))
    regions = tissue_regions(dataset, height, width, warnings)
    kept = height * width * 4 if count == 1 and decode else len(dataset.PixelData)
    return ImageFile(
        path, "dicom", height, width, count, geometry, load, spacing, patient, warnings, regions, kept_bytes=kept,
        view=view_of(dataset),
    )  # fmt: skip


def view_of(dataset: Any) -> str:
    """How the probe was held (``core.views.coded_view``), as ViewCodeSequence (PS3.3 C.8.5.6) and its modifiers say; empty without
    them. What is damaged says nothing."""
    said: list[tuple[str, str]] = []
    try:
        for entry in dataset.get("ViewCodeSequence", None) or []:
            for coded in (*(entry.get("ViewModifierCodeSequence", None) or []), entry):
                said.append((str(coded.get("CodeValue", None) or ""), str(coded.get("CodeMeaning", None) or "")))
    except Exception:  # pydicom decodes when it is asked, and has many errors
        pass
    return coded_view(said)


def _same(frame: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda index: frame.copy()


# --- spacing and geometry ---------------------------------------------------------------------------------------------


def pixel_spacing_mm(dataset: Any, warnings: list[str]) -> tuple[float, float] | None:
    """(row, column) distance of pixel centres in mm: ultrasound regions, PixelSpacing, ImagerPixelSpacing, functional
    groups; None where none is there or plausible, with a warning for what is not."""
    said: list[str] = []
    spacing = region_spacing_mm(dataset, said) or _other_spacing_mm(dataset, said)
    warnings.extend(text if spacing is None else text.replace(IN_PIXELS, ": not used") for text in said)
    return spacing


def _other_spacing_mm(dataset: Any, warnings: list[str]) -> tuple[float, float] | None:
    places = [dataset]
    for groups in dataset.get("SharedFunctionalGroupsSequence", None) or []:
        places.extend(groups.get("PixelMeasuresSequence", None) or [])
    for place in places:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
            pair = _pair(place, keyword)
            spacing = plausible_spacing(*pair, keyword, warnings) if pair else None
            if spacing:
                return spacing
    return None


def _pair(dataset: Any, keyword: str) -> tuple[Any, Any] | None:
    """The two values of an element, NaN where there are not two; None where it is missing or empty. They may be text."""
    try:
        value = dataset.get(keyword, None)
        if value is None or value == "":
            return None
        row, column = value
    except (TypeError, ValueError):  # pydicom converts when it is asked: some writers use a decimal comma
        return math.nan, math.nan
    return row, column


def _geometry(dataset: Any, height: int, width: int, count: int, known: tuple[float, float] | None = None) -> Geometry:
    """ITK's view of the file (``dicom.geometry``). A ``known`` (row, column) spacing stands instead of the file's."""
    return Geometry((width, height, count), itk_affine(dataset, count, known))
