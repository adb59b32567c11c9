"""What every reader hands on: the frames of one file, its pixel spacing, and the grid on which a mask must come back.

Two views of the same voxels
----------------------------
*frames*: (T, H, W), row-major, ``y`` down, as the networks see them.
*grid*: the array as a client (3D Slicer, nibabel) indexes it, ``[i, j, k]``. For photographs and DICOM ``i`` = column,
``j`` = row, ``k`` = frame. NIfTI and NRRD keep their own axes: the last long one counts frames, the other two are
columns and rows **in the order of the file** - an ultrasound frame has no anatomical up, so nothing is flipped.

World coordinates are RAS in millimetres (nibabel's convention); NRRD and ITK use LPS, which flips the first two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ultrarefiner_monai.core.types import InputError

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp"}
# Pixel sizes outside of this cannot be those of a breast scan (0.03 - 0.3 mm are usual); mm.
PLAUSIBLE_SPACING_MM = (1e-3, 20.0)
# How warnings about a pixel's size end, unless another place of the file tells it.
IN_PIXELS = ": sizes are given in pixels"
NO_SIZE = f"the file does not say how large its pixels are{IN_PIXELS}"
# (rows, columns) of one B-mode region of the screen.
Region = tuple[slice, slice]
Spacing = tuple[float, float] | None


def extension(path: str | Path) -> str:
    """The extension in lower case: ``.nii.gz`` and ``.seg.nrrd`` count as one."""
    name = Path(path).name.lower()
    for double in (".nii.gz", ".seg.nrrd"):
        if name.endswith(double):
            return double
    return Path(name).suffix


@dataclass(frozen=True)
class Limits:
    """Refused beyond these: a small file can unpack to any size. Pixels of one frame, and of all frames together."""

    frame_pixels: int = 64_000_000
    total_pixels: int = 1_000_000_000

    def check(self, name: str, height: int, width: int, frames: int = 1) -> None:
        if min(height, width, frames) < 1:
            raise InputError(f"{name}: expected an image with pixels, got {width} x {height} x {frames}")
        if height * width > self.frame_pixels or height * width * frames > self.total_pixels:
            raise InputError(
                f"{name}: {width} x {height} pixels, {frames} frame(s), is more than the limit of {self.frame_pixels} "
                f"pixels a frame and {self.total_pixels} in all; export a smaller image or raise the limit"
            )


@dataclass(frozen=True)
class Geometry:
    """Where the frames lie in the file's grid and in the world.

    shape: the grid as the file has it, without colour (2 to 5 axes, extra ones of length 1).
    axes: which grid axis is the column, the row and the frame. affine: (4, 4) RAS from grid index, mm.
    The affine is ITK's reading of the file (3D Slicer shows it so). nrrd_space, nifti_space: fields of a NRRD or NIfTI
    header to hand back unchanged, or None. views: what other programs make of the same file, where its header allows
    several readings.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axes: tuple[int, int, int] = (0, 1, 2)
    nrrd_space: dict | None = None
    nifti_space: dict | None = None
    views: tuple[np.ndarray, ...] = ()

    @property
    def grid(self) -> tuple[int, int, int]:
        """The three axes that clients show; a 4-D time series counts its time as the third."""
        long = [n for n in self.shape[2:] if n > 1]
        return (self.shape[0], self.shape[1], long[0] if long else 1)

    def to_grid(self, frames: np.ndarray) -> np.ndarray:
        """(T, H, W) -> (I, J, K)."""
        by_axis = dict(zip(self.axes, (2, 1, 0), strict=True))  # grid axis -> axis of (T, H, W)
        return np.ascontiguousarray(frames.transpose([by_axis[a] for a in range(3)]))

    def to_frames(self, grid: np.ndarray) -> np.ndarray:
        """(I, J, K) -> (T, H, W)."""
        column, row, frame = self.axes
        return np.ascontiguousarray(grid.transpose(frame, row, column))

    def to_frame_xy(self, ijk: Sequence[float]) -> tuple[int, float, float]:
        """A client's voxel [i, j, k] (k may be missing) -> (frame, x, y)."""
        voxel = [*map(float, ijk), 0.0, 0.0, 0.0][:3] if len(ijk) < 3 else list(map(float, ijk[:3]))
        column, row, frame = self.axes
        return round(voxel[frame]), voxel[column], voxel[row]

    def to_ijk(self, frame: int, x: float, y: float) -> tuple[float, float, float]:
        """The inverse of ``to_frame_xy``."""
        voxel = [0.0, 0.0, 0.0]
        for axis, value in zip(self.axes, (x, y, float(frame)), strict=True):
            voxel[axis] = value
        return voxel[0], voxel[1], voxel[2]


def frame_axes(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """(column, row, frame) axes of a volume's grid: the third counts frames unless another one has a single slice."""
    if grid[2] > 1 and grid[0] == 1 and grid[1] > 1:
        return (1, 2, 0)
    if grid[2] > 1 and grid[1] == 1 and grid[0] > 1:
        return (0, 2, 1)
    return (0, 1, 2)


def flat_geometry(height: int, width: int, frames: int = 1, spacing_xy: tuple[float, float] = (1.0, 1.0)) -> Geometry:
    """What ITK (so 3D Slicer) makes of a photograph: LPS directions, origin 0, x right, y down."""
    affine = RAS_FROM_LPS @ np.diag([spacing_xy[0], spacing_xy[1], 1.0, 1.0])
    return Geometry((width, height, frames), affine)


def usable_affine(affine: np.ndarray, warnings: list[str]) -> np.ndarray:
    """(4, 4) as a header has it -> the same, or one that can be inverted where it cannot.

    A single axis without length (flat files) gets a step of 1 mm across the other two; anything worse, with a warning,
    the grid of a photograph.
    """
    affine = np.array(affine, float)
    if np.isfinite(affine).all():
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        flat = np.flatnonzero(steps == 0)
        if len(flat) == 1:
            across = np.cross(affine[:3, (flat[0] + 1) % 3], affine[:3, (flat[0] + 2) % 3])
            affine[:3, flat[0]] = across / max(float(np.linalg.norm(across)), 1e-300)
            steps[flat] = 1
        if (steps > 0).all() and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-6:
            return affine
    warnings.append("the file's position and spacing make no sense; it is placed like a photograph")
    return RAS_FROM_LPS.copy()


@dataclass
class ImageFile:
    """One image file, read. Single frames are decoded when it is opened, those of a DICOM cine or a moving
    picture when they are asked for.

    kind: png, jpeg, tiff, bmp, gif, webp, video, nifti, nrrd or dicom. spacing_mm: (row, column) distance of pixel centres, None where
    it is not known. is_volume: more than one frame. patient: the DICOM PatientID, else empty. view: how the probe was held
    (``core.views``), as DICOM's View Code says, else empty. warnings: for the user.
    regions: the B-mode regions of the screen where the file names them and they leave a part out (``dicom.regions``);
    empty = the whole frame. A series of several files may differ from frame to frame in both: ``frame_regions`` and
    ``frame_spacings_mm``, one entry a frame, are then filled; ask ``regions_of`` and ``spacing_of``. kept_bytes: memory
    that the pixels take as they are kept, 0 = unknown: no more than four bytes each.
    """

    path: Path
    kind: str
    height: int
    width: int
    n_frames: int
    geometry: Geometry
    load: Callable[[int], np.ndarray] = field(repr=False)
    spacing_mm: tuple[float, float] | None = None
    patient: str = ""
    warnings: list[str] = field(default_factory=list)
    regions: tuple[Region, ...] = ()
    frame_regions: tuple[tuple[Region, ...], ...] = ()
    frame_spacings_mm: tuple[Spacing, ...] = ()
    kept_bytes: int = 0
    view: str = ""

    def regions_of(self, index: int) -> tuple[Region, ...]:
        """The B-mode regions of frame ``index``; empty = all of it."""
        return self.frame_regions[index] if self.frame_regions else self.regions

    def spacing_of(self, index: int) -> Spacing:
        """(row, column) mm of frame ``index``, None where it is not known."""
        return self.frame_spacings_mm[index] if self.frame_spacings_mm else self.spacing_mm

    def pixels_reason(self, index: int) -> str:
        """Why sizes in frame ``index`` are given in pixels, empty where they are in mm."""
        if self.spacing_of(index) is not None:
            return ""
        return next((w for w in self.warnings if w.endswith(IN_PIXELS)), NO_SIZE)

    @property
    def is_volume(self) -> bool:
        return self.n_frames > 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return (self.n_frames, self.height, self.width)

    def frame(self, index: int = 0) -> np.ndarray:
        """Luminance (H, W) float32 in [0, 1] of frame ``index``, counted from 0."""
        if isinstance(index, bool) or not 0 <= int(index) < self.n_frames:
            raise InputError(f"{self.path.name} has frames 0 to {self.n_frames - 1}, asked for {index}")
        return self.load(int(index))

    @property
    def frames(self) -> np.ndarray:
        """All frames, (T, H, W) float32 in [0, 1]. A long cine is large: prefer ``frame``."""
        return np.stack([self.frame(k) for k in range(self.n_frames)])


def plausible_spacing(row: object, column: object, what: str, warnings: list[str]) -> tuple[float, float] | None:
    """(row, column) in mm as floats, or None and a warning when they cannot be a pixel's size."""
    try:
        values = (float(row), float(column))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        values = (float("nan"), float("nan"))
    low, high = PLAUSIBLE_SPACING_MM
    if all(low <= v <= high for v in values):
        return values
    warnings.append(f"{what} of {row} x {column} mm cannot be a pixel's size{IN_PIXELS}")
    return None


def luminance(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) uint8 by ITU-R 601-2, rounded exactly as Pillow's mode L, so that training agrees."""
    r, g, b = (rgb[..., c].astype(np.uint32) for c in range(3))
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).astype(np.uint8)


def to_unit(values: np.ndarray, warnings: list[str] | None = None) -> np.ndarray:
    """Any numbers -> float32 in [0, 1], over the whole array at once.

    8 bits: / 255. Wider and not negative: by the smallest of 8, 10, 12, 14, 16 bits that holds the maximum (scanners
    keep 8 or 12 bits in 16). Floats up to 1 stay. Anything else: minimum to maximum. NaN and infinity become 0.
    """
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    if values.dtype == bool:
        return values.astype(np.float32)
    numbers: np.ndarray = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        if warnings is not None:
            warnings.append(f"{int((~finite).sum())} pixel(s) are not finite and count as 0")
        numbers = np.where(finite, numbers, 0)
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0 and (high > 1 or values.dtype.kind in "ui") and high <= 65535:
        low, high = 0.0, next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high <= 2.0**bits - 1)
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return ((numbers - low) / max(high - low, 1e-12)).astype(np.float32)


def stored_frames(frames: np.ndarray) -> Callable[[int], np.ndarray]:
    """A loader over frames (T, H, W) that are in memory; uint8 is turned into float one frame at a time."""

    def load(index: int) -> np.ndarray:
        frame = frames[index]
        return to_unit(frame) if frame.dtype == np.uint8 else np.array(frame, dtype=np.float32)

    return load
