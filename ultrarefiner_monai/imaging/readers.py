"""Image files -> ``ImageFile``: PNG, JPEG, TIFF, BMP, NIfTI and NRRD here, DICOM in ``dicom``, GIF, WebP and videos in
``moving``. ``mask_files`` reads masks, ``writers`` writes them.

Whatever cannot be read ends in ``InputError`` with the file's name, never in a decoder's own exception. Pixels are used
as they are stored: an EXIF orientation is **not** applied, since 3D Slicer and ITK do not apply it either and the mask
must lie on the grid that the client shows. The decoders are imported where they are used.
"""

from __future__ import annotations

import logging
import warnings as python_warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import (
    PICTURES,
    Geometry,
    ImageFile,
    Limits,
    extension,
    flat_geometry,
    frame_axes,
    luminance,
    plausible_spacing,
    stored_frames,
    to_unit,
    usable_affine,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.emptiness import empty_warnings
from ultrarefiner_monai.imaging.mask_files import decoder_words, read_mask
from ultrarefiner_monai.imaging.moving import MOVING, read_moving
from ultrarefiner_monai.imaging.nifti import nifti_affine, nifti_space, nifti_views, open_nifti
from ultrarefiner_monai.imaging.nrrd import VECTOR_KINDS, nrrd_affine, read_nrrd_array, space_fields
from ultrarefiner_monai.imaging.pictures import (
    dark_warnings,
    is_halved,
    open_picture,
    picture_spacing,
    stored_numbers,
    white_is_zero,
)
from ultrarefiner_monai.imaging.writers import write_mask

__all__ = ["IMAGE_EXTENSIONS", "Limits", "ImageFile", "extension", "read_mask", "read_image_file", "write_mask"]

logger = logging.getLogger(__name__)

# What the server may offer, in lower case; the case of a file's name does not matter.
IMAGE_EXTENSIONS = (*PICTURES, *MOVING, ".nii", ".nii.gz", ".nrrd", ".dcm", ".dicom")


def read_image_file(path: str | Path, limits: Limits | None = None) -> ImageFile:
    """Read one image file. Raises InputError when it is missing, unknown, damaged, truncated or too large.

    A folder is read as the DICOM files of one series in it, on a grid with the pixels' known size (``series``).
    The frames of a DICOM cine and of a moving picture are decoded on demand, and a damaged one then raises at ``frame``;
    the rest is decoded here.
    """
    path, limits = Path(path), limits or Limits()
    reader = _reader_of(path)
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")  # decoders warn about what is checked or reported here
            image_file = reader(path, limits)
            image_file.warnings.extend(empty_warnings(image_file))
    except InputError:
        raise
    except Exception as error:  # decoders raise anything from struct.error to their own classes
        raise InputError(
            f"{path.name} cannot be read as an image: it is damaged, truncated or not what its name says "
            f"({decoder_words(error, path)})"
        ) from error
    for warning in image_file.warnings:
        logger.warning("%s: %s", path.name, warning)
    return image_file


def _reader_of(path: Path) -> Callable[[Path, Limits], ImageFile]:
    if path.is_dir():
        return _read_folder
    if not path.is_file():
        raise InputError(f"{path.name}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path.name} is empty")
    suffix = extension(path)
    if suffix in PICTURES:
        return _read_picture
    if suffix in MOVING:
        return read_moving
    if suffix in (".nii", ".nii.gz"):
        return _read_nifti
    if suffix in (".nrrd", ".seg.nrrd"):
        return _read_nrrd
    with path.open("rb") as file:
        magic = file.read(132)[128:]
    if suffix in (".dcm", ".dicom") or magic == b"DICM":
        from ultrarefiner_monai.dicom.reader import read_dicom

        return read_dicom
    raise InputError(f"{path.name}: expected one of {' '.join(IMAGE_EXTENSIONS)}, got {suffix or 'no extension'}")


def _read_folder(path: Path, limits: Limits) -> ImageFile:
    from ultrarefiner_monai.dicom.series import dicom_files, read_series

    files = dicom_files(path)
    if not files:
        raise InputError(f"the folder {path.name} holds no DICOM files")
    return read_series(files, limits, region_spacing=True)


# --- PNG, JPEG, TIFF, BMP ---------------------------------------------------------------------------------------------


def _read_picture(path: Path, limits: Limits) -> ImageFile:
    warnings: list[str] = []
    with open_picture(path, limits) as picture:
        image = picture.image
        (width, height), count, halved = image.size, len(picture.pages), is_halved(image)
        if image.format == "TIFF":
            if any(flip != (slice(None), slice(None)) for flip in picture.flips):
                warnings.append("the orientation of the TIFF turns its pixels around, as in 3D Slicer")
        elif int(image.getexif().get(0x0112) or 1) != 1:
            warnings.append(
                "the EXIF orientation is not applied, as in 3D Slicer: the grid is that of the stored pixels"
            )
        if image.format == "PNG" and int(getattr(image, "n_frames", 1)) > 1:
            warnings.append(
                "an animated PNG: its first picture alone is read, as 3D Slicer shows it; export GIF or MP4"
            )
        pages = [_picture_pixels(page)[flip] for page, flip in picture.frames() if page.size == (width, height)]
        inverted = white_is_zero(image)
        kind = (image.format or "").lower()
        spacing_xy, spacing = picture_spacing(path, picture, warnings)
    if len(pages) < count:
        warnings.append(f"{count - len(pages)} page(s) of another size than the first are left out")
    frames = np.stack(pages)
    warnings += dark_warnings(halved, frames)
    if frames.dtype != np.uint8:
        frames = to_unit(frames, warnings)
        frames = 1 - frames if inverted else frames
    geometry = flat_geometry(height, width, len(pages), spacing_xy)
    return ImageFile(path, kind, height, width, len(pages), geometry, stored_frames(frames), spacing, "", warnings)


def _picture_pixels(image: Any) -> np.ndarray:
    """(H, W) uint8, or wider numbers for 16 bits and more. Alpha is dropped: clients show the colours below it."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return stored_numbers(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode == "LA":
        return np.asarray(image)[..., 0]
    return luminance(np.asarray(image if image.mode == "RGB" else image.convert("RGBA"))[..., :3])


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def _read_nifti(path: Path, limits: Limits) -> ImageFile:
    warnings: list[str] = []
    image: Any = open_nifti(path, limits)
    shape, data_type = tuple(int(n) for n in image.shape), image.dataobj.dtype
    colour = data_type.names is not None
    # Vectors: NIfTI puts their components on the fifth axis; 4-D only with the intent to say so.
    intent = image.header.get_intent()[0]
    components = len(shape) == 5 and shape[4] in (3, 4)
    components = components or (len(shape) == 4 and shape[3] in (3, 4) and intent in ("vector", "rgb vector"))
    spatial = shape[:-1] if components else shape
    while components and len(spatial) > 3 and spatial[-1] == 1:
        spatial = spatial[:-1]
    grid, axes = _grid_of(path.name, spatial)
    _check_grid(path.name, grid, axes, limits, 3 if components else 1)
    values = np.asanyarray(image.dataobj)
    if colour:
        values = np.stack([values[c] for c in data_type.names[:3]], axis=-1)
    values = values.reshape(*grid, *values.shape[-1:]) if (colour or components) else values.reshape(grid)
    if values.ndim == 4:
        values = _to_gray(values[..., :3], warnings)
    affine = usable_affine(nifti_affine(image), warnings)
    geometry = Geometry(spatial, affine, axes, nifti_space=nifti_space(image, spatial), views=nifti_views(image))
    return _volume(path, "nifti", values, geometry, warnings)


def _grid_of(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    long = [n for n in shape[2:] if n > 1]
    if len(shape) < 2 or len(long) > 1:
        raise InputError(f"{name}: expected a picture or a series of them (2 or 3 long axes), got {shape}")
    grid = (shape[0], shape[1], long[0] if long else 1)
    return grid, frame_axes(grid)


def _check_grid(
    name: str, grid: tuple[int, int, int], axes: tuple[int, int, int], limits: Limits, channels: int = 1
) -> None:
    limits.check(name, grid[axes[1]], grid[axes[0]], grid[axes[2]] * channels)


def _to_gray(rgb: np.ndarray, warnings: list[str]) -> np.ndarray:
    """(..., 3) -> (...), keeping uint8."""
    if rgb.dtype == np.uint8:
        return luminance(rgb)
    return to_unit(rgb, warnings) @ np.array([0.299, 0.587, 0.114], np.float32)


def _volume(path: Path, kind: str, values: np.ndarray, geometry: Geometry, warnings: list[str]) -> ImageFile:
    """``values``: (I, J, K)."""
    if values.dtype.kind not in "uifb":
        raise InputError(f"{path.name}: expected numbers, got {values.dtype}")
    frames = geometry.to_frames(values)
    if frames.dtype != np.uint8:
        frames = to_unit(frames, warnings)
    steps = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    spacing = None
    if np.allclose(steps[list(geometry.axes[:2])], 1, atol=1e-6):
        warnings.append("a spacing of exactly 1 mm is what files without one carry: sizes are given in pixels")
    else:
        spacing = plausible_spacing(steps[geometry.axes[1]], steps[geometry.axes[0]], "a spacing", warnings)
    count, height, width = frames.shape
    return ImageFile(path, kind, height, width, count, geometry, stored_frames(frames), spacing, "", warnings)


# --- NRRD -------------------------------------------------------------------------------------------------------------


def _read_nrrd(path: Path, limits: Limits) -> ImageFile:
    warnings: list[str] = []
    values, header = read_nrrd_array(path, limits)
    kinds = [str(k) for k in header.get("kinds", [])]
    channel = next((a for a, kind in enumerate(kinds) if kind in VECTOR_KINDS), None)
    if channel is None and values.ndim == 4 and values.shape[0] in (3, 4):
        along = np.asarray(header.get("space directions", [[np.nan]]), float)
        if not np.isfinite(along[0]).all():
            channel = 0  # 3D Slicer's colour volumes, written by programs that leave the kinds out
    if channel is not None:
        if values.shape[channel] not in (1, 3, 4):
            raise InputError(f"{path.name}: expected grey or RGB pixels, got {values.shape[channel]} components")
        values = np.moveaxis(values, channel, -1)
        values = _to_gray(values[..., :3], warnings) if values.shape[-1] > 1 else values[..., 0]
    shape = values.shape
    grid, axes = _grid_of(path.name, shape)
    _check_grid(path.name, grid, axes, limits)
    affine = usable_affine(nrrd_affine(header, channel, len(shape)), warnings)
    geometry = Geometry(shape, affine, axes, space_fields(header, channel))
    return _volume(path, "nrrd", values.reshape(grid), geometry, warnings)
