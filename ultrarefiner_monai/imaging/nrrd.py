"""The NRRD format, as far as images and labels need it: header by pynrrd, pixels read within their announced size.

pynrrd's own reader follows ``data file`` to any path on the disk and unpacks without a bound, so the pixels are not
left to it.
"""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from ultrarefiner_monai.core.image_file import RAS_FROM_LPS, Limits
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.nifti import GZIP_RATIO

_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_NRRD_SPACE_FIELDS = (
    *("space", "space dimension", "space units", "space directions", "space origin"),
    *("spacings", "axis mins", "axis maxs", "centers"),
)
_PER_AXIS = ("space directions", "spacings", "axis mins", "axis maxs")
_ALIASES = {
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "centerings": "centers",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "datafile": "data file",
    "blocksize": "block size",
}
_FIELDS = {
    *_NRRD_SPACE_FIELDS,
    *("type", "dimension", "sizes", "encoding", "endian", "line skip", "byte skip", "data file", "kinds", "labels"),
    *("units", "thicknesses", "measurement frame", "block size", "content", "min", "max", "old min", "old max"),
}
_MAX_HEADER, _MAX_LINES = 2**20, 20_000  # bytes and lines; a .seg.nrrd describes its segments there
_MAX_SKIP = 2**20  # bytes of a foreign header before the pixels
_MAX_AXES = 16  # NRRD_DIM_MAX of Teem, which reads NRRD for ITK
# What a byte of a packed file can unpack to. bzip2: 45.9 MB of one value, run lengths in a block of 900 kB, are 45 bytes.
_RATIOS = {"raw": 1, "gzip": GZIP_RATIO, "gz": GZIP_RATIO, "bzip2": 2**21, "bz2": 2**21}
# Axes of these kinds hold the values of one pixel (Teem: range axes); all others lie in space or time.
VECTOR_KINDS = (
    *("vector", "list", "scalar", "stub", "point", "normal", "covariant-vector", "3-gradient", "3-normal"),
    *("RGB-color", "RGBA-color", "HSV-color", "XYZ-color", "3-color", "4-color", "2-vector", "3-vector", "4-vector"),
)


def read_nrrd_array(path: Path, limits: Limits | None = None) -> tuple[np.ndarray, dict]:
    """(array in the order of ``sizes``, header). Unpacks no more than ``sizes`` announce, and follows no data file.

    The header's fields are lower case and go by one name each. Raises InputError for a header whose counts (axes,
    sizes, skipped lines and bytes) the file cannot hold, or beyond ``limits`` (8 bytes a pixel).
    """
    limits = limits or Limits()
    with path.open("rb") as file:
        header = _read_header(path, file)
        if "data file" in header:
            raise InputError(f"{path.name} keeps its pixels in another file; save it as one .nrrd")
        sizes = [int(n) for n in header["sizes"]]
        if not 1 <= len(sizes) <= _MAX_AXES or len(sizes) != int(header["dimension"]):
            raise InputError(f"{path.name}: expected 1 to {_MAX_AXES} axes with a size each, got {len(sizes)} sizes")
        if min(sizes) < 1:
            raise InputError(f"{path.name}: expected an image with pixels, got sizes {sizes}")
        kind = str(header["type"]).lower()
        if kind not in _NRRD_TYPES:
            raise InputError(f"{path.name}: expected numbers, got NRRD type {header['type']!r}")
        order = ">" if str(header.get("endian", "little")).lower() == "big" else "<"
        data_type = np.dtype(order + _NRRD_TYPES[kind])
        count = int(np.prod(sizes, dtype=object))
        size = count * data_type.itemsize
        if size > limits.total_pixels * 8:  # one double a pixel, or RGBA
            raise InputError(
                f"{path.name}: {count} values of {kind} are more than the limit of {limits.total_pixels} pixels"
            )
        raw = _read_pixels(path, file, header, size)
    if len(raw) < size:
        raise InputError(f"{path.name} is truncated: {size} bytes announced, {len(raw)} there")
    values = np.frombuffer(raw, data_type, count).reshape(sizes, order="F")
    return values.astype(data_type.newbyteorder("="), copy=False), header


def read_nrrd_header(path: Path) -> dict:
    """The header alone, as ``read_nrrd_array`` has it."""
    with path.open("rb") as file:
        return _read_header(path, file)


def _read_header(path: Path, file: IO[bytes]) -> dict:
    """The header as pynrrd parses it; ``file`` then stands behind it."""
    import nrrd

    lines: list[str] = []
    size = count = 0
    while True:
        line = file.readline(_MAX_HEADER - size + 1)
        size, count = size + len(line), count + 1
        if size > _MAX_HEADER or count > _MAX_LINES:
            raise InputError(
                f"{path.name}: its NRRD header does not end within {_MAX_HEADER} bytes and {_MAX_LINES} lines: it is damaged"
            )
        text = line.decode("ascii", "ignore").rstrip()
        if not text:
            break
        name, colon, value = text.partition(":")
        field = name.strip().lower()
        field = _ALIASES.get(field, field)
        if colon and value.startswith("=") and not name.startswith("#"):  # a key and its value, whatever the key says
            if field in _FIELDS:
                continue
        elif field in _FIELDS:
            text = f"{field}: {value}"
        lines.append(text)
    if not lines or not lines[0].startswith("NRRD"):
        raise InputError(f"{path.name} does not begin as an NRRD file")
    return dict(nrrd.read_header(lines))


def _read_pixels(path: Path, file: IO[bytes], header: dict, size: int) -> bytes:
    """The ``size`` bytes of pixels, unpacked, or fewer where the file ends before."""
    encoding = str(header["encoding"]).lower()
    if encoding not in _RATIOS:
        raise InputError(f"{path.name}: NRRD encoding {encoding!r} is not supported; save it as raw or gzip")
    lines, skip = int(header.get("line skip") or 0), int(header.get("byte skip") or 0)
    if not 0 <= lines <= _MAX_SKIP or not -1 <= skip <= _MAX_SKIP or (skip == -1 and encoding != "raw"):
        raise InputError(
            f"{path.name}: a line skip of {lines} and a byte skip of {skip} are not supported; save it anew"
        )
    begin = file.tell()
    for _ in range(lines):
        if not file.readline(_MAX_SKIP) or file.tell() - begin > _MAX_SKIP:
            raise InputError(f"{path.name}: its NRRD header says to skip {lines} lines, which the file has not")
    held = path.stat().st_size - file.tell()
    if size > held * _RATIOS[encoding]:
        raise InputError(f"{path.name} is truncated: {size} bytes announced, {held} there ({encoding})")
    if encoding == "raw":
        file.seek(held - size if skip == -1 else skip, 1)
        return file.read(size)
    unpack = bz2.BZ2Decompressor() if encoding.startswith("b") else zlib.decompressobj(zlib.MAX_WBITS | 16)
    return unpack.decompress(file.read(), size + skip)[skip:]


# --- where the file lies ----------------------------------------------------------------------------------------------


def space_fields(header: dict, channel: int | None) -> dict:
    """The header's own words about space, without the colour axis, for a mask on the same grid."""
    fields = {k: header[k] for k in _NRRD_SPACE_FIELDS if k in header}
    for key in _PER_AXIS:
        if key in fields and channel is not None:
            fields[key] = np.delete(np.asarray(fields[key], float), channel, axis=0)
    if "centers" in fields:
        centers = str(fields["centers"]).split()
        fields["centers"] = " ".join(c for axis, c in enumerate(centers) if axis != channel)
    return fields


def nrrd_affine(header: dict, channel: int | None, axes: int) -> np.ndarray:
    """(4, 4) RAS from grid index, of the first three spatial axes, by ITK's rules (itkNrrdImageIO.cxx).

    With directions: RAS and LAS are turned, all other spaces count as LPS. Without: spacings (missing ones are 1 mm, a
    negative one turns its axis around), along the axes of a photograph, from ``axis mins``.
    """
    fields = space_fields(header, channel)
    local = np.eye(4)
    if "space directions" in fields:
        directions = np.asarray(fields["space directions"], float)
        directions = directions[np.isfinite(directions).all(axis=1)][:3, :3]  # a space may have time as its fourth axis
        local[: directions.shape[1], : len(directions)] = directions.T
        if "space origin" in fields:
            origin = np.nan_to_num(np.asarray(fields["space origin"], float))[:3]
            local[: len(origin), 3] = origin
    else:
        sizes = np.delete(header["sizes"], channel) if channel is not None else np.asarray(header["sizes"])
        steps, origin = _plain_axes(fields, sizes[: min(axes, 3)])
        local[range(len(steps)), range(len(steps))] = np.where(np.isfinite(steps) & (steps != 0), steps, 1.0)
        local[: len(origin), 3] = origin
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space in ("right-anterior-superior", "ras"):
        return local
    if space in ("left-anterior-superior", "las"):
        return np.diag([-1.0, 1.0, 1.0, 1.0]) @ local
    return RAS_FROM_LPS @ local


def _plain_axes(fields: dict, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(spacings, origin) of axes without directions. ``axis mins`` are the border of the first sample, or its centre
    where the axis says ``node``; NaN and 0 where nothing is said (nrrdOriginCalculate)."""

    def of(key: str) -> np.ndarray:
        values = np.full(len(sizes), np.nan)
        given = np.asarray(fields.get(key, []), float)[: len(sizes)]
        values[: len(given)] = given
        return values

    steps, low, high = of("spacings"), of("axis mins"), of("axis maxs")
    centers = str(fields.get("centers", "")).lower().split()[: len(sizes)]
    cell = np.array([c != "node" for c in centers] + [True] * (len(sizes) - len(centers)))
    between = (high - low) / np.maximum(np.where(cell, sizes, sizes - 1), 1)
    width = np.where(np.isfinite(steps), steps, between)
    return steps, np.nan_to_num(np.where(np.isfinite(width), low + np.where(cell, width / 2, 0), 0.0))


def nrrd_value(key: str, value: Any) -> str:
    """A field about space, parsed by pynrrd, as text of a header; numbers keep all their digits."""

    def vector(numbers: Any) -> str:
        return f"({','.join(repr(float(n) + 0.0) for n in numbers)})"

    if key in ("space", "space dimension", "centers"):
        return str(value)
    if key == "space origin":
        return vector(value)
    if key == "space directions":
        rows = np.asarray(value, float)
        return " ".join(vector(row) if np.isfinite(row).all() else "none" for row in rows)
    if key in ("spacings", "axis mins", "axis maxs"):
        return " ".join(repr(float(n)) for n in np.asarray(value, float))
    return " ".join(f'"{unit}"' for unit in value)  # space units
