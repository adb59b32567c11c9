"""NIfTI files, opened: one place for images and labels, where the header is checked before anything is unpacked, and
where the file lies in the world as ITK (so 3D Slicer) has it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ultrarefiner_monai.core.image_file import RAS_FROM_LPS, Limits
from ultrarefiner_monai.core.types import InputError

_VECTOR, _SYMMATRIX, _GENMATRIX = 1007, 1005, 1004  # intent codes, nifti1.h
_HEAD = 544  # bytes of the larger header (NIfTI-2), and the four that say whether extensions follow
_MAX_EXTENSIONS = 2**24  # bytes between the header and the voxels: a DICOM header, an XML
# What a byte of a gzip file can unpack to (RFC 1951: 258 bytes for 2 bits), and what a file may have around that.
GZIP_RATIO, SLACK = 1032, 2**16
_SPACE = (
    *("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
_UNIT_MM = {1: 1000.0, 3: 0.001}  # metre and micron, in the low three bits of xyzt_units; all else counts as mm


def open_nifti(path: Path, limits: Limits | None = None) -> Any:
    """The file as a nibabel image, its voxels not yet read.

    Raises InputError for a header whose counts the file cannot hold, or beyond ``limits`` (8 bytes a pixel): its
    dimensions, the start of its voxels, its extensions. What is read afterwards is bounded by these counts.
    """
    import nibabel

    limits = limits or Limits()
    with _stream(path) as stream:
        header, head = _header(path, stream)
        _check_counts(path, header, limits)
        _check_extensions(path, header, stream, head)
    kind: Any = nibabel.Nifti2Image if header.sizeof_hdr == 540 else nibabel.Nifti1Image
    if _packed(path) == (path.suffix.lower() == ".gz"):
        return kind.from_filename(str(path))
    # ITK goes by the content, nibabel by the name: a .nii that is packed, a .nii.gz that is not.
    opened = gzip.open(path) if _packed(path) else path.open("rb")
    return kind.from_file_map({"image": nibabel.FileHolder(str(path), opened)})


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if _packed(path) else file


def _packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _header(path: Path, stream: IO[bytes]) -> tuple[Any, bytes]:
    """(the header as it stands in the file, the file's first bytes). nibabel's images hold a mended one."""
    from nibabel import Nifti1Header, Nifti2Header

    head = stream.read(_HEAD)
    second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    kind: Any = Nifti2Header if second else Nifti1Header
    size = kind.template_dtype.itemsize
    if len(head) < size:
        raise InputError(f"{path.name} is cut off inside its NIfTI header")
    return kind(head[:size], check=False), head


def _check_counts(path: Path, header: Any, limits: Limits) -> None:
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise InputError(f"{path.name}: expected a NIfTI header with 1 to 7 axes, got {axes}: it is damaged")
    sizes = [int(n) for n in header["dim"][1 : axes + 1]]
    if min(sizes) < 1:
        raise InputError(f"{path.name}: expected an image with pixels, got NIfTI dimensions {sizes}")
    count = int(np.prod(sizes, dtype=object))
    needed = count * header.get_data_dtype().itemsize
    if needed > limits.total_pixels * 8:
        shown = " x ".join(map(str, sizes))
        raise InputError(f"{path.name}: {shown} voxels are more than the limit of {limits.total_pixels} pixels")
    offset = float(header["vox_offset"])
    if not 0 <= offset <= header.sizeof_hdr + _MAX_EXTENSIONS:
        raise InputError(f"{path.name}: its NIfTI header says that its voxels start at byte {offset:g}: it is damaged")
    held = path.stat().st_size
    held = held * GZIP_RATIO + SLACK if _packed(path) else held
    if offset + needed > held:
        raise InputError(
            f"{path.name} is truncated or damaged: its header announces {needed} bytes of voxels, "
            f"{held} are the most that it can hold"
        )


def _check_extensions(path: Path, header: Any, stream: IO[bytes], head: bytes) -> None:
    """Each extension says its own size; nibabel reads as many bytes, wherever the voxels start."""
    at, end = header.sizeof_hdr + 4, int(header["vox_offset"])
    if len(head) < at or not head[header.sizeof_hdr]:
        return
    stream.seek(at)
    while end - at >= 16:
        size = int.from_bytes(stream.read(4), "big" if header.endianness == ">" else "little", signed=True)
        if not 16 <= size <= end - at:
            raise InputError(f"{path.name}: a NIfTI extension of {size} bytes does not fit before its voxels")
        at += size
        stream.seek(at)


# --- where the file lies ----------------------------------------------------------------------------------------------


def nifti_affine(image: Any) -> np.ndarray:
    """(4, 4) RAS from voxel index in mm as ITK reads the file of ``open_nifti``'s image; nibabel's view of it where ITK
    refuses to read it at all."""
    affine = itk_affine(_header_of(image))
    return _scaled(image.affine, image.header) if affine is None else affine


def itk_reads(image: Any) -> bool:
    """Whether ITK reads the file at all: not NIfTI-2, not a .nii that is packed."""
    path = Path(image.get_filename())
    return itk_affine(_header_of(image)) is not None and not (path.suffix.lower() == ".nii" and _packed(path))


def nifti_space(image: Any, shape: tuple[int, ...]) -> dict | None:
    """The header's own words about space, for a mask of ``shape`` on the same grid: every program then reads image and
    mask alike. None where a mask of that shape would be read otherwise (colours on the fifth axis)."""
    header = _header_of(image)
    if (_itk_axes(header) or 3) != min(len(shape), 3):
        return None
    return {name: np.array(header[name]) for name in _SPACE}


def _header_of(image: Any) -> Any:
    path = Path(image.get_filename())
    with _stream(path) as stream:
        return _header(path, stream)[0]


def nifti_views(image: Any) -> tuple[np.ndarray, ...]:
    """The other frames that the file gives programs: nibabel's, the qform's, the sform's."""
    header = image.header
    found = [image.affine]
    for code, get in (("qform_code", header.get_qform), ("sform_code", header.get_sform)):
        if int(header[code]) > 0:
            try:
                found.append(get())
            except Exception:  # a quaternion that is none
                continue
    views = [_scaled(view, header) for view in found]
    return tuple(view for view in views if np.isfinite(view).all())


def _scaled(affine: np.ndarray, header: Any) -> np.ndarray:
    scaled = np.array(affine, float)
    scaled[:3] *= _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return scaled


def itk_affine(header: Any) -> np.ndarray | None:
    """(4, 4) RAS from voxel index in mm, of a header as it stands in the file; None where ITK refuses the file.

    By the rules of ITK 5.4 (itkNiftiImageIO.cxx, nifti1_io.c).

    Directions and origin: without any code the axes run as in a photograph (LPS, origin 0). With one code, that one.
    With both: the sform where its code is 1 (scanner) or where both say the same, else the qform; a sform whose axes
    are not at right angles is never taken. Steps: always ``pixdim`` (0 and NaN are 1 mm; a negative one turns its axis
    around), whatever the length of the matrix's columns. ``xyzt_units`` scale all of it. Flat files (``dim[0]`` = 2)
    lie at depth 0 and keep the in-plane part of their directions.
    """
    if int(header.sizeof_hdr) != 348:  # ITK reads NIfTI-1 only
        return None
    axes = _itk_axes(header)
    if axes is None:
        return None
    steps = np.array(header["pixdim"][1:4], float)
    steps[~np.isfinite(steps) | (steps == 0)] = 1.0
    if header["qform_code"] <= 0 and header["sform_code"] <= 0:
        matrix = RAS_FROM_LPS.copy()
    else:
        chosen = _itk_matrix(header, steps)
        if chosen is None:
            return None
        matrix = chosen
    local = np.eye(4)
    local[:axes, :axes] = (RAS_FROM_LPS @ matrix)[:axes, :axes]
    lengths = np.linalg.norm(local[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (lengths > 0).all():
        return None
    local[:3, :3] /= lengths
    if abs(np.linalg.det(local[:3, :3])) < 1e-6:
        return None
    local[:axes, :axes] *= steps[:axes]
    local[:axes, 3] = (RAS_FROM_LPS @ matrix)[:axes, 3]
    local[:axes] *= _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return RAS_FROM_LPS @ local


def _itk_axes(header: Any) -> int | None:
    """How many axes in space (2 or 3) ITK gives the image."""
    dim, intent = [int(n) for n in header["dim"]], int(header["intent_code"])
    if intent == _GENMATRIX:
        return None
    if intent in (_VECTOR, _SYMMATRIX):
        axes = next((n for n in (4, 3, 2) if dim[n] > 1), 1)
    else:
        axes = dim[0]
        while axes > 3 and dim[axes] == 1:
            axes -= 1
    return min(axes, 3) if axes > 1 else None


def _itk_matrix(header: Any, steps: np.ndarray) -> np.ndarray | None:
    """(4, 4) float32 RAS: the qform or the sform, whichever ITK takes."""
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    qform = _quaternion_matrix(header, steps) if qform_code > 0 else np.diag([*steps, 1.0])
    qform = qform.astype(np.float32)
    sform = np.zeros((4, 4), np.float32)
    if sform_code > 0:
        sform[:3] = header["srow_x"], header["srow_y"], header["srow_z"]
        sform[3, 3] = 1
    prefer = np.abs(sform[:3, :3] - qform[:3, :3]).max() <= 1e-5 and np.abs(sform[:, 3] - qform[:, 3]).sum() <= 1e-7
    if sform_code > 0 and _at_right_angles(sform):
        prefer = qform_code <= 0 or sform_code == 1 or _very_similar(sform, qform)
    if prefer and sform_code > 0:
        return sform
    return qform if qform_code > 0 else None


def _quaternion_matrix(header: Any, steps: np.ndarray) -> np.ndarray:
    """(4, 4): nifti_quatern_to_mat44. NaN and infinite numbers count as 0."""
    b, c, d, *offset = np.nan_to_num(
        [float(header[f"quatern_{n}"]) for n in "bcd"] + [float(header[f"qoffset_{n}"]) for n in "xyz"],
        nan=0.0,
        posinf=0.0,
        neginf=0.0,
    )
    a = 1.0 - (b * b + c * c + d * d)
    if a < 1e-7:  # special case: half a turn
        length = 1.0 / np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b * length, c * length, d * length
    else:
        a = np.sqrt(a)
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.where(steps > 0, steps, 1.0)
    if header["pixdim"][0] < 0:
        matrix[:3, 2] *= -1
    matrix[:3, 3] = offset
    return matrix


def _at_right_angles(sform: np.ndarray) -> bool:
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if not np.isfinite(sform).all() or not (lengths > 0).all():
        return False
    turn = sform[:3, :3] / lengths
    return bool(np.abs(turn @ turn.T - np.eye(3)).max() <= 1e-4)


def _very_similar(sform: np.ndarray, qform: np.ndarray) -> bool:
    """ITK's own test: the left singular vectors, the singular values and the origins agree."""
    if not np.isfinite(qform).all():
        return False
    (us, ws, _), (uq, wq, _) = np.linalg.svd(sform[:3, :3]), np.linalg.svd(qform[:3, :3])
    same_axes = np.abs(us @ np.linalg.inv(uq) - np.eye(3)).max() <= 1e-4
    return bool(same_axes and np.abs(ws - wq).max() <= 1e-4 and np.abs(sform[:3, 3] - qform[:3, 3]).max() <= 1e-4)
