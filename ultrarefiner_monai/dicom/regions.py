"""The ultrasound regions of a DICOM file (SequenceOfUltrasoundRegions, PS3.3 C.8.5.5): which part of the screen is what.

A screen may hold B-mode beside Doppler, or two B-mode pictures side by side. Lesions are looked for in the B-mode
regions only. A colour box that lies **on** a B-mode region hides nothing of it: the tissue below is still outlined.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import Region, plausible_spacing

_TISSUE, _CENTIMETRES = 1, 3
_TWO_D, _M_MODE, _SPECTRAL = 1, 2, 3
_CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
_SMALLEST = 16  # pixels a side; smaller ones are icons or mistakes
_BORDER = 2  # pixels that a region of the whole screen may leave out
_Box = tuple[int, int, int, int]  # x0, y0, x1, y1, the last two behind the region


def tissue_regions(dataset: Any, height: int, width: int, warnings: list[str]) -> tuple[Region, ...]:
    """The B-mode regions of a screen of ``height`` x ``width``, top left first, never overlapping; () = all of it.

    They are cut to the screen, joined where they overlap, and give way to a spectrum or an M-mode drawn over them.
    Where regions are named but none of them is usable B-mode, the whole screen counts, with a warning.
    """
    named = list(dataset.get("SequenceOfUltrasoundRegions", None) or [])
    boxes, traces = [], []
    for item in named:
        box = _box(item, height, width)
        if box is None:
            continue
        if item.get("RegionSpatialFormat") in (_M_MODE, _SPECTRAL):
            traces.append(box)
        elif (item.get("RegionSpatialFormat"), item.get("RegionDataType")) == (_TWO_D, _TISSUE):
            boxes.append(box)
    boxes = _joined(boxes)
    for trace in traces:
        boxes = [_without(box, trace) for box in boxes]
    boxes = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= _SMALLEST]
    if not boxes:
        if named:
            warnings.append("none of the ultrasound regions is a usable B-mode region: the whole screen is used")
        return ()
    if len(boxes) == 1:
        x0, y0, x1, y1 = boxes[0]
        if max(x0, y0, width - x1, height - y1) <= _BORDER:
            return ()
    return tuple((slice(y0, y1), slice(x0, x1)) for x0, y0, x1, y1 in sorted(boxes, key=lambda b: (b[1], b[0])))


def region_spacing_mm(dataset: Any, warnings: list[str]) -> tuple[float, float] | None:
    """(row, column) mm of the largest two-dimensional tissue region that is measured in centimetres, or None."""
    found = []
    for region in dataset.get("SequenceOfUltrasoundRegions", None) or []:
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        kind = (region.get("RegionSpatialFormat"), region.get("RegionDataType"))
        if units != (_CENTIMETRES, _CENTIMETRES) or kind != (_TWO_D, _TISSUE):
            continue
        row, column = region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")
        spacing = plausible_spacing(_times_ten(row), _times_ten(column), "an ultrasound region's spacing", warnings)
        if spacing:
            found.append((_area(region), spacing))
    if not found:
        return None
    found.sort(key=lambda item: item[0], reverse=True)
    if any(not np.allclose(spacing, found[0][1], rtol=0.01) for _, spacing in found):
        warnings.append("the ultrasound regions differ in spacing: lengths are those of the largest region")
    return found[0][1]


def _corners(region: Any) -> _Box | None:
    try:
        x0, y0, x1, y1 = (int(region.get(keyword)) for keyword in _CORNERS)
    except (TypeError, ValueError, OverflowError):  # missing, several values, infinite
        return None
    return x0, y0, x1, y1


def _area(region: Any) -> int:
    x0, y0, x1, y1 = _corners(region) or (0, 0, 0, 0)
    return max(0, x1 - x0) * max(0, y1 - y0)


def _times_ten(value: Any) -> float | None:
    try:
        return None if value is None else float(value) * 10
    except (TypeError, ValueError):
        return math.nan


def _box(region: Any, height: int, width: int) -> _Box | None:
    corners = _corners(region)
    if corners is None:
        return None
    x0, y0, x1, y1 = corners
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)  # the file's ends are inside
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _joined(boxes: list[_Box]) -> list[_Box]:
    """Overlapping boxes become the one around both: no pixel belongs to two regions."""
    out: list[_Box] = []
    for box in boxes:
        while (other := next((o for o in out if _overlap(o, box)), None)) is not None:
            out.remove(other)
            box = (min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3]))
        out.append(box)
    return out


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _without(box: _Box, trace: _Box) -> _Box:
    """The largest part of ``box`` above, below, left or right of ``trace``."""
    if not _overlap(box, trace):
        return box
    x0, y0, x1, y1 = box
    parts = [(x0, y0, x1, trace[1]), (x0, trace[3], x1, y1), (x0, y0, trace[0], y1), (trace[2], y0, x1, y1)]
    return max(parts, key=lambda p: max(0, p[2] - p[0]) * max(0, p[3] - p[1]))
