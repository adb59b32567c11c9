"""PNG, JPEG, TIFF and BMP files, opened: one place for images and labels, where what the file announces is checked before
anything is unpacked, and where ITK (so 3D Slicer) takes the size and the order of the pixels from.

Sources: itkPNGImageIO.cxx, itkJPEGImageIO.cxx, itkTIFFImageIO.cxx, itkBMPImageIO.cxx of ITK 5.4, and libpng's pngrutil.c.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ultrarefiner_monai.core.image_file import IN_PIXELS, Limits, Spacing, plausible_spacing
from ultrarefiner_monai.core.types import InputError

_PIL_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MAX_PAGES, _MAX_TAGS = 10_000, 4096
_PNG_MARK = b"\x89PNG\r\n\x1a\n"
# libpng's png_check_fp_number, of numbers above zero.
_PNG_NUMBER = re.compile(rb"\+?(\d+(\.\d+)?|\.\d+)([eE][+-]?\d+)?")
_PRINT_DPI = (72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 240, 250, 300, 350, 360, 400, 600, 1200)
# What ITK (libtiff) does for each value of TIFF's Orientation: rows and columns are turned around, never swapped.
_AROUND = {
    **dict.fromkeys((2, 6), (slice(None), slice(None, None, -1))),
    **dict.fromkeys((3, 7), (slice(None, None, -1), slice(None, None, -1))),
    **dict.fromkeys((4, 8), (slice(None, None, -1), slice(None))),
}
Flip = tuple[slice, slice]


@dataclass
class Picture:
    """image: Pillow's, its pixels not yet decoded. pages: which of its pages are frames. flips: for each of them, how
    its stored (rows, columns) are to be sliced to lie as ITK has them."""

    image: Any
    pages: tuple[int, ...] = (0,)
    flips: tuple[Flip, ...] = ((slice(None), slice(None)),)

    def frames(self) -> Iterator[tuple[Any, Flip]]:
        """(Pillow's image, standing at the page; its flip) of each frame."""
        for page, flip in zip(self.pages, self.flips, strict=True):
            if len(self.pages) > 1 or page:
                self.image.seek(page)
            yield self.image, flip


@contextmanager
def open_picture(path: Path, limits: Limits | None = None) -> Iterator[Picture]:
    """The file, open. Raises InputError beyond ``limits``, for more than 10,000 pages, and for other formats.

    Pages of a TIFF that are a smaller copy or a mask of another page (NewSubfileType) are no frames, as in ITK. Its
    Orientation is left to ``flips``: Pillow would swap rows and columns, which ITK never does.
    """
    from PIL import Image

    limits = limits or Limits()
    with path.open("rb") as file:
        tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        pages = _tiff_pages(path, file) if tiff else []
    try:
        image = Image.open(_upright(path, pages), formats=_PIL_FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path.name} is larger than the limit: {error}") from error
    with image:
        picture = Picture(image)
        if image.format == "TIFF":
            frames = [k for k, page in enumerate(pages) if not page.copy] or list(range(len(pages)))
            flips = tuple(_AROUND.get(pages[k].orientation, (slice(None), slice(None))) for k in frames)
            picture = Picture(image, tuple(frames), flips)
        limits.check(path.name, image.height, image.width, len(picture.pages))
        yield picture


# --- TIFF -------------------------------------------------------------------------------------------------------------


@dataclass
class _Page:
    """at: byte of the orientation's value in the file, 0 = none. copy: a smaller copy or a mask of another page."""

    orientation: int = 1
    at: int = 0
    copy: bool = False


def _tiff_pages(path: Path, file: IO[bytes]) -> list[_Page]:
    """The directories, one a page, up to the first that is damaged or was there before."""
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    count_type, offset_type, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    seen: set[int] = set()
    pages: list[_Page] = []
    try:
        offset = struct.unpack_from(order + offset_type, head, 8 if big else 4)[0]
        while offset and offset not in seen:
            if len(pages) >= _MAX_PAGES:
                raise InputError(f"{path.name} has more than {_MAX_PAGES} pages; export fewer frames a file")
            seen.add(offset)
            file.seek(offset)
            (count,) = struct.unpack(order + count_type, file.read(struct.calcsize(count_type)))
            if count > _MAX_TAGS:
                break
            start, raw = file.tell(), file.read(count * entry)
            if len(raw) < count * entry:
                break
            page = _Page()
            for at in range(0, len(raw), entry):
                tag, kind = struct.unpack_from(order + "HH", raw, at)
                value_at = at + entry - (8 if big else 4)
                if tag not in (254, 255, 274) or kind not in (3, 4):
                    continue
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), raw, value_at)
                if tag == 274 and 2 <= value <= 8:
                    # The low byte of the value: the first in a little-endian file, the last in a big-endian one.
                    page.orientation = value
                    page.at = start + value_at + (0 if order == "<" else (1 if kind == 3 else 3))
                page.copy |= (tag == 254 and bool(value & 5)) or (tag == 255 and value == 2)
            pages.append(page)
            (offset,) = struct.unpack(order + offset_type, file.read(struct.calcsize(offset_type)))
    except struct.error:
        pass  # cut off: the pages before are there
    return pages or [_Page()]


def _upright(path: Path, pages: list[_Page]) -> Any:
    """The path, or the file's bytes with every orientation set to 1."""
    if not any(page.at for page in pages):
        return path
    content = bytearray(path.read_bytes())
    for page in pages:
        if page.at:
            content[page.at] = 1
    return io.BytesIO(content)


def white_is_zero(image: Any) -> bool:
    """Whether a TIFF of more than 8 bits keeps white as 0, which Pillow undoes for 8 bits only."""
    return (image.mode in ("I", "F") or image.mode.startswith("I;16")) and _tag(image, 262, 1) == 0


def stored_numbers(image: Any) -> np.ndarray:
    """(H, W) numbers of a page of one channel, with the sign that the file gives them: Pillow takes 8 bits of a TIFF for
    unsigned, and 32 bits for signed."""
    pixels = np.asarray(image)
    signed = _tag(image, 339, 1) == 2
    if image.mode == "L" and signed:
        return pixels.view(np.int8)
    if image.mode == "I" and image.format == "TIFF" and not signed and _tag(image, 258, 1) == 32:
        return pixels.view(np.uint32)
    return pixels


def is_halved(image: Any) -> bool:
    """Whether the file has 16 bits a colour, of which Pillow keeps the upper 8. Ask before its pixels are decoded."""
    return ";16" in str(image.tile) and not image.mode.startswith("I")


def dark_warnings(halved: bool, pixels: np.ndarray) -> list[str]:
    """A warning for 8-bit pixels that are the upper half of 16 bits with small values: a dark picture."""
    if not halved or pixels.dtype != np.uint8 or int(pixels.max(initial=0)) >= 128:
        return []
    return [
        "it has 16 bits a colour, of which the upper 8 are read, and its values are small: it comes out dark. Export it "
        "with 8 bits, or in grey"
    ]


def _tag(image: Any, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


# --- the size of a pixel ----------------------------------------------------------------------------------------------


def picture_spacing(path: Path, picture: Picture, warnings: list[str]) -> tuple[tuple[float, float], Spacing]:
    """((x, y) spacing that ITK gives to the picture, (row, column) mm for measuring or None).

    PNG: the numbers of its sCAL chunk; pHYs counts for nothing. ITK writes millimetres there (and 1 x 1 into every file
    that has no spacing), so plausible ones measure. JPEG: the density of JFIF, not that of EXIF. TIFF: the resolution of
    the first page. Both are meant for printing, and nothing tells a measure from it: they place the mask, and sizes are
    in pixels. BMP: 1 mm.
    """
    image = picture.image
    if image.format == "PNG":
        scale = png_scale(path)
        if scale is None or scale[1:] == (1.0, 1.0):
            return (1.0, 1.0), None
        unit, x, y = scale
        if unit != 1:
            warnings.append(f"the PNG's scale is in radian{IN_PIXELS}")
            return (x, y), None
        return (x, y), plausible_spacing(y, x, "a PNG scale", warnings)
    if image.format == "JPEG":
        unit, density = image.info.get("jfif_unit", 0), image.info.get("jfif_density", (0, 0))
        millimetres = {1: 25.4, 2: 10.0}.get(unit, 0.0)
    elif image.format == "TIFF":
        image.seek(0)
        density = (image.tag_v2.get(282, 0), image.tag_v2.get(283, 0))
        millimetres = {2: 25.4, 3: 10.0}.get(image.tag_v2.get(296, 1), 0.0)
    else:
        return (1.0, 1.0), None
    if not millimetres or not all(float(d) > 0 for d in density):
        return (1.0, 1.0), None
    x, y = (millimetres / float(d) for d in density)
    dots = [25.4 / x, 25.4 / y]
    if any(min(abs(d - usual) for usual in _PRINT_DPI) > 0.6 for d in dots):
        warnings.append(
            f"its resolution of {dots[0]:.4g} x {dots[1]:.4g} dots per inch may be meant for printing{IN_PIXELS}"
        )
    return (x, y), None


def png_scale(path: Path) -> tuple[int, float, float] | None:
    """(unit: 1 metre or 2 radian, width and height of a pixel) of a PNG's sCAL chunk as libpng takes it: the first one
    before the pixels that is sound. None where there is none."""
    with path.open("rb") as file:
        if file.read(8) != _PNG_MARK:
            return None
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            if name in (b"IDAT", b"IEND"):
                return None
            if name != b"sCAL" or size > 1024:
                file.seek(size + 4, 1)
                continue
            content, check = file.read(size), file.read(4)
            if check != struct.pack(">I", zlib.crc32(name + content)) or content[:1] not in (b"\1", b"\2"):
                continue
            numbers = content[1:].split(b"\0")
            if len(numbers) == 2 and all(_PNG_NUMBER.fullmatch(n) and _above_zero(n) for n in numbers):
                width, height = map(float, numbers)
                # Beyond what a double holds, ITK has no usable spacing.
                return (content[0], width, height) if 0 < width < 1e300 and 0 < height < 1e300 else None
    return None


def _above_zero(number: bytes) -> bool:
    return bool(number.lower().partition(b"e")[0].strip(b"+.0"))


def with_png_scale(content: bytes, x: float, y: float) -> bytes:
    """A PNG file's bytes with the pixels' size in an sCAL chunk, as ITK writes it."""
    chunk = b"sCAL" + b"\1" + f"{x:.12g}".encode() + b"\0" + f"{y:.12g}".encode()
    after_header = len(_PNG_MARK) + 25
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:after_header] + packed + content[after_header:]
