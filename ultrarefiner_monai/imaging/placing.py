"""A label's voxels on its image's grid, by the two affines: what was flipped, swapped or cropped is undone.

Both affines are ITK's readings of the two files (3D Slicer shows the label over the image by them), so where they agree
voxel [i, j, k] of one is voxel [i, j, k] of the other.
"""

from __future__ import annotations

import numpy as np

from ultrarefiner_monai.core.image_file import Geometry

# A label may lie this far off the image's voxel centres (in voxels); beyond it, nobody can say which voxel is meant.
_OFF_CENTRE = 0.25
UNLIKE = "the label's position is unlike its image's: it is taken voxel by voxel, for it has the image's size"
SHIFTED = "the label has the size of its image but another position: it is moved to where its header says"
# One line of indices into the label for each axis of the image's grid, and the label's axis that it runs along.
_Plan = tuple[list[int], list[np.ndarray]]


def onto(
    label: np.ndarray, affine: np.ndarray, geometry: Geometry, segments: bool = False
) -> tuple[np.ndarray | None, str]:
    """``label`` (I', J', K') on the image's grid, and a warning for the user or "". None where it does not lie on it.

    affine: (4, 4) RAS from the label's index. segments: of a .seg.nrrd, which 3D Slicer crops. In this order:

    * a label that fills the image's grid, axes flipped and swapped at most, in ITK's frame of the image, or in another
      frame that the same file gives other programs (``Geometry.views``): voxel by voxel;
    * of the image's size with a position that says nothing (identity, or no matrix): voxel by voxel, with a warning;
    * a part of the grid, or shifted on it, by whole voxels (0.25 of one at most besides), with nothing marked outside:
      moved; with a warning where the size is the image's, so that a crop cannot explain it;
    * of the image's size, else (half a voxel off, another spacing): voxel by voxel, with a warning.

    A label that is larger than the image in any axis, or marks something outside of it, does not lie on it. Nor does a
    smaller one that begins where the image does and is none of ``segments``: it was resized, or is of another image.
    """
    same = label.shape == geometry.grid
    for view in (geometry.affine, *geometry.views):
        plan = _plan(label.shape, affine, view, geometry.grid)
        if plan is not None and _fills(plan, label.shape):
            return _taken(label, plan, geometry.grid), ""
    if same and _says_nothing(affine):
        return label, UNLIKE
    plan = _plan(label.shape, affine, geometry.affine, geometry.grid)
    if plan is not None and (same or segments or not _at_the_corner(plan, label.shape)):
        moved = _taken(label, plan, geometry.grid)
        if np.count_nonzero(moved) == np.count_nonzero(label):
            return moved, SHIFTED if same else ""
    return (label, UNLIKE) if same else (None, "")


def fills(shape: tuple[int, ...], affine: np.ndarray, geometry: Geometry) -> bool:
    """Whether a label has a voxel for each of its image's where ITK has them, axes flipped and swapped at most."""
    plan = _plan(shape, affine, geometry.affine, geometry.grid)
    return plan is not None and _fills(plan, shape)


def _says_nothing(affine: np.ndarray) -> bool:
    """Whether it is what programs write that know no position: identity, in RAS or LPS, or no usable matrix."""
    return not np.isfinite(affine).all() or np.allclose(np.abs(affine), np.eye(4), atol=1e-6)


def _plan(shape: tuple[int, ...], affine: np.ndarray, image: np.ndarray, size: tuple[int, int, int]) -> _Plan | None:
    """Where each voxel of the image's grid (``size``, affine ``image``) lies in the label; None where the axes are not
    parallel and of one spacing, the voxel centres do not meet, or an axis is longer than the image's."""
    try:
        step = np.linalg.inv(affine) @ image
    except np.linalg.LinAlgError:
        return None
    if not (np.abs(step) < 1e9).all():  # also NaN
        return None
    free, places, index = [0, 1, 2], [-1, -1, -1], []
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
        if shape[place] > size[axis]:
            return None
        if size[axis] == 1:  # one slice each: their depths mean nothing
            index.append(np.zeros(1, int))
            continue
        start, sign = step[place, 3], int(np.sign(step[place, axis]))
        if abs(start - round(start)) > _OFF_CENTRE:
            return None
        index.append(round(start) + sign * np.arange(size[axis]))
    return places, index


def _valid(plan: _Plan, shape: tuple[int, ...]) -> list[np.ndarray]:
    return [(line >= 0) & (line < shape[place]) for place, line in zip(*plan, strict=True)]


def _fills(plan: _Plan, shape: tuple[int, ...]) -> bool:
    return all(line.all() for line in _valid(plan, shape))


def _at_the_corner(plan: _Plan, shape: tuple[int, ...]) -> bool:
    """Whether a smaller label covers the first voxels of each axis that it does not fill: a crop hardly does."""
    return all(line[0] for line in _valid(plan, shape) if not line.all())


def _taken(label: np.ndarray, plan: _Plan, size: tuple[int, int, int]) -> np.ndarray:
    places, index = plan
    valid = _valid(plan, label.shape)
    out = np.zeros(size, label.dtype)
    picked = [line[ok] for line, ok in zip(index, valid, strict=True)]
    out[np.ix_(*valid)] = label.transpose(places)[np.ix_(*picked)]
    return out
