"""Masks to and from files, always on the grid of the study they belong to.

Written: .nrrd, .seg.nrrd, .nii.gz, .nii and .png, values exactly 0 and 1 in uint8, atomically, the same bytes for the
same mask. Read: those, and TIFF, BMP and JPEG, as clients and annotation tools save them.
"""

from __future__ import annotations

import gzip
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.data.nrrdfile import nrrd_affine, nrrd_value, read_nrrd_array
from ultrarefiner_monai.data.study import PICTURES, RAS_FROM_LPS, Geometry, Limits, Study, extension, frame_axes
from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.types import LABEL_NAME, InputError

logger = logging.getLogger(__name__)

MASK_EXTENSIONS = (".nrrd", ".seg.nrrd", ".nii.gz", ".nii", ".png")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it: beside it first, then one rename."""
    with replacing(path) as file:
        file.write(content)


def write_mask(path: str | Path, mask: np.ndarray, study: Study, compress: bool = True) -> None:
    """Write ``mask`` (T, H, W), or (H, W) of a single frame, 0 and 1 only, for a client that shows ``study``.

    The format follows the extension. NIfTI keeps shape and affine of a NIfTI study, NRRD those of a NRRD study;
    what has no axes of its own comes as (W, H, T) with LPS directions. ``compress`` is about .nrrd. Raises InputError
    for another extension or a .png of several frames, ValueError for a mask that does not fit the study.
    """
    content = encode_mask(extension(path), mask, study, compress)
    write_bytes(path, content)


def encode_mask(suffix: str, mask: np.ndarray, study: Study, compress: bool = True) -> bytes:
    """The bytes of ``write_mask``'s file."""
    mask = np.asarray(mask)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.shape != study.shape:
        raise ValueError(f"mask is {mask.shape}, the study's frames are {study.shape}")
    if mask.dtype != np.uint8:
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("a mask holds 0 and 1 only")
        mask = mask.astype(np.uint8)
    elif mask.size and int(mask.max()) > 1:
        raise ValueError(f"a mask holds 0 and 1 only, got {int(mask.max())}")
    if suffix == ".png":
        return _png(mask, study)
    grid = study.geometry.to_grid(mask)
    if suffix in (".nii", ".nii.gz"):
        return _nifti(grid, study, gz=suffix == ".nii.gz")
    if suffix in (".nrrd", ".seg.nrrd"):
        return _nrrd(grid, study, compress, segmentation=suffix == ".seg.nrrd")
    raise InputError(f"masks are written as {' '.join(MASK_EXTENSIONS)}, asked for {suffix or 'no extension'}")


def _png(mask: np.ndarray, study: Study) -> bytes:
    from PIL import Image

    if study.is_volume:
        raise InputError(f"{study.path.name} has {study.n_frames} frames: ask for .nrrd or .nii.gz instead of .png")
    buffer = io.BytesIO()
    Image.fromarray(mask[0]).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _nifti(grid: np.ndarray, study: Study, gz: bool) -> bytes:
    import nibabel

    geometry = study.geometry
    values = grid.reshape(geometry.shape) if study.kind == "nifti" else grid
    image: Any = nibabel.Nifti1Image(values, geometry.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)
    content = image.to_bytes()
    return gzip.compress(content, 6, mtime=0) if gz else content


def _nrrd(grid: np.ndarray, study: Study, compress: bool, segmentation: bool) -> bytes:
    geometry = study.geometry
    if geometry.nrrd_space is not None:
        values, space = grid.reshape(geometry.shape), geometry.nrrd_space
    else:
        local = RAS_FROM_LPS @ geometry.affine
        values = grid
        space = {"space": "left-posterior-superior", "space directions": local[:3, :3].T, "space origin": local[:3, 3]}
    lines = ["NRRD0004", "type: uint8", f"dimension: {values.ndim}"]
    lines += [f"{key}: {nrrd_value(key, value)}" for key, value in space.items() if key in ("space", "space dimension")]
    lines += [f"sizes: {' '.join(map(str, values.shape))}"]
    lines += [f"kinds: {' '.join(['domain'] * values.ndim)}", "endian: little"]
    lines += [f"encoding: {'gzip' if compress else 'raw'}"]
    lines += [
        f"{key}: {nrrd_value(key, value)}" for key, value in space.items() if key not in ("space", "space dimension")
    ]
    if segmentation:
        fields = {"ID": f"Segment_{LABEL_NAME}", "Name": LABEL_NAME, "LabelValue": "1", "Layer": "0"}
        lines += [f"Segment0_{key}:={value}" for key, value in fields.items()]
    raw = np.asfortranarray(values).tobytes(order="F")
    return ("\n".join(lines) + "\n\n").encode() + (gzip.compress(raw, 6, mtime=0) if compress else raw)


# --- reading ----------------------------------------------------------------------------------------------------------


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
    moved = _onto(grid, affine, study.geometry)
    if moved is None:
        if grid.shape != study.geometry.grid:
            size, wanted = (" x ".join(map(str, s)) for s in (grid.shape, study.geometry.grid))
            raise InputError(f"{path.name} is {size} voxels and does not lie on its image of {wanted}")
        if not np.allclose(affine, study.geometry.affine, atol=1e-3):
            logger.warning("%s: position unlike its image's; taken voxel by voxel", path.name)
        moved = grid
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
    import nibabel

    image: Any = nibabel.load(path)
    if image.dataobj.dtype.kind not in "uif":
        raise InputError(f"{path.name}: expected numbers, got {image.dataobj.dtype}")
    if int(np.prod(image.shape, dtype=object)) > limits.total_pixels:
        raise InputError(f"{path.name}: {image.shape} is more than the limit of {limits.total_pixels} voxels")
    grid = _grid3(np.asanyarray(image.dataobj), path)
    return (grid > 0).astype(np.uint8), np.asarray(image.affine, float)


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


def _onto(label: np.ndarray, affine: np.ndarray, geometry: Geometry) -> np.ndarray | None:
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
