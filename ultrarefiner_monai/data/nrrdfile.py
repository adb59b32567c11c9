"""The NRRD format, as far as images and labels need it: header by pynrrd, pixels read within their announced size.

pynrrd's own reader follows ``data file`` to any path on the disk and unpacks without a bound, so the pixels are not
left to it.
"""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.data.study import RAS_FROM_LPS, Limits
from ultrarefiner_monai.types import InputError

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
_NRRD_SPACE_FIELDS = ("space", "space dimension", "space units", "space directions", "space origin", "spacings")
_MAX_SKIP = 2**20  # bytes of a foreign header before the pixels
VECTOR_KINDS = ("vector", "list", "RGB-color", "RGBA-color", "3-color", "4-color", "3-vector", "4-vector")


def read_nrrd_array(path: Path, limits: Limits) -> tuple[np.ndarray, dict]:
    """(array in the order of ``sizes``, header). Unpacks no more than ``sizes`` announce, and follows no data file."""
    import nrrd

    with path.open("rb") as file:
        header = dict(nrrd.read_header(file))
        if "data file" in header or "datafile" in header:
            raise InputError(f"{path.name} keeps its pixels in another file; save it as one .nrrd")
        sizes = [int(n) for n in header["sizes"]]
        count = int(np.prod(sizes, dtype=object))
        if header["type"] not in _NRRD_TYPES:
            raise InputError(f"{path.name}: expected numbers, got NRRD type {header['type']!r}")
        order = ">" if header.get("endian", "little") == "big" else "<"
        data_type = np.dtype(order + _NRRD_TYPES[header["type"]])
        if min(sizes) < 1:
            raise InputError(f"{path.name}: expected an image with pixels, got sizes {sizes}")
        if count * data_type.itemsize > limits.total_pixels * 8:  # one double a pixel, or RGBA
            raise InputError(
                f"{path.name}: {count} values of {header['type']} are more than the limit of {limits.total_pixels} pixels"
            )
        for _ in range(int(header.get("line skip") or header.get("lineskip") or 0)):
            file.readline()
        raw = _unpack(file.read(), str(header["encoding"]).lower(), count * data_type.itemsize, header)
    if len(raw) < count * data_type.itemsize:
        raise InputError(f"{path.name} is truncated: {count * data_type.itemsize} bytes announced, {len(raw)} there")
    values = np.frombuffer(raw, data_type, count).reshape(sizes, order="F")
    return values.astype(data_type.newbyteorder("=")), header


def _unpack(raw: bytes, encoding: str, size: int, header: dict) -> bytes:
    skip = int(header.get("byte skip") or header.get("byteskip") or 0)
    if not -1 <= skip <= _MAX_SKIP:
        raise InputError(f"an NRRD byte skip of {skip} is not supported; save the file anew")
    if encoding in ("gzip", "gz"):
        raw = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw, size + max(skip, 0))
    elif encoding in ("bzip2", "bz2"):
        raw = bz2.BZ2Decompressor().decompress(raw, size + max(skip, 0))
    elif encoding != "raw":
        raise InputError(f"NRRD encoding {encoding!r} is not supported; save it as raw or gzip")
    return raw[-size:] if skip == -1 else raw[skip:]


def space_fields(header: dict, channel: int | None) -> dict:
    """The header's own words about space, without the colour axis, for a mask on the same grid."""
    fields = {k: header[k] for k in _NRRD_SPACE_FIELDS if k in header}
    for key in ("space directions", "spacings"):
        if key in fields and channel is not None:
            fields[key] = np.delete(np.asarray(fields[key], float), channel, axis=0)
    return fields


def nrrd_affine(header: dict, channel: int | None, axes: int) -> np.ndarray:
    """(4, 4) RAS from grid index, of the first three spatial axes; LPS is assumed where the header names no space."""
    fields = space_fields(header, channel)
    local = np.eye(4)
    if "space directions" in fields:
        directions = np.asarray(fields["space directions"], float)
        directions = directions[np.isfinite(directions).all(axis=1)][:3]
        local[: directions.shape[1], : len(directions)] = directions.T[:3]
        if "space origin" in fields:
            origin = np.nan_to_num(np.asarray(fields["space origin"], float))
            local[: len(origin), 3] = origin
    elif "spacings" in fields:
        steps = np.nan_to_num(np.asarray(fields["spacings"], float), nan=1.0)[: min(axes, 3)]
        local[range(len(steps)), range(len(steps))] = np.where(steps > 0, steps, 1.0)
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space in ("right-anterior-superior", "ras"):
        return local
    if space in ("left-anterior-superior", "las"):
        return np.diag([-1.0, 1.0, 1.0, 1.0]) @ local
    return RAS_FROM_LPS @ local


def nrrd_value(key: str, value: Any) -> str:
    """A field about space, parsed by pynrrd, as text of a header; numbers keep all their digits."""

    def vector(numbers: Any) -> str:
        return f"({','.join(repr(float(n) + 0.0) for n in numbers)})"

    if key in ("space", "space dimension"):
        return str(value)
    if key == "space origin":
        return vector(value)
    if key == "space directions":
        rows = np.asarray(value, float)
        return " ".join(vector(row) if np.isfinite(row).all() else "none" for row in rows)
    if key == "spacings":
        return " ".join(repr(float(n)) for n in np.asarray(value, float))
    return " ".join(f'"{unit}"' for unit in value)  # space units
