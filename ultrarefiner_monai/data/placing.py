"""A label's voxels on its image's grid, by the two affines: what was flipped, swapped or cropped is undone."""

from __future__ import annotations

import numpy as np

from ultrarefiner_monai.data.study import Geometry


def onto(label: np.ndarray, affine: np.ndarray, geometry: Geometry) -> np.ndarray | None:
    """``label`` (I', J', K') on the study's grid, by the affines; None where they do not say how."""
    try:
        step = np.linalg.inv(affine) @ geometry.affine
    except np.linalg.LinAlgError:
        return None
    if not (np.abs(step) < 1e9).all():  # also NaN
        return None
    size, free, index = geometry.grid, [0, 1, 2], []
    places: list[int] = [-1, -1, -1]
    for axis in sorted(range(3), key=lambda a: size[a] == 1):  # single slices take the axis that is left
        direction = step[:3, axis]
        place = max(free, key=lambda p: abs(direction[p])) if size[axis] > 1 else free[0]
        if size[axis] > 1:
            unit = np.zeros(3)
            unit[place] = np.sign(direction[place])
            if np.abs(direction - unit).max() * size[axis] > 0.5:
                return None
        free.remove(place)
        places[axis] = place
    for axis, place in enumerate(places):
        if size[axis] == 1 and label.shape[place] == 1:
            index.append(np.zeros(1, int))
            continue
        start, sign = step[place, 3], (np.sign(step[place, axis]) if size[axis] > 1 else 0)
        if abs(start - round(start)) > 0.25:
            return None
        index.append(round(start) + int(sign) * np.arange(size[axis]))
    valid = [(line >= 0) & (line < label.shape[place]) for line, place in zip(index, places, strict=True)]
    if not all(line.any() for line in valid):
        return None
    turned = label.transpose(places)
    out = np.zeros(size, np.uint8)
    out[np.ix_(*valid)] = turned[np.ix_(*[line[ok] for line, ok in zip(index, valid, strict=True)])]
    return out if int(out.sum()) == int(label.sum()) else None
