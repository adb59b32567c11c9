"""The pixel data of a DICOM file, cut into its frames: native, or in fragments with or without an offset table.

How many frames a file has is what NumberOfFrames says, since ITK and so 3D Slicer show that many and a mask must fit. More
in the pixels than in the header give a warning; fewer are refused.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ultrarefiner_monai.core.types import InputError

_RLE = "1.2.840.10008.1.2.5"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # JPEG and JPEG-LS; JPEG 2000


def native_frames(name: str, dataset: Any, count: int, warnings: list[str]) -> list[bytes]:
    """The bytes of each frame, of an even length. Raises InputError for fewer than ``count``."""
    pixels = int(dataset.Rows) * int(dataset.Columns)
    bits = pixels * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated)
    if dataset.PhotometricInterpretation in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        bits = pixels * 16
    if bits % 8 and count > 1:
        raise InputError(f"{name}: frames of {bits} bits do not end on a byte; export it with 8 bits a pixel")
    size = -(-bits // 8)
    data = dataset.PixelData
    if len(data) < size * count:
        raise InputError(f"{name} is truncated: {size * count} bytes of pixels announced, {len(data)} there")
    _say_more(dataset, count, len(data) * 8 // bits, warnings)
    parts = [data[k * size : (k + 1) * size] for k in range(count)]
    return [part + b"\0" * (len(part) % 2) for part in parts]


def compressed_frames(name: str, dataset: Any, syntax: str, count: int, warnings: list[str]) -> list[bytes]:
    """The stream of each frame. Raises InputError for fewer than ``count``."""
    table, fragments = _fragments(dataset.PixelData)
    ways = [_by_offsets(table, fragments), [[f] for f in fragments]]
    if syntax != _RLE:  # there, a fragment is a frame
        ways.insert(1, _by_starts(fragments))
    found = [frames for frames in ways if frames]
    best = next((f for f in found if len(f) == count), found[0] if found else [])
    if len(best) < count:
        raise InputError(f"{name} is truncated: {count} frames announced, {len(best)} there")
    _say_more(dataset, count, len(best), warnings)
    return [b"".join(frame) for frame in best[:count]]


def _say_more(dataset: Any, count: int, there: int, warnings: list[str]) -> None:
    if there <= count:
        return
    said = f"NumberOfFrames is {count}" if "NumberOfFrames" in dataset else "NumberOfFrames is missing"
    shown = "only the first is" if count == 1 else f"only the first {count} are"
    warnings.append(
        f"{said}, but the file holds pixels for {there} frames: {shown} shown and outlined; export it again, or correct "
        "NumberOfFrames"
    )


def _fragments(data: bytes) -> tuple[list[int], list[bytes]]:
    """(offset table, fragments) of an encapsulated value."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    file = io.BytesIO(data)
    return parse_basic_offsets(file), list(generate_fragments(file))


def _by_offsets(table: Sequence[int], fragments: Sequence[bytes]) -> list[list[bytes]]:
    """The fragments of each frame by the offset table; nothing where it does not fit them."""
    starts = [0, *accumulate(8 + len(f) for f in fragments)][: len(fragments)]
    places = {start: k for k, start in enumerate(starts)}
    if not table or table[0] != 0 or any(offset not in places for offset in table) or list(table) != sorted(set(table)):
        return []
    bounds = [*(places[offset] for offset in table), len(fragments)]
    return [list(fragments[a:b]) for a, b in zip(bounds, bounds[1:])]


def _by_starts(fragments: Sequence[bytes]) -> list[list[bytes]]:
    """The fragments of each frame by the beginnings of streams; nothing where the first is none."""
    if not fragments or not fragments[0].startswith(_STARTS):
        return []
    frames: list[list[bytes]] = []
    for fragment in fragments:
        if fragment.startswith(_STARTS):
            frames.append([fragment])
        else:
            frames[-1].append(fragment)
    return frames
