"""Masks from files, always on the grid of the study that they belong to: .nrrd, .seg.nrrd, .nii.gz, .nii, .png, and TIFF,
BMP and JPEG, as clients and annotation tools save them. Written in ``writers``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.data.niftifile import nifti_affine, open_nifti
from ultrarefiner_monai.data.nrrdfile import nrrd_affine, read_nrrd_array
from ultrarefiner_monai.data.placing import onto
from ultrarefiner_monai.data.study import PICTURES, Geometry, Limits, Study, extension, frame_axes
from ultrarefiner_monai.data.writers import MASK_EXTENSIONS
from ultrarefiner_monai.types import InputError

logger = logging.getLogger(__name__)


def read_mask(path: str | Path, study: Study | None = None, limits: Limits | None = None) -> np.ndarray:
    """A label file -> (T, H, W) uint8, 1 where it is above 0: every value and every segment is the lesion.

    With ``study`` the label is brought to its frames: axes that were flipped or swapped, and the cropped extent that
    3D Slicer gives a .seg.nrrd, are undone by the two affines. A label without a usable position but of the same size
    is taken voxel by voxel. JPEG is lossy, so there only values above 127 count. Raises InputError for files that
    cannot be read and for sizes that do not fit.
    """
    path, limits = Path(path), limits or Limits()
    if not path.is_file():
        raise InputError(f"{path.name}: no such file")
    suffix = extension(path)
    try:
        if suffix in PICTURES:
            frames = _picture_mask(path, limits)
            _require_size(path, frames.shape, study)
            return frames
        if suffix in (".nii", ".nii.gz"):
            grid, affine = _nifti_mask(path, limits)
        elif suffix in (".nrrd", ".seg.nrrd"):
            grid, affine = _nrrd_mask(path, limits)
        else:
            raise InputError(f"{path.name}: expected a label as {' '.join(MASK_EXTENSIONS)}, got {suffix or 'none'}")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be read as a label: damaged or truncated ({type(error).__name__}: {error})"
        ) from error
    if study is None:
        return Geometry(grid.shape, affine, frame_axes(grid.shape)).to_frames(grid)  # type: ignore[arg-type]
    if grid.size == 1 and not grid.any():
        return np.zeros(study.shape, np.uint8)  # 3D Slicer's way to write a segmentation without a voxel
    moved, warning = onto(grid, affine, study.geometry)
    if moved is None:
        size, wanted = (" x ".join(map(str, s)) for s in (grid.shape, study.geometry.grid))
        raise InputError(f"{path.name} is {size} voxels and does not lie on its image of {wanted}")
    if warning:
        logger.warning("%s: %s", path.name, warning)
    return study.geometry.to_frames(moved)


def _require_size(path: Path, shape: tuple[int, ...], study: Study | None) -> None:
    if study is not None and shape != study.shape:
        (t, h, w), (st, sh, sw) = shape, study.shape
        raise InputError(f"{path.name} is {w} x {h} with {t} frame(s), its image is {sw} x {sh} with {st}")


def _picture_mask(path: Path, limits: Limits) -> np.ndarray:
    from PIL import Image, ImageSequence

    with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as image:
        count = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        limits.check(path.name, image.height, image.width, count)
        threshold = 127 if image.format == "JPEG" else 0
        pages = []
        for page in ImageSequence.Iterator(image):
            values = np.asarray(page)  # a palette's indices are its labels
            if page.mode in ("LA", "RGBA"):
                values = values[..., :-1]
            pages.append((values.max(axis=-1) if values.ndim == 3 else values) > threshold)
            if len(pages) == count:
                break
    return np.stack(pages).astype(np.uint8)


def _grid3(values: np.ndarray, path: Path) -> np.ndarray:
    long = [n for n in values.shape[2:] if n > 1]
    if values.ndim < 2 or len(long) > 1:
        raise InputError(f"{path.name}: expected a label of 2 or 3 axes, got {values.shape}")
    return values.reshape(*values.shape[:2], long[0] if long else 1)


def _nifti_mask(path: Path, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    image: Any = open_nifti(path, limits)
    if image.dataobj.dtype.kind not in "uif":
        raise InputError(f"{path.name}: expected numbers, got {image.dataobj.dtype}")
    if int(np.prod(image.shape, dtype=object)) > limits.total_pixels:
        raise InputError(f"{path.name}: {image.shape} is more than the limit of {limits.total_pixels} voxels")
    grid = _grid3(np.asanyarray(image.dataobj), path)
    return (grid > 0).astype(np.uint8), nifti_affine(image)


def _nrrd_mask(path: Path, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    values, header = read_nrrd_array(path, limits)
    kinds = [str(k) for k in header.get("kinds", [])]
    layer = next((a for a, kind in enumerate(kinds) if kind in ("list", "vector")), None)
    if layer is None and values.ndim == 4 and values.shape[-1] > 1:
        layer = 0
    affine = nrrd_affine(header, layer, values.ndim - (layer is not None))
    if layer is not None:
        values = values.max(axis=layer)
    return (_grid3(values, path) > 0).astype(np.uint8), affine
