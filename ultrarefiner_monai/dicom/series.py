"""Several DICOM files of one series -> one ``ImageFile``: the frames of all of them, one after the other.

The order is that of ``sort_instances``; whoever stores results for a series (DICOM SEG) counts frames the same way.
A folder of such files is an image of a DICOMweb store: its clients never read the DICOM files with ITK but are handed a
NIfTI made from the ``ImageFile``, so its grid carries the pixels' known size.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.core.image_file import Geometry, ImageFile, Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import has_mark, open_dicom, pixel_digest
from ultrarefiner_monai.dicom.header import element, frames_said
from ultrarefiner_monai.dicom.reader import read_dicom
from ultrarefiner_monai.dicom.values import Scale

_ORDER_TAGS = ("InstanceNumber", "SOPInstanceUID", "SeriesInstanceUID")
_NAMED_SIZES = 4


def dicom_files(folder: str | Path) -> list[Path]:
    """The DICOM files that lie directly in ``folder``, by name: `.dcm`, or with the mark of DICOM at byte 128."""
    found = []
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.name.upper() != "DICOMDIR":
            if path.suffix.lower() in (".dcm", ".dicom") or has_mark(path):
                found.append(path)
    return found


def instance_files(path: Path) -> list[Path]:
    """The DICOM files of an image, a file or a series' folder, in the order of its frames. Raises as ``sort_instances``."""
    return sort_instances(dicom_files(path)) if path.is_dir() else [path]


def sort_instances(files: Sequence[str | Path]) -> list[Path]:
    """The files by (InstanceNumber, SOPInstanceUID), those without a number last; a second copy of an instance is left
    out, a different picture under the same UID is not. Raises InputError for a file without a DICOM header, and for files
    of more than one series."""
    return [path for path, _ in _sorted(files)]


def _sorted(files: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """The files of ``sort_instances``, each with what tells it from the others: its UID, and a digest where several
    pictures carry that."""
    groups: dict[str, dict[str, tuple[float, Path]]] = {}
    series = set()
    found = []
    for path in map(Path, files):
        header = _header(path)
        found.append((str(element(header, "SOPInstanceUID", "")) or f"file {path.name}", path, header))
        series.add(str(element(header, "SeriesInstanceUID", "")))
    several = {uid for uid, count in Counter(uid for uid, _, _ in found).items() if count > 1}
    for uid, path, header in found:
        picture = pixel_digest(path, whole=True) if uid in several else ""
        groups.setdefault(uid, {}).setdefault(picture, (_number(element(header, "InstanceNumber")), path))
    if len(series) > 1:
        raise InputError(
            f"expected the DICOM files of one series, got those of {len(series)}: give each its own folder"
        )
    rows = [
        (number, f"{uid} {picture}" if len(pictures) > 1 else uid, path)
        for uid, pictures in groups.items()
        for picture, (number, path) in pictures.items()
    ]
    return [(path, name) for _, name, path in sorted(rows, key=lambda row: row[:2])]


def read_series(files: Sequence[str | Path], limits: Limits | None = None, region_spacing: bool = False) -> ImageFile:
    """The frames of all files in the order of ``sort_instances``, decoded when they are asked for.

    region_spacing: the grid's affine uses the pixels' known size (ultrasound regions, then PixelSpacing), for clients
    that are handed an image made from it; otherwise it is ITK's view of the first file. Raises InputError for no files,
    files without pixels (documents, reports), files of several sizes (it names them), and beyond ``limits``.
    """
    limits = limits or Limits()
    if not files:
        raise InputError("expected the DICOM files of a series, got none")
    paths = sort_instances(files)
    try:
        scale = Scale()
        parts = [read_dicom(path, limits, region_spacing, decode=len(paths) == 1, scale=scale) for path in paths]
    except InputError:
        raise
    except Exception as error:  # a damaged header makes pydicom raise anything
        raise InputError(f"a file of the series is damaged or truncated ({type(error).__name__}: {error})") from error
    if len(parts) == 1:
        return parts[0]
    folder = paths[0].parent
    sizes = Counter((part.width, part.height) for part in parts)
    if len(sizes) > 1:
        shown = [f"{count} of {width} x {height}" for (width, height), count in sizes.most_common(_NAMED_SIZES)]
        more = ", ..." if len(sizes) > _NAMED_SIZES else ""
        raise InputError(
            f"the series holds pictures of {len(sizes)} sizes ({', '.join(shown)}{more}): it is no single image; ask "
            "for each instance by its SOPInstanceUID"
        )
    first, counts = parts[0], [part.n_frames for part in parts]
    limits.check(folder.name, first.height, first.width, sum(counts))
    return _joined(folder, parts, counts)


def _joined(folder: Path, parts: list[ImageFile], counts: list[int]) -> ImageFile:
    first, starts = parts[0], [0, *accumulate(counts)]

    def load(index: int) -> np.ndarray:
        part = bisect_right(starts, index) - 1
        return parts[part].frame(index - starts[part])

    warnings = list(dict.fromkeys(text for part in parts for text in part.warnings))
    spacings = tuple(part.spacing_mm for part, count in zip(parts, counts) for _ in range(count))
    regions = tuple(part.regions for part, count in zip(parts, counts) for _ in range(count))
    image_file = replace(
        first,
        path=folder,
        n_frames=sum(counts),
        geometry=Geometry((first.width, first.height, sum(counts)), first.geometry.affine),
        load=load,
        warnings=warnings,
        kept_bytes=sum(part.kept_bytes for part in parts),
        view=first.view if {part.view for part in parts} == {first.view} else "",
    )
    if len(set(spacings)) > 1:
        warnings.append("the pictures of the series differ in pixel size: each frame is measured with its own")
        image_file = replace(image_file, spacing_mm=None, frame_spacings_mm=spacings)
    if any(frame != first.regions for frame in regions):  # slices cannot be hashed
        image_file = replace(image_file, regions=(), frame_regions=regions)
    return image_file


# --- series that grow -------------------------------------------------------------------------------------------------


def frame_order(files: Sequence[str | Path]) -> tuple[str, ...]:
    """One entry for each file in the order of ``sort_instances``: which instance it is (digest), and how many frames it
    has. A mask is of the frames that were there when it was drawn; a series may grow, in front too."""
    order = []
    for path, name in _sorted(files):
        header = open_dicom(path, header_only=True, tags=["NumberOfFrames"])
        digest = hashlib.sha256(name.removeprefix("file ").encode()).hexdigest()[:12]
        order.append(f"{digest}:{frames_said(header)}")
    return tuple(order)


def frames_in(order: Sequence[str]) -> int:
    """How many frames an image of this ``frame_order`` has."""
    return sum(int(entry.partition(":")[2]) for entry in order)


def reordered(mask: np.ndarray, before: Sequence[str], now: Sequence[str]) -> tuple[np.ndarray, bool]:
    """(``mask`` (T, H, W) of the frames ``before`` on those of ``now``, whether nothing of it is lost by that). Frames
    that were not there are empty."""
    starts = dict(zip(before, [0, *accumulate(frames_in([entry]) for entry in before)], strict=False))
    out = np.zeros((frames_in(now), *mask.shape[1:]), mask.dtype)
    at = 0
    for entry in now:
        count = frames_in([entry])
        if entry in starts:
            out[at : at + count] = mask[starts[entry] : starts[entry] + count]
        at += count
    return out, np.count_nonzero(out) == np.count_nonzero(mask)


# --- files and folders alike ------------------------------------------------------------------------------------------


def state_of(path: Path) -> tuple:
    """What changes when the file, or a file of the folder, does: names, times and sizes. InputError when it is gone."""
    try:
        files = dicom_files(path) if path.is_dir() else [path]
        return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file in files for stat in [file.stat()])
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened: {error.strerror}") from error


def sha256_of_image(path: Path) -> str:
    """The sha256 of a file's bytes; of a folder's files: that of their sums in the order of the frames. One file has
    the same sum alone and in a folder, whatever it is called."""
    if not path.is_dir():
        return sha256_of(path)
    sums = [sha256_of(file) for file in sort_instances(dicom_files(path))]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _header(path: Path) -> Any:
    try:
        return open_dicom(path, header_only=True, tags=list(_ORDER_TAGS))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened: {error.strerror}") from error
    except Exception as error:
        raise InputError(f"{path.name} has a damaged DICOM header ({type(error).__name__}: {error})") from error


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.inf
