"""Changes of what a header counts, for each kind of file: the number is replaced and checksums are made to fit, since a
reader stops early at a wrong one.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib

from blind import Mutation, Rng, bomb, cut, flip, number, packed

WORDS = (
    "0",
    "-1",
    "1",
    "2147483648",
    "1000000000000000000",
    "1e18",
    "-1e300",
    "nan",
    "inf",
    "1e-320",
    "0.5",
    "",
    "none",
)
WORDS_MORE = (
    "9" * 400,
    "1,5",
    "0x10",
    "\u00b2",
    "../x",
    "{",
    "(1,0,0) (0,1,0)",
    "raw",
    "gzip",
    "bzip2",
    "hex",
    "block",
    "double",
)


def png_number(rng: Rng, content: bytes) -> bytes:
    """A number of one chunk's data, with its checksum made to fit."""
    chunks = png_chunks(content)
    k = int(rng.integers(len(chunks))) if rng.random() < 0.5 else 0
    kind, data = chunks[k]
    chunks[k] = (kind, number(rng, data, len(data)) if data else packed(rng, ">", "i"))
    return png_of(chunks)


def png_chunk(rng: Rng, content: bytes) -> bytes:
    """A chunk left out, doubled, emptied, or a new one."""
    chunks = png_chunks(content)
    k, what = int(rng.integers(len(chunks))), int(rng.integers(4))
    kind = bytes(rng.choice([b"tRNS", b"PLTE", b"pHYs", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"sBIT"]))
    new = [(kind, zlib.compress(b"0" * 100000) if rng.random() < 0.3 else rng.bytes(int(rng.integers(0, 40))))]
    chunks[k : k + 1] = ([], [chunks[k]] * 2, [(chunks[k][0], b"")], [chunks[k], *new])[what]
    return png_of(chunks)


def nrrd_word(rng: Rng, content: bytes) -> bytes:
    """A number, or a word, of the header."""
    head, body = nrrd_parts(content)
    found = list(re.finditer(rb"[-+.\w]+", head[8:]))
    if not found:
        return content
    at = found[int(rng.integers(len(found)))]
    return head[: 8 + at.start()] + any_word(rng) + head[8 + at.end() :] + body


def nrrd_line(rng: Rng, content: bytes) -> bytes:
    """A line left out or doubled, or one that few files have."""
    head, body = nrrd_parts(content)
    lines = head.rstrip(b"\n").split(b"\n")
    k, word = int(rng.integers(len(lines))), any_word(rng)
    rare = [
        b"line skip: ",
        b"byte skip: ",
        b"data file: ",
        b"block size: ",
        b"endian: ",
        b"dimension: ",
        b"sizes: ",
        b"kinds: ",
    ]
    rare += [
        b"encoding: ",
        b"type: ",
        b"space directions: ",
        b"space dimension: ",
        b"Segment0_Extent:=",
        b"Segment0_LabelValue:=",
    ]
    lines[k : k + 1] = ([], [lines[k]] * 2, [lines[k], bytes(rng.choice(rare)) + word])[int(rng.integers(3))]
    return b"\n".join(lines) + b"\n\n" + body


def nrrd_unpacked(rng: Rng, content: bytes) -> bytes:
    """The voxels changed before they are packed again; other packings inflate to anything."""
    head, body = nrrd_parts(content)
    if b"gzip" not in head:
        return head + cut(rng, body)
    if rng.random() < 0.3:
        return head + bomb()
    try:
        return head + gzip.compress(flip(rng, gzip.decompress(body)), 1, mtime=0)
    except (OSError, EOFError, zlib.error):
        return head + cut(rng, body)


# Offsets of what counts in a NIfTI-1 header, with their struct kinds.
_NIFTI = (
    (0, "i"),
    *((40 + 2 * k, "h") for k in range(8)),
    (70, "h"),
    (72, "h"),
    *((76 + 4 * k, "f") for k in range(8)),
)
_NIFTI += (
    (108, "f"),
    (112, "f"),
    (116, "f"),
    (123, "b"),
    (252, "h"),
    (254, "h"),
    *((256 + 4 * k, "f") for k in range(18)),
)


def nifti_number(rng: Rng, content: bytes) -> bytes:
    at, kind = _NIFTI[int(rng.integers(len(_NIFTI)))]
    return content[:at] + packed(rng, "<", kind) + content[at + struct.calcsize(kind) :]


def zipped(change: Mutation) -> Mutation:
    """``change`` of what is packed."""

    def of_packed(rng: Rng, content: bytes) -> bytes:
        try:
            return gzip.compress(change(rng, gzip.decompress(content)), 1, mtime=0)
        except (OSError, EOFError, zlib.error):
            return change(rng, content)

    return of_packed


def dicom_value(rng: Rng, content: bytes) -> bytes:
    """An element's value: a number of its kind, or a word in the length that it has or in one of its own."""
    at, kind, start, size, end = dicom_element_at(rng, content)
    if kind in (b"US", b"SS", b"UL", b"SL", b"FL", b"FD") and size:
        code = {b"US": "h", b"SS": "h", b"UL": "i", b"SL": "i", b"FL": "f", b"FD": "d"}[kind]
        return content[:start] + packed(rng, "<", code) + content[start + struct.calcsize(code) :]
    word = any_word(rng)[: int(rng.choice([4, 16, 64]))]
    word += b" " * (len(word) % 2)
    if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR") or not size:
        return number(rng, content, len(content))
    return content[: start - 2] + struct.pack("<H", len(word)) + word + content[end:]


def dicom_length(rng: Rng, content: bytes) -> bytes:
    at, kind, start, _, _ = dicom_element_at(rng, content)
    long = kind in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    width = "I" if long else "H"
    value = int(rng.choice([0, 1, 2, 7, 0xFFFE, 0xFFFF] + ([0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF] if long else [])))
    return content[: start - struct.calcsize(width)] + struct.pack("<" + width, value) + content[start:]


def dicom_element(rng: Rng, content: bytes) -> bytes:
    """An element left out, doubled, or of another type."""
    at, _, _, _, end = dicom_element_at(rng, content)
    what = int(rng.integers(3))
    if what == 2:
        other = bytes(rng.choice([b"US", b"SS", b"DS", b"IS", b"SQ", b"OB", b"UN", b"FD", b"XX", b"LO", b"AT"]))
        return content[: at + 4] + other + content[at + 6 :]
    return content[:at] + content[at:end] * (0, 2)[what] + content[end:]


def tiff_entry(rng: Rng, content: bytes) -> bytes:
    """Tag, type, count or value of an entry of the first directory."""
    if len(content) < 16 or content[:2] not in (b"II", b"MM"):
        return number(rng, content)
    order = "<" if content[:2] == b"II" else ">"
    at = struct.unpack(order + "I", content[4:8])[0]
    if at + 2 > len(content):
        return number(rng, content)
    count = struct.unpack(order + "H", content[at : at + 2])[0]
    entry = at + 2 + 12 * int(rng.integers(max(1, min(count, 40))))
    offset, kind = ((0, "h"), (2, "h"), (4, "i"), (8, "i"), (8, "h"))[int(rng.integers(5))]
    return content[: entry + offset] + packed(rng, order, kind) + content[entry + offset + struct.calcsize(kind) :]


def jpeg_segment(rng: Rng, content: bytes) -> bytes:
    """A number in one of the segments before the scan."""
    places = [m.start() for m in re.finditer(rb"\xff[\xc0-\xcf\xda-\xef]", content)] or [0]
    at = places[int(rng.integers(len(places)))] + int(rng.integers(2, 14))
    kind = str(rng.choice(["b", "h"]))
    return content[:at] + packed(rng, ">", kind) + content[at + struct.calcsize(kind) :]


def of_kind(name: str) -> tuple[Mutation, ...]:
    """The changes for files of this name's kind; those that find most stand twice."""
    if name.endswith(".png"):
        return (png_number, png_chunk)
    if name.endswith(".nrrd"):
        return (nrrd_word, nrrd_word, nrrd_line, nrrd_unpacked)
    if name.endswith(".nii.gz"):
        return (zipped(nifti_number), zipped(nifti_number), zipped(cut), zipped(flip))
    if name.endswith(".nii"):
        return (nifti_number,)
    if name.endswith(".dcm"):
        return (dicom_value, dicom_value, dicom_length, dicom_element)
    if name.endswith((".tif", ".tiff")):
        return (tiff_entry,)
    if name.endswith((".jpg", ".jpeg")):
        return (jpeg_segment,)
    if name.endswith(".bmp"):
        return (lambda rng, content: number(rng, content, 54),)
    if name.endswith(".gif"):
        return (lambda rng, content: number(rng, content, 40),)
    return ()


# --- the parts of a file ----------------------------------------------------------------------------------------------


def any_word(rng: Rng) -> bytes:
    words = WORDS if rng.random() < 0.7 else WORDS_MORE
    return words[int(rng.integers(len(words)))].encode()


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of a PNG file's chunks; what is not a chunk is one of its own."""
    found, at = [], 8
    while at + 8 <= len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found or [(b"IHDR", content)]


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def nrrd_parts(content: bytes) -> tuple[bytes, bytes]:
    """(header with its empty line, the rest)."""
    head, gap, body = content.partition(b"\n\n")
    return head + gap, body


def dicom_element_at(rng: Rng, content: bytes) -> tuple[int, bytes, int, int, int]:
    """(begin, type, begin of the value, its length, end) of a data element; explicit little endian, else anything."""
    found, at = [], 132
    while at + 8 <= len(content):
        kind = content[at + 4 : at + 6]
        if not kind.isalpha():
            break
        long = kind in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OF", b"OD", b"OL")
        start = at + (12 if long else 8)
        size = struct.unpack(
            "<I" if long else "<H", content[start - (4 if long else 2) : start].ljust(4 if long else 2, b"\0")
        )[0]
        if size == 0xFFFFFFFF:
            size = max(0, len(content) - start)
        found.append((at, kind, start, size, start + size))
        at = start + size
    if not found:
        at = min(132, len(content))
        return at, b"UN", at, 0, at
    return found[int(rng.integers(len(found)))]
