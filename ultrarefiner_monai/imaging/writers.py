"""Masks to files, always on the grid of the image file they belong to: .nrrd, .seg.nrrd, .nii.gz, .nii and .png, values
exactly 0 and 1 in uint8, atomically, the same bytes for the same mask. ``mask_files`` reads them. And the frames that
clients get of what they cannot open themselves.
"""

from __future__ import annotations

import gzip
import io
import logging
from pathlib import Path
from typing import IO, Any

import numpy as np

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.image_file import RAS_FROM_LPS, ImageFile, extension, flat_geometry
from ultrarefiner_monai.core.types import LABEL_NAME, InputError
from ultrarefiner_monai.imaging.nrrd import nrrd_value
from ultrarefiner_monai.imaging.pictures import with_png_scale

logger = logging.getLogger(__name__)

MASK_EXTENSIONS = (".nrrd", ".seg.nrrd", ".nii.gz", ".nii", ".png")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it: beside it first, then one rename."""
    with replacing(path) as file:
        file.write(content)


def write_mask(path: str | Path, mask: np.ndarray, image_file: ImageFile, compress: bool = True) -> None:
    """Write ``mask`` (T, H, W), or (H, W) of a single frame, 0 and 1 only, for a client that shows ``image_file``.

    The format follows the extension. NIfTI keeps shape and position of a NIfTI image, NRRD those of a NRRD image;
    what has no axes of its own comes as (W, H, T) with LPS directions. ``compress`` is about .nrrd. Raises InputError
    for another extension or a .png of several frames, ValueError for a mask that does not fit the image file.
    """
    content = encode_mask(extension(path), mask, image_file, compress)
    write_bytes(path, content)


def encode_mask(suffix: str, mask: np.ndarray, image_file: ImageFile, compress: bool = True) -> bytes:
    """The bytes of ``write_mask``'s file."""
    mask = np.asarray(mask)
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.shape != image_file.shape:
        raise ValueError(f"mask is {mask.shape}, the study's frames are {image_file.shape}")
    if mask.dtype != np.uint8:
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("a mask holds 0 and 1 only")
        mask = mask.astype(np.uint8)
    elif mask.size and int(mask.max()) > 1:
        raise ValueError(f"a mask holds 0 and 1 only, got {int(mask.max())}")
    if suffix == ".png":
        return _png(mask, image_file)
    grid = image_file.geometry.to_grid(mask)
    if suffix in (".nii", ".nii.gz"):
        return _nifti(grid, image_file, gz=suffix == ".nii.gz")
    if suffix in (".nrrd", ".seg.nrrd"):
        return _nrrd(grid, image_file, compress, segmentation=suffix == ".seg.nrrd")
    raise InputError(f"masks are written as {' '.join(MASK_EXTENSIONS)}, asked for {suffix or 'no extension'}")


def lost_position(suffix: str, image_file: ImageFile) -> str:
    """Why a mask in this format does not lie on its image where programs go by position, "" where it does."""
    if suffix == ".png" and _picture_spacing(image_file) is None:
        return (
            "a .png has no place for the image's position: 3D Slicer shows it elsewhere, though pixel for pixel it is the "
            "image's. Ask for .nrrd"
        )
    if suffix in (".nii", ".nii.gz") and image_file.geometry.nifti_space is None:
        axes = image_file.geometry.affine[:3, :3] / np.linalg.norm(image_file.geometry.affine[:3, :3], axis=0)
        if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
            return (
                "the image's axes are not at right angles, which a NIfTI cannot say to 3D Slicer: it shows the outline "
                "elsewhere. Ask for .nrrd"
            )
    return ""


def _picture_spacing(image_file: ImageFile) -> tuple[float, float] | None:
    """(x, y) mm of a pixel where the image lies as a picture does: axes of LPS, origin 0; else None."""
    x, y = (-float(image_file.geometry.affine[axis, axis]) for axis in (0, 1))
    if min(x, y) <= 0:
        return None
    in_plane = np.delete(image_file.geometry.affine - flat_geometry(1, 1, 1, (x, y)).affine, 2, axis=1)
    return None if np.any(np.abs(in_plane) > 1e-3 * min(x, y)) else (x, y)


def _png(mask: np.ndarray, image_file: ImageFile) -> bytes:
    from PIL import Image

    if image_file.is_volume:
        raise InputError(
            f"{image_file.path.name} has {image_file.n_frames} frames: ask for .nrrd or .nii.gz instead of .png"
        )
    buffer = io.BytesIO()
    Image.fromarray(mask[0]).save(buffer, "PNG", optimize=True)
    spacing = _picture_spacing(image_file)
    if spacing is None or spacing == (1.0, 1.0):
        return buffer.getvalue()
    return with_png_scale(buffer.getvalue(), *spacing)


def _nifti(grid: np.ndarray, image_file: ImageFile, gz: bool) -> bytes:
    import nibabel

    geometry = image_file.geometry
    values = grid.reshape(geometry.shape) if image_file.kind == "nifti" else grid
    image: Any = nibabel.Nifti1Image(values, None if geometry.nifti_space else geometry.affine)
    if geometry.nifti_space:
        for field, value in geometry.nifti_space.items():
            image.header[field] = value
    else:  # a sform of code 1 at right angles is what ITK takes
        image.header.set_xyzt_units("mm")
        image.set_sform(geometry.affine, code=1)
        image.set_qform(geometry.affine, code=1)
    content = image.to_bytes()
    return gzip.compress(content, 6, mtime=0) if gz else content


def _nrrd(grid: np.ndarray, image_file: ImageFile, compress: bool, segmentation: bool) -> bytes:
    geometry = image_file.geometry
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


# --- frames -----------------------------------------------------------------------------------------------------------


def write_frames(file: IO[bytes], image_file: ImageFile) -> None:
    """A NIfTI (.nii.gz) of all frames, uint8 luminance, on the grid and with the geometry of ``image_file``, frame by
    frame: all of them together may be larger than the memory. The grid's axes must be column, row, frame: DICOM, moving
    pictures."""
    import nibabel

    header: Any = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(image_file.geometry.grid)
    header.set_xyzt_units("mm")
    header.set_sform(image_file.geometry.affine, code=1)
    header.set_qform(image_file.geometry.affine, code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    # Level 1: speckle hardly gets smaller, and somebody waits for it.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
        packed.write(header.binaryblock + bytes(4))
        for k in range(image_file.n_frames):
            packed.write(np.rint(image_file.frame(k) * 255).astype(np.uint8).tobytes())
