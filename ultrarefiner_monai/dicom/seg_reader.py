"""A DICOM Segmentation of any viewer -> a mask on our frames, and who made it when.

Frames are found by what they reference, whatever their order; those that the SEG leaves out are empty. Every segment
counts that is a lesion or a mass, or that its viewer did not specify: OHIF and 3D Slicer call a new segment "Tissue".
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.seg import MANUFACTURER, MODEL_NAME
from ultrarefiner_monai.dicom.source import Source, read_source
from ultrarefiner_monai.masks.label_values import check_share, from_fractions, kind_of_name

logger = logging.getLogger(__name__)

# Codes that viewers use by default: they say nothing about the content.
_UNSPECIFIED_CODES = ("85756007", "T-D0050", "49755003", "M-01000", "123037004", "T-D0010")


@dataclass(frozen=True)
class SegInfo:
    """What a SEG says about itself. time: aware, None where it does not say; made: the segments' algorithm types;
    referenced: SOPInstanceUIDs of all images that it names; referenced_series: those that it names by series."""

    sop_uid: str
    series_uid: str
    study_uid: str
    author: str
    time: datetime | None
    manufacturer: str
    model_name: str
    made: tuple[str, ...]
    algorithms: tuple[str, ...]
    referenced: frozenset[str]
    referenced_series: dict[str, frozenset[str]]
    description: str = ""

    @property
    def automatic(self) -> bool:
        """No person had a hand in it, as far as it says."""
        return bool(self.made) and set(self.made) == {"AUTOMATIC"}

    @property
    def ours(self) -> bool:
        """Written by this program, here or on another machine."""
        return (self.manufacturer, self.model_name) == (MANUFACTURER, MODEL_NAME)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a label's info."""
        values = {
            "author": self.author,
            "time": self.time.isoformat() if self.time else "",
            "manufacturer": self.manufacturer,
            "manufacturer_model_name": self.model_name,
            "series_uid": self.series_uid,
            "sop_uid": self.sop_uid,
            "algorithm_type": ",".join(sorted(set(self.made))),
            "description": self.description,
        }
        return {key: value for key, value in values.items() if value}


def seg_info(dataset: Any) -> SegInfo:
    """What ``dataset``, a pydicom Dataset of a SEG, says about itself. Raises InputError when it is no SEG."""
    if str(dataset.get("Modality", "")) != "SEG" or not dataset.get("SegmentSequence", None):
        raise InputError(f"expected a DICOM segmentation, got modality {dataset.get('Modality', '') or 'unknown'}")
    segments = dataset.SegmentSequence
    return SegInfo(
        sop_uid=str(dataset.get("SOPInstanceUID", "")),
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        study_uid=str(dataset.get("StudyInstanceUID", "")),
        author=_person(dataset),
        time=_time(dataset),
        manufacturer=str(dataset.get("Manufacturer", None) or ""),
        model_name=str(dataset.get("ManufacturerModelName", None) or ""),
        made=tuple(str(s.get("SegmentAlgorithmType", None) or "") for s in segments),
        algorithms=tuple(str(s.get("SegmentAlgorithmName", None) or "") for s in segments),
        referenced=frozenset(_referenced(dataset)),
        referenced_series=_by_series(dataset),
        description=str(dataset.get("ContentDescription", None) or dataset.get("SeriesDescription", None) or ""),
    )


def _person(dataset: Any) -> str:
    for keyword in ("ContentCreatorName", "OperatorsName"):
        value = dataset.get(keyword, None)
        if value:
            first = value if isinstance(value, str) or not hasattr(value, "__getitem__") else value[0]
            name = " ".join(part for part in str(first).split("=")[0].replace("^", " ").split())
            if name:
                return name
    return ""


def _time(dataset: Any) -> datetime | None:
    """The latest of the dates it carries; those of tomorrow and later are a wrong clock."""
    found, zone = [], _zone(dataset)
    for prefix in ("Content", "InstanceCreation", "Series"):
        day, clock = str(dataset.get(f"{prefix}Date", "") or ""), str(dataset.get(f"{prefix}Time", "") or "")
        try:
            moment = datetime.strptime(day + clock.split(".")[0].ljust(6, "0")[:6], "%Y%m%d%H%M%S")
        except ValueError:
            continue
        part = clock.partition(".")[2][:6]
        moment = moment.replace(microsecond=int(part.ljust(6, "0")) if part.isdigit() else 0)
        found.append(moment.replace(tzinfo=zone) if zone else moment.astimezone())
    found = [m for m in found if m < datetime.now(timezone.utc) + timedelta(days=1)]
    return max(found, default=None)


def _zone(dataset: Any) -> timezone | None:
    text = str(dataset.get("TimezoneOffsetFromUTC", "") or "")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit():
        return None
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:]))
    return timezone(-offset if text[0] == "-" else offset)


def _by_series(dataset: Any) -> dict[str, frozenset[str]]:
    return {
        str(series.get("SeriesInstanceUID", "")): frozenset(
            str(item.get("ReferencedSOPInstanceUID", ""))
            for item in series.get("ReferencedInstanceSequence", None) or []
        )
        for series in dataset.get("ReferencedSeriesSequence", None) or []
    }


def _referenced(dataset: Any) -> set[str]:
    """SOPInstanceUIDs of all images that it names, anywhere."""
    found = {uid for uids in _by_series(dataset).values() for uid in uids}
    for item in dataset.get("SourceImageSequence", None) or []:
        found.add(str(item.get("ReferencedSOPInstanceUID", "")))
    for group in dataset.get("PerFrameFunctionalGroupsSequence", None) or []:
        found |= {uid for uid, _ in _sources(group)}
    return found - {""}


def _sources(group: Any) -> list[tuple[str, int]]:
    """(SOPInstanceUID, frame number; 0: all or the only one) that one frame was drawn on."""
    found = []
    for derivation in group.get("DerivationImageSequence", None) or []:
        for item in derivation.get("SourceImageSequence", None) or []:
            uid, numbers = str(item.get("ReferencedSOPInstanceUID", "")), item.get("ReferencedFrameNumber", None)
            if str(item.get("SpatialLocationsPreserved", "YES")) != "YES":
                raise InputError("the SEG was resampled (SpatialLocationsPreserved is not YES): draw it on the frames")
            numbers = [0] if numbers is None else [numbers] if isinstance(numbers, (int, str)) else numbers
            found += [(uid, int(n)) for n in numbers]
    return found


# --- the mask ---------------------------------------------------------------------------------------------------------


def read_seg(
    dataset: Any, files: Sequence[Path], elsewhere: Collection[str] = (), limits: Limits | None = None
) -> np.ndarray:
    """(T, H, W) uint8, 1 inside a lesion, on the frames of ``files`` (one after the other, as the image has them).

    BINARY, FRACTIONAL (from a half on, where they are an outline and no probabilities: ``label_values``) and LABELMAP.
    elsewhere: SOPInstanceUIDs that belong to other images; frames drawn on those are left out. Raises InputError for a
    SEG of another size, without references, resampled, about something else than a lesion, damaged, drawn on frames that
    no longer exist, or that marks nearly all of a frame; not the last for our own, which somebody confirmed.
    """
    source = read_source(files)
    info = seg_info(dataset)
    chosen = _lesion_segments(dataset)
    placed = _placed(dataset, source, elsewhere)
    mask = np.zeros(source.shape, bool)
    if any(index is not None and segment in (*chosen, 0) for index, segment in placed):
        values = _pixels(dataset, len(placed), source.shape[1:], limits or Limits())
        counted = [k for k, (index, segment) in enumerate(placed) if index is not None and segment in (*chosen, 0)]
        if str(dataset.SegmentationType) == "LABELMAP":
            inside = np.isin(values[counted], sorted(chosen))
        else:
            inside = _outlines(dataset, values[counted])
        for k, marked in zip(counted, inside, strict=True):
            mask[placed[k][0]] |= marked.astype(bool)
    found = mask.astype(np.uint8)
    try:
        check_share(found, confirmed=info.ours)
    except InputError as error:
        raise InputError(f"the SEG: {error}") from error
    return found


def _outlines(dataset: Any, values: np.ndarray) -> np.ndarray:
    """Frames of a BINARY or FRACTIONAL SEG (N, H, W) -> uint8, 1 inside."""
    fractional = str(dataset.SegmentationType) == "FRACTIONAL"
    largest = int(dataset.get("MaximumFractionalValue", None) or 255) if fractional else 1
    if int(values.max(initial=0)) == 1:  # viewers that cannot pack bits call a mask of 0 and 1 a fraction of 255
        largest = 1
    warnings: list[str] = []
    try:
        mask = from_fractions(values, largest, warnings)
    except InputError as error:
        raise InputError(f"the SEG: {error}") from error
    for warning in warnings:
        logger.warning("SEG %s: %s", dataset.get("SOPInstanceUID", ""), warning)
    return mask


def _lesion_segments(dataset: Any) -> set[int]:
    lesions, unspecified, names = set(), set(), []
    for segment in dataset.SegmentSequence:
        number = int(segment.SegmentNumber)
        label = str(segment.get("SegmentLabel", "") or "")
        kind = (segment.get("SegmentedPropertyTypeCodeSequence", None) or [{}])[0]
        value, meaning = str(kind.get("CodeValue", "") or ""), str(kind.get("CodeMeaning", "") or "").lower()
        names.append(f"{label!r:.40} ({meaning or 'no type'})")
        if "lesion" in (kind_of_name(meaning), kind_of_name(label)):
            lesions.add(number)
        elif value in _UNSPECIFIED_CODES or kind_of_name(meaning) == "unsaid":
            unspecified.add(number)
    if not lesions | unspecified:
        raise InputError(f"none of the SEG's segments is a lesion or a mass: {', '.join(names)}")
    return lesions | unspecified


def _placed(dataset: Any, source: Source, elsewhere: Collection[str]) -> list[tuple[int | None, int]]:
    """(index of our frame or None, segment number; 0: a label map) of each frame of the SEG."""
    index = {frame.key: k for k, frame in enumerate(source.frames)}
    here = {uid for uid, _ in index}
    counts = {uid: sum(1 for u, _ in index if u == uid) for uid in here}
    labelmap = str(dataset.get("SegmentationType", "")) == "LABELMAP"
    shared = (dataset.get("SharedFunctionalGroupsSequence", None) or [{}])[0]
    out: list[tuple[int | None, int]] = []
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence", None) or [])
    if len(groups) != int(dataset.get("NumberOfFrames", None) or 1):
        raise InputError("the SEG is damaged: it does not describe each of its frames")
    only = _referenced(dataset)
    for group in groups:
        identification = (
            group.get("SegmentIdentificationSequence", None)
            or shared.get("SegmentIdentificationSequence", None)
            or [{}]
        )[0]
        segment = 0 if labelmap else int(identification.get("ReferencedSegmentNumber", 0) or 0)
        if not labelmap and not segment:
            raise InputError("the SEG is damaged: a frame belongs to no segment")
        found = set(_sources(group))
        if not found and len(only) == 1:  # one single frame was drawn on: it need not be said again
            found = {(next(iter(only)), 0)}
        if not found:
            raise InputError("the SEG does not say on which frames it was drawn (no Derivation Image Sequence)")
        inside = {key for key in found if key[0] in here}
        if not inside and all(uid in elsewhere for uid, _ in found):
            out.append((None, segment))
            continue
        places = set()
        for uid, number in inside or found:
            if uid in here and not number and counts[uid] > 1:
                raise InputError("the SEG names a cine, but not the frame of it that was drawn on")
            places.add(index.get((uid, max(number, 1))))
        if None in places:
            raise InputError("the SEG was drawn on frames that no longer exist")
        if len(places) > 1:
            raise InputError("a frame of the SEG refers to several frames: expected one each")
        out.append((places.pop(), segment))
    return out


def _pixels(dataset: Any, count: int, size: tuple[int, ...], limits: Limits) -> np.ndarray:
    """(frames, H, W), as stored."""
    height, width = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
    if (height, width) != tuple(size):
        raise InputError(f"the SEG is {width} x {height} pixels, its frames are {size[1]} x {size[0]}")
    limits.check("the SEG", height, width, count)
    kind = str(dataset.get("SegmentationType", ""))
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise InputError(f"a SEG of type {kind or 'unknown'}: expected BINARY, FRACTIONAL or LABELMAP")
    try:
        return dataset.pixel_array.reshape(count, height, width)
    except Exception as error:  # decoders raise anything
        raise InputError(f"the SEG's pixels cannot be decoded ({type(error).__name__}: {error})") from error
