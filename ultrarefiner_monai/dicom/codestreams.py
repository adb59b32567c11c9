"""How large a compressed stream says it is, before anything is unpacked: decoders believe it, and hold up all threads."""

from __future__ import annotations

import struct

# Start of frame of JPEG (all but DHT, JPG and DAC) and of JPEG-LS.
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
_ALONE = {0x01, *range(0xD0, 0xDA)}  # markers without a length
_COMPONENTS, _TILES = 4, 65535


def check_stream(data: bytes, height: int, width: int) -> None:
    """ValueError where the first JPEG, JPEG-LS or JPEG 2000 stream in ``data`` is not of the header's size; others pass.

    Sources: ISO/IEC 15444-1 A.5.1 (SIZ), ISO/IEC 10918-1 B.2.2 and 14495-1 C.2.2 (frame headers).
    """
    at = data.find(b"\xff\x4f\xff\x51")
    if at >= 0 and len(data) >= at + 42:
        x, y, x0, y0, tile_x, tile_y, *_ = struct.unpack(">8I", data[at + 8 : at + 40])
        (components,) = struct.unpack(">H", data[at + 40 : at + 42])
        _compare(y - y0, x - x0, height, width)
        tiles = -(-x // max(tile_x, 1)) * -(-y // max(tile_y, 1))
        if components > _COMPONENTS or tiles > _TILES:
            raise ValueError(f"the stream has {components} components and {tiles} tiles")
        return
    at = data.find(b"\xff\xd8\xff")
    while 0 <= at < len(data) - 9 and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SOF:
            rows, columns = struct.unpack(">2H", data[at + 5 : at + 9])
            _compare(rows, columns, height, width)
            return
        at += 2 if marker in _ALONE else 1 if marker == 0xFF else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def _compare(rows: int, columns: int, height: int, width: int) -> None:
    if (rows, columns) != (height, width):
        raise ValueError(f"the stream is {columns} x {rows}, the header says {width} x {height}")
