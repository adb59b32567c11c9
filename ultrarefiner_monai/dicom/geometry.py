"""Where a DICOM file's frames lie as ITK reads it, so as 3D Slicer shows it.

ITK reads DICOM with GDCM, which takes the pixels' size from another element for each SOP class (gdcmImageHelper.cxx:
GetSpacingValue, GetOriginValue, GetDirectionCosinesValue; itkGDCMImageIO.cxx for the ultrasound classes; ITK 5.4):

==============================================  ============================================  =======================
class                                           columns and rows                              frames
==============================================  ============================================  =======================
ultrasound, video endoscopy, hardcopy           PixelSpacing                                  1 mm
secondary capture                               PixelSpacing, else NominalScannedPixelSpacing  SpacingBetweenSlices (a)
CR, DX, MG, intra-oral, XA, RF                  ImagerPixelSpacing alone                      SpacingBetweenSlices (a)
RT image                                        ImagePlanePixelSpacing                        SpacingBetweenSlices (a)
CT, MR, NM, PET, ultrasound volume              PixelSpacing                                  SpacingBetweenSlices (a)
multi-frame secondary capture, enhanced CT, ..  functional groups alone                       their positions
endoscopy, whole slide, eye, video, ..          1 mm                                          FrameTime (a)
microscopy, photography                         PixelSpacing                                  FrameTime (a)
==============================================  ============================================  =======================

(a) else FrameTime of several frames, where FrameIncrementPointer says so; else 1 mm. What is missing is 1 mm.
Ultrasound regions, which know the true size, count nowhere here: see ``regions``. Files that ITK does not read (unknown
classes, spacings of 0) keep PixelSpacing where it is usable, else 1 mm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ultrarefiner_monai.core.image_file import RAS_FROM_LPS
from ultrarefiner_monai.dicom.header import numbers

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_FRAME_TIME = 0x00181063


class _Rule(NamedTuple):
    """spacing: the elements that count, in order. between, time: whether those count for the frames' distance."""

    spacing: tuple[str, ...] = ("PixelSpacing",)
    between: bool = False
    time: bool = True
    groups: bool = False


_ULTRASOUND = _Rule(time=False)
_CAPTURE = _Rule(("PixelSpacing", "NominalScannedPixelSpacing"), between=True)
_IMAGER = _Rule(("ImagerPixelSpacing",), between=True)
_PLANE = _Rule(("ImagePlanePixelSpacing",), between=True)
_SLICES = _Rule(between=True)
_NONE = _Rule(())
_LIGHT = _Rule()
_GROUPS = _Rule((), groups=True)
_CLASSES: dict[str, _Rule] = {
    **dict.fromkeys((_STORAGE + n for n in ("3", "3.1", "6", "6.1", "77.1.1.1")), _ULTRASOUND),
    **dict.fromkeys(("1.2.840.10008.5.1.1.29", "1.2.840.113619.4.26"), _ULTRASOUND),
    _STORAGE + "7": _CAPTURE,
    **dict.fromkeys((_STORAGE + n for n in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1")), _IMAGER),
    **dict.fromkeys((_STORAGE + n for n in ("12.1", "12.2", "12.3")), _IMAGER),
    _STORAGE + "481.1": _PLANE,
    **dict.fromkeys((_STORAGE + n for n in ("2", "4", "6.2", "20", "128", "481.2")), _SLICES),
    **dict.fromkeys((_STORAGE + n for n in ("77.1.1", "77.1.6", "77.1.2.1", "77.1.4.1")), _NONE),
    **dict.fromkeys((_STORAGE + n for n in ("77.1.5.1", "77.1.5.2", "12.1.1", "5")), _NONE),
    **dict.fromkeys((_STORAGE + n for n in ("77.1.2", "77.1.4")), _LIGHT),
    **dict.fromkeys((_STORAGE + n for n in ("7.1", "7.2", "7.3", "7.4", "2.1", "2.2", "4.1", "4.3", "4.4")), _GROUPS),
    **dict.fromkeys((_STORAGE + n for n in (*(f"13.1.{k}" for k in range(1, 6)), "14.1", "14.2", "66.4")), _GROUPS),
    **dict.fromkeys((_STORAGE + n for n in ("128.1", "130")), _GROUPS),
}
# A file without a class is taken for the usual one of its modality; without one that is known, for a capture.
_MODALITIES = {
    "US": _ULTRASOUND,
    **dict.fromkeys(("CR", "DX", "MG", "XA", "RF"), _IMAGER),
    **dict.fromkeys(("CT", "MR", "NM", "PT"), _SLICES),
    **dict.fromkeys(("ES", "XC", "GM"), _ULTRASOUND),
    "SM": _NONE,
}


def itk_affine(dataset: Any, count: int, known: tuple[float, float] | None = None) -> np.ndarray:
    """(4, 4) RAS from [column, row, frame], mm. ``known``: (row, column) mm stand instead of the file's."""
    rule = _rule_of(dataset)
    steps = _group_steps(dataset) if rule.groups else _steps(dataset, rule, count)
    if known is not None:
        steps = [known[1], known[0], 1.0]
    steps = [step if np.isfinite(step) and step != 0 else 1.0 for step in steps]
    local = np.eye(4)
    local[:3, :3] = _directions(dataset, rule) * steps
    local[:3, 3] = _origin(dataset, rule)
    return RAS_FROM_LPS @ local


def _rule_of(dataset: Any) -> _Rule:
    uid = str(dataset.get("SOPClassUID", "") or "")
    uid = uid or str(getattr(getattr(dataset, "file_meta", None), "MediaStorageSOPClassUID", "") or "")
    if not uid:
        return _MODALITIES.get(str(dataset.get("Modality", "") or ""), _CAPTURE)
    return _CLASSES.get(uid, _ULTRASOUND)


def _steps(dataset: Any, rule: _Rule, count: int) -> list[float]:
    """[column, row, frame] distances."""
    pair = next((found for keyword in rule.spacing if (found := numbers(dataset, keyword))), [])
    if rule is _ULTRASOUND and (len(pair) < 2 or not np.all(np.isfinite(pair)) or 0 in pair[:2]):
        pair = []  # ITK refuses such a file
    row, column = [*pair, *pair, 1.0, 1.0][:2] if len(pair) < 2 else pair[:2]
    between = numbers(dataset, "SpacingBetweenSlices") if rule.between else []
    if not between and rule.time and count > 1 and dataset.get("FrameIncrementPointer", None) == _FRAME_TIME:
        between = numbers(dataset, "FrameTime")
    return [column, row, between[0] if between else 1.0]


# --- functional groups ------------------------------------------------------------------------------------------------


def _items(dataset: Any, keyword: str) -> list[Any]:
    return list(dataset.get(keyword, None) or [])


def _first(dataset: Any, sequence: str, keyword: str) -> list[float]:
    """The element in the shared functional groups, or in those of the first frame."""
    for place in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in _items(dataset, place)[:1]:
            for item in _items(group, sequence)[:1]:
                if found := numbers(item, keyword):
                    return found
    return []


def _group_steps(dataset: Any) -> list[float]:
    spacing, depth = _first(dataset, "PixelMeasuresSequence", "PixelSpacing"), _group_depth(dataset)
    if len(spacing) < 2 or depth is None:
        return [1.0, 1.0, 1.0]
    return [spacing[1], spacing[0], depth]


def _group_depth(dataset: Any) -> float | None:
    """The distance of the frames along their normal; None where GDCM finds none: then no spacing counts at all."""
    frames = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if not frames:
        return None
    if len(frames) == 1:
        for group in _items(dataset, "SharedFunctionalGroupsSequence")[:1]:
            for item in _items(group, "PixelMeasuresSequence")[:1]:
                return next(iter(numbers(item, "SpacingBetweenSlices")), 1.0)
        return None
    right, down = np.reshape(_cosines(dataset, _GROUPS), (2, 3))
    positions = []
    for frame in frames:
        place = _items(frame, "PlanePositionSequence")
        position = numbers(place[0], "ImagePositionPatient") if place else []
        if len(position) != 3:
            return None
        positions.append(position)
    steps = np.diff(np.array(positions) @ np.cross(right, down))
    mean = float(steps.mean())
    if mean == 0:
        return 1.0  # a time series
    return mean if np.abs(steps - mean).max() <= 1e-3 else None


# --- orientation and origin -------------------------------------------------------------------------------------------


def _cosines(dataset: Any, rule: _Rule) -> list[float]:
    """Six direction cosines, [1, 0, 0, 0, 1, 0] where there are none, or none at right angles."""
    shared = _first(dataset, "PlaneOrientationSequence", "ImageOrientationPatient") if rule.groups else []
    if len(shared) == 6:
        return shared
    own = numbers(dataset, "ImageOrientationPatient")
    if len(own) == 6 and np.isfinite(own).all():
        right, down = np.reshape(own, (2, 3))
        lengths = np.linalg.norm(right), np.linalg.norm(down)
        if min(lengths) > 0:
            right, down = right / lengths[0], down / lengths[1]
            if abs(right @ down) < 1e-3:
                return [*right, *down]
    return [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def _directions(dataset: Any, rule: _Rule) -> np.ndarray:
    """(3, 3) LPS; columns: along a row of pixels, along a column, through the frames. Made orthogonal as ITK does."""
    right, down = np.reshape(_cosines(dataset, rule), (2, 3))
    through = np.cross(right, down)
    length = np.linalg.norm(through)
    if not np.isfinite(length) or length < 1e-6:
        return np.eye(3)
    through /= length
    right = np.cross(down, through)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(through, right), through], axis=1)


def _origin(dataset: Any, rule: _Rule) -> np.ndarray:
    if rule.groups:
        origin = _first(dataset, "PlanePositionSequence", "ImagePositionPatient")
    elif str(dataset.get("SOPClassUID", "") or "") == _STORAGE + "20":  # nuclear medicine: in the detector's own item
        origin = next(
            (numbers(item, "ImagePositionPatient") for item in _items(dataset, "DetectorInformationSequence")), []
        )
    else:
        origin = numbers(dataset, "ImagePositionPatient")
    origin = [*origin, 0.0, 0.0, 0.0][:3]
    return np.array(origin) if np.isfinite(origin).all() else np.zeros(3)
