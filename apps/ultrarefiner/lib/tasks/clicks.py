"""From what clients send (voxels [i, j, k], roi, frame) to clicks of the core. The border where wrong input is refused.

i is the column (x), j the row (y) and k the frame, all from 0; a volume whose frames lie along another axis says so in
``axes`` (its column, row and frame axis).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ultrarefiner_monai.core.types import Clicks, InputError

ALL_FRAMES = -1
MOST_POINTS = 1000  # on a frame
Axes = tuple[int, int, int]
_LARGEST = 1e12


def frame_of(request: dict[str, Any], n_frames: int) -> int | None:
    """The one frame that is asked for, None for all of them (missing, null, "", "all", -1)."""
    value = request.get("frame")
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,9}", value.strip()):
        value = int(value)
    if value is None or value in ("", "all") or (value == ALL_FRAMES and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or abs(value) > 1e9:
        raise InputError(f"frame must be a whole number below {n_frames}, got {value!r:.80}")
    return _frame_index(value, n_frames, "frame")


def requested_clicks(
    request: dict[str, Any], frames: int, height: int, width: int, axes: Axes = (0, 1, 2)
) -> dict[int, Clicks]:
    """frame -> the user's clicks and box on it, for each frame that has any.

    ``foreground``, ``background``: lists of [i, j] or [i, j, k]. ``roi``: [imin, imax, jmin, jmax(, kmin, kmax)], the
    ends in any order. Raises InputError for wrong types, NaN, and what lies more than a pixel outside the image.
    """
    asked = frame_of(request, frames)
    found: dict[int, dict[str, list]] = {}
    for name in ("foreground", "background"):
        for point in _list(request.get(name), name, MOST_POINTS * frames):
            k, xy = _point(_reorder(point, axes, 1), name, asked, frames, height, width)
            own = found.setdefault(k, {}).setdefault(f"{name}_xy", [])
            own.append(xy)
            if len(own) > MOST_POINTS:
                raise InputError(f"{name} has more than {MOST_POINTS} points on frame {k}; at most so many are taken")
    boxes = _boxes(_reorder(_list(request.get("roi"), "roi"), axes, 2), asked, frames, height, width)
    return {
        k: Clicks(**{name: tuple(points) for name, points in found.get(k, {}).items()}, box_xyxy=boxes.get(k))
        for k in sorted(found.keys() | boxes.keys())
    }


def as_sent(clicks: Mapping[int, Clicks], axes: Axes = (0, 1, 2)) -> dict[str, list[list[float]]]:
    """frame -> clicks, as a client sends them: ``foreground`` and ``background``, lists of [i, j, k]."""
    found: dict[str, list[list[float]]] = {"foreground": [], "background": []}
    for k, given in clicks.items():
        for name, points in (("foreground", given.foreground_xy), ("background", given.background_xy)):
            for x, y in points:
                voxel = [0.0, 0.0, 0.0]
                for axis, value in zip(axes, (x, y, float(k))):
                    voxel[axis] = value
                found[name].append(voxel)
    return found


def _list(value: Any, name: str, most: int = MOST_POINTS) -> list:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list, got {type(value).__name__} {value!r:.80}")
    if len(value) > most:
        raise InputError(f"{name} has {len(value)} entries; at most {most} are taken")
    return value


def _reorder(values: Any, axes: Axes, each: int) -> Any:
    """[i, j, k] (or the pairs of a roi, ``each`` 2) in the file's axes -> column, row, frame; anything else stays."""
    if axes == (0, 1, 2) or not isinstance(values, list) or len(values) != 3 * each:
        return values
    return [values[each * axis + n] for axis in axes for n in range(each)]


def _numbers(value: Any, name: str, lengths: tuple[int, ...]) -> list[float]:
    if not isinstance(value, list) or len(value) not in lengths:
        raise InputError(f"{name}: expected a list of {' or '.join(map(str, lengths))} numbers, got {value!r:.120}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise InputError(f"{name}: expected numbers, got {number!r:.40} in {value!r:.120}")
        if not -_LARGEST <= number <= _LARGEST:  # NaN is not between them; a whole number may be beyond any float
            raise InputError(f"{name}: {value!r:.120} has a coordinate that is not finite, or beyond any image")
    return [float(number) for number in value]


def _point(
    point: Any, name: str, asked: int | None, frames: int, height: int, width: int
) -> tuple[int, tuple[float, float]]:
    i, j, *rest = _numbers(point, name, (2, 3))
    if not (-1 <= i <= width and -1 <= j <= height):
        raise InputError(
            f"{name} click [{i:g}, {j:g}] lies outside the image of {width} x {height} pixels; "
            f"i must be in 0..{width - 1} and j in 0..{height - 1}"
        )
    if rest:
        k = _frame_index(rest[0], frames, f"{name} click {point}: k")
    elif asked is not None or frames == 1:
        k = asked or 0
    else:
        raise InputError(f"{name} click {point} needs its frame: [i, j, k] with k in 0..{frames - 1}")
    return k, (min(max(i, 0.0), width - 1.0), min(max(j, 0.0), height - 1.0))


def _frame_index(value: float, frames: int, what: str) -> int:
    if not -0.5 <= value < frames - 0.5:
        raise InputError(f"{what} must be in 0..{frames - 1}, got {value:g}")
    return math.floor(value + 0.5)


def _boxes(
    roi: list, asked: int | None, frames: int, height: int, width: int
) -> dict[int, tuple[float, float, float, float]]:
    """The box on each frame that the roi reaches; what sticks out of the image is cut off (a 3D roi often does)."""
    if not roi:
        return {}
    ends = _numbers(roi, "roi", (4, 6))
    (x0, x1), (y0, y1) = sorted(ends[:2]), sorted(ends[2:4])
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise InputError(f"roi {roi} lies outside the image of {width} x {height} pixels")
    box = (max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0))
    if frames == 1:
        return {0: box}
    if len(ends) == 4:
        return dict.fromkeys(range(frames) if asked is None else [asked], box)
    low, high = sorted(ends[4:])
    reached = [k for k in range(frames) if low - 0.5 <= k <= high + 0.5]
    if not reached:
        raise InputError(f"roi {roi} reaches none of the frames 0..{frames - 1}")
    return dict.fromkeys(reached, box)
