"""What a radiologist reads off an outline: long axis, short axis, area; in mm where the pixel spacing is known.

The long axis is the greatest distance between two points of the outline (Feret), the short axis the longest chord
perpendicular to it, as one would set callipers. The outline runs through the middles of the pixels' outer edges, so a
single pixel measures 1 x 1 px and a bar of n pixels n x 1 px. All of it is about the largest component of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from ultrarefiner_monai.masks.postprocess import EIGHT, bounding_slices

Line = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Measurement:
    """Lengths in ``unit`` (mm or px), area in its square; the axes' end points as ((x, y), (x, y)), image frame."""

    long_axis: float
    short_axis: float
    area: float
    unit: str
    components: int
    long_axis_xy: Line | None = None
    short_axis_xy: Line | None = None

    def to_dict(self) -> dict:
        """Plain values for a JSON reply."""

        def plain(line: Line | None) -> list[list[float]] | None:
            return None if line is None else [[round(float(v), 2) for v in point] for point in line]

        return {
            "long_axis": round(self.long_axis, 3),
            "short_axis": round(self.short_axis, 3),
            "area": round(self.area, 3),
            "unit": self.unit,
            "area_unit": f"{self.unit}2",
            "components": self.components,
            "long_axis_xy": plain(self.long_axis_xy),
            "short_axis_xy": plain(self.short_axis_xy),
        }


def measure(mask: np.ndarray, spacing_mm: tuple[float, float] | None = None) -> Measurement:
    """Measure the largest component of ``mask`` (H, W), non-zero inside.

    spacing_mm: (row, column) distance of pixel centres in mm, or None: the result is in px. An empty mask has zeros.
    """
    if mask.ndim != 2:
        raise ValueError(f"measure expects a mask (H, W), got {mask.shape}")
    unit = "px" if spacing_mm is None else "mm"
    lesion = mask > 0
    where = bounding_slices(lesion)
    if where is None:
        return Measurement(0.0, 0.0, 0.0, unit, 0)
    labels, count = ndimage.label(lesion[where], EIGHT)
    sizes = np.bincount(labels.ravel())[1:]
    largest = int(sizes.argmax())
    inside = labels == largest + 1
    within = bounding_slices(inside)
    assert within is not None
    inside = inside[within]
    rows, columns = (1.0, 1.0) if spacing_mm is None else spacing_mm
    scale = np.array([columns, rows], float)
    points = _outline(inside) + [where[1].start + within[1].start, where[0].start + within[0].start]
    long_line, short_line = _axes(points * scale)
    return Measurement(
        long_axis=float(np.linalg.norm(long_line[1] - long_line[0])),
        short_axis=float(np.linalg.norm(short_line[1] - short_line[0])),
        area=float(sizes[largest]) * rows * columns,
        unit=unit,
        components=int(count),
        long_axis_xy=_line(long_line / scale),
        short_axis_xy=_line(short_line / scale),
    )


def _outline(inside: np.ndarray) -> np.ndarray:
    """(N, 2) xy: the middles of the four edges of the first and last pixel of each row and column; holds the hull."""
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    left, right = inside[rows].argmax(1), inside.shape[1] - 1 - inside[rows, ::-1].argmax(1)
    top, bottom = inside[:, columns].argmax(0), inside.shape[0] - 1 - inside[::-1, columns].argmax(0)
    x = np.concatenate([left - 0.5, right + 0.5, columns, columns])
    y = np.concatenate([rows, rows, top - 0.5, bottom + 0.5])
    return np.stack([x, y], 1).astype(float)


def _axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) xy, not on one line -> end points (2, 2) of the long axis and of the longest chord perpendicular to it."""
    hull = points[ConvexHull(points).vertices]
    distance = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    first, last = np.unravel_index(distance.argmax(), distance.shape)
    origin, length = hull[first], distance[first, last]
    along = (hull[last] - origin) / length
    across = np.array([-along[1], along[0]])
    # In these axes the hull is an upper and a lower chain over [0, length]; their distance is largest at a vertex.
    t, v = (hull - origin) @ along, (hull - origin) @ across
    at = np.sort(t)

    def chain(keep: np.ndarray) -> np.ndarray:
        order = np.argsort(t[keep], kind="stable")
        return np.interp(at, t[keep][order], v[keep][order])

    ends = np.isin(np.arange(len(hull)), [first, last])
    upper, lower = chain((v > 0) | ends), chain((v < 0) | ends)
    best = int((upper - lower).argmax())
    middle = origin + at[best] * along
    short = np.stack([middle + lower[best] * across, middle + upper[best] * across])
    return np.stack([origin, hull[last]]), short


def _line(points: np.ndarray) -> Line:
    """Two points (2, 2) as plain numbers, the left one first."""
    first, second = sorted((float(x), float(y)) for x, y in points)
    return first, second
