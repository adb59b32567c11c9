"""Long axis, short axis and area of every lesion -> DICOM SR by TID 1500, in mm or, where the size is unknown, in pixels.

Each lesion on each frame is a planar measurement group (TID 1410) with an identity of its own. Its region is the frame
of the SEG where that shows this lesion alone, else the lesion's outline. Without a lesion there is nothing to report.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ultrarefiner_monai import __version__
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.seg import (
    MANUFACTURER,
    MODEL_NAME,
    UID_ROOT,
    Made,
    code,
    header_like,
    person_name,
    series_number,
    stamp,
    tracking_uid,
)
from ultrarefiner_monai.dicom.source import Source, SourceFrame, read_source
from ultrarefiner_monai.masks.measure import Measurement, measure
from ultrarefiner_monai.masks.postprocess import EIGHT

_PROCEDURE = ("47079000", "Ultrasonography of breast")
_NAMES = {
    "long_axis": ("103339001", "Long Axis"),
    "short_axis": ("103340004", "Short Axis"),
    "area": ("42798000", "Area"),
}
# UCUM has no pixel: an annotation, of length one, so an area counts pixels.
_UNITS = {"mm": (("mm", "millimeter"), ("mm2", "square millimeter")), "px": (("{pixels}", "pixels"),) * 2}


def make_sr(
    mask: np.ndarray,
    files: Sequence[Path],
    seg: Any = None,
    algorithm_name: str = "",
    version: str = "",
    *,
    made: Made = "AUTOMATIC",
    author: str = "",
    time: datetime | None = None,
) -> Any:
    """A highdicom ComprehensiveSR of all lesions of ``mask`` (T, H, W) on the frames of ``files``; None for no lesion.

    seg: what ``make_seg`` made of the same mask, to be referenced. author: person who drew or approved the outlines.
    Raises InputError as ``make_seg`` does.
    """
    import highdicom as hd

    source = read_source(files)
    mask = np.asarray(mask) > 0
    if mask.shape != source.shape:
        raise InputError(f"the mask is {mask.shape}, its DICOM files hold {source.shape} (frames, rows, columns)")
    algorithm = None
    if made != "MANUAL":
        algorithm = hd.sr.AlgorithmIdentification(algorithm_name or MODEL_NAME, version or __version__)
    groups = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        labels, count = ndimage.label(mask[k], EIGHT)
        for lesion in range(1, count + 1):
            single = count == 1 and seg is not None
            groups.append(_group(source, int(k), labels == lesion, lesion, seg if single else None, algorithm))
    if not groups:
        return None
    report = hd.sr.MeasurementReport(
        observation_context=_observers(author if made != "AUTOMATIC" else ""),
        procedure_reported=code(*_PROCEDURE),
        imaging_measurements=groups,
        title=code("126000", "Imaging Measurement Report", "DCM"),
    )
    evidence = [header_like(header) for header in source.headers] + ([seg] if seg is not None else [])
    sr: Any = hd.sr.ComprehensiveSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid=hd.UID(),
        series_number=series_number(source) + 1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        series_description=f"{MODEL_NAME} measurements",
    )
    sr.ManufacturerModelName, sr.SoftwareVersions = MODEL_NAME, __version__
    _true_classes(sr, source)
    stamp(sr, time or datetime.now())
    return sr


def _true_classes(sr: Any, source: Source) -> None:
    """highdicom was shown headers of a class that it knows; the references name the instances' own."""
    classes = {str(header.SOPInstanceUID): header.SOPClassUID for header in source.headers}
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in sr.get(keyword, None) or []:
            for series in study.ReferencedSeriesSequence:
                for item in series.ReferencedSOPSequence:
                    uid = str(item.ReferencedSOPInstanceUID)
                    item.ReferencedSOPClassUID = classes.get(uid, item.ReferencedSOPClassUID)


def _observers(author: str) -> Any:
    import highdicom as hd

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=UID_ROOT + "0", name=MODEL_NAME, manufacturer_name=MANUFACTURER, model_name=MODEL_NAME
    )
    person = None
    if person_name(author):
        person = hd.sr.ObserverContext(
            observer_type=code("121006", "Person", "DCM"),
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name=person_name(author)),
        )
    context = hd.sr.ObserverContext(
        observer_type=code("121007", "Device", "DCM"), observer_identifying_attributes=device
    )
    return hd.sr.ObservationContext(observer_person_context=person, observer_device_context=context)


def _group(source: Source, index: int, lesion: np.ndarray, number: int, seg: Any, algorithm: Any) -> Any:
    """The measurement group of one component ``lesion`` (H, W) of frame ``index``."""
    import highdicom as hd

    frame = source.frames[index]
    numbers = [frame.number] if frame.number else None
    reference: dict[str, Any] = {}
    if seg is not None:
        image = hd.sr.SourceImageForSegmentation(frame.header.SOPClassUID, frame.key[0], numbers)
        reference["referenced_segment"] = hd.sr.ReferencedSegmentationFrame(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            frame_number=_frame_of(seg, frame),
            segment_number=1,
            source_image=image,
        )
        # PS3.3 table 10-3: a frame or a segment, not both; highdicom writes both.
        del reference["referenced_segment"][0].ReferencedSOPSequence[0].ReferencedSegmentNumber
    else:
        reference["referenced_region"] = hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=contour(lesion),
            source_image=hd.sr.SourceImageForRegion(frame.header.SOPClassUID, frame.key[0], numbers),
        )
    name = f"frame {index + 1} lesion {number}"
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(tracking_uid(source, name), name),
        finding_type=code("52988006", "Lesion"),
        finding_category=code("49755003", "Morphologically Altered Structure"),
        finding_sites=[hd.sr.FindingSite(code("76752008", "Breast"))],
        algorithm_id=algorithm,
        measurements=_values(measure(lesion, source.spacings_mm[index])),
        **reference,
    )


def _values(found: Measurement) -> list[Any]:
    import highdicom as hd

    length, area = (code(*unit, scheme="UCUM") for unit in _UNITS[found.unit])
    return [
        hd.sr.Measurement(name=code(*name), value=round(float(getattr(found, key)), 3), unit=unit)
        for (key, name), unit in zip(_NAMES.items(), (length, length, area), strict=True)
    ]


def _frame_of(seg: Any, frame: SourceFrame) -> int:
    for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence, start=1):
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        if (str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber", 1))) == frame.key:
            return number
    raise ValueError("the SEG was made of another mask")


def contour(lesion: np.ndarray) -> np.ndarray:
    """(N, 2) xy of the closed outline along the outer edges of the pixels of one component (H, W), the last point the
    first, in DICOM's image coordinates: (0, 0) is the corner of the first pixel, not its middle."""
    inside = np.pad(ndimage.binary_fill_holes(lesion), 1)
    # Edges with the lesion on their right: corner (x, y) -> next corner; at a corner where two pixels touch, two leave.
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for dy, dx, start, step in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (0, 1)),
        (1, 0, (1, 1), (-1, 0)),
        (0, -1, (0, 1), (0, -1)),
    ):
        open_edge = inside & ~np.roll(inside, (-dy, -dx), (0, 1))
        for y, x in np.argwhere(open_edge):
            edges.setdefault((int(x) + start[0], int(y) + start[1]), []).append(step)
    first = min(edges, key=lambda corner: (corner[1], corner[0]))
    points, at, way = [first], first, (1, 0)
    while True:
        choices = edges[at]
        # Where pixels touch at a corner, going left joins them: one outline around both.
        step = choices[0] if len(choices) == 1 else next(s for s in choices if s == (way[1], -way[0]))
        choices.remove(step)
        if step != way and at != first:
            points.append(at)
        at, way = (at[0] + step[0], at[1] + step[1]), step
        if at == first:
            break
    return np.array([*points, first], float) - 1
