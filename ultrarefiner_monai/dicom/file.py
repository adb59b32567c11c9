"""Opening DICOM files: bounded inflation, files without a preamble, and which files are pictures."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.header import element

DEFLATED = "1.2.840.10008.1.2.1.99"
_INFLATED_BYTES = 512 << 20
_HEADER_BYTES = 1 << 20  # of a deflated file, for its header alone
_PIECES, _PIECE = 4, 16 << 10
_DESCRIPTION = ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "PhotometricInterpretation")
_STORAGE = "1.2.840.10008.5.1.4.1.1"
SINGLE_FRAME, MULTI_FRAME = f"{_STORAGE}.6.1", f"{_STORAGE}.3.1"  # SOP classes of ultrasound images
# The beginnings of SOP class UIDs; what follows them are variants of the same.
_OTHER_CLASSES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR, the index of a disc",
    f"{_STORAGE}.66.4": "a DICOM segmentation",
    f"{_STORAGE}.66": "DICOM raw data or a registration",
    f"{_STORAGE}.88.59": "a DICOM key object selection",
    f"{_STORAGE}.88": "a DICOM structured report",
    f"{_STORAGE}.104.1": "a PDF document in DICOM",
    f"{_STORAGE}.104": "a document in DICOM",
    f"{_STORAGE}.11": "a DICOM presentation state",
    f"{_STORAGE}.9": "a DICOM waveform",
    f"{_STORAGE}.481": "a DICOM radiotherapy object",
}
_OTHER_MODALITIES = {
    "SEG": "a DICOM segmentation",
    "SR": "a DICOM structured report",
    "KO": "a DICOM key object selection",
    "PR": "a DICOM presentation state",
    "DOC": "a document in DICOM",
    "RTSTRUCT": "a DICOM radiotherapy object",
    "REG": "a DICOM registration",
}


def has_mark(path: str | Path) -> bool:
    """Whether the four letters after the preamble are there; exports from a PACS often have no extension."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open_dicom(path: Path, header_only: bool = False, tags: list[str] | None = None) -> Any:
    """The pydicom Dataset of a file, with its file_meta. header_only: without pixels; tags: only these elements.

    Raises InputError for what is no DICOM file, and for a deflated one that inflates to more than 512 MB.
    """
    import pydicom

    if tags is not None:
        tags = [*tags, "Rows", "SOPClassUID"]
    options: dict[str, Any] = {"stop_before_pixels": header_only, "specific_tags": tags}
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except pydicom.errors.InvalidDicomError:
        dataset = pydicom.dcmread(path, force=True, **options)  # no preamble: some exports leave it out
        if "Rows" not in dataset and "SOPClassUID" not in dataset:
            raise InputError(f"{path.name} is not a DICOM file") from None
        return dataset
    if element(meta, "TransferSyntaxUID") == DEFLATED:
        return _inflated(path, meta, header_only)
    try:
        return pydicom.dcmread(path, **options)
    except Exception:
        found = _read_around(path, meta, header_only)
        if found is None:
            raise
        return found


def _read_around(path: Path, meta: Any, header_only: bool) -> Any | None:
    """A file that pydicom gives up, without its broken sequences of no given length; ``passed_over`` of the dataset names
    them. None where that is not what is wrong with it."""
    from pydicom import Dataset
    from pydicom.filereader import read_dataset
    from pydicom.fileutil import read_undefined_length_value
    from pydicom.tag import SequenceDelimiterTag, Tag
    from pydicom.uid import UID

    length, syntax = element(meta, "FileMetaInformationGroupLength"), UID(str(element(meta, "TransferSyntaxUID", "")))
    if length is None or not syntax.is_transfer_syntax:
        return None
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    dataset: Any = Dataset()
    dataset.passed_over = []
    try:
        with path.open("rb") as file:
            file.seek(132 + 12 + int(length))
            while True:
                dataset.update(read_dataset(file, implicit, little, stop_when=_at_open_end))
                start, head = file.tell(), file.read(4)
                if len(head) < 4:
                    break
                tag = Tag(*struct.unpack("<HH" if little else ">HH", head))
                file.seek(start)
                if tag >= 0x7FE00008:
                    if not header_only:
                        dataset.update(read_dataset(file, implicit, little))
                    break
                try:
                    dataset.update(read_dataset(file, implicit, little, stop_when=partial(_is_other, tag)))
                except Exception:  # this is the one
                    dataset.passed_over.append(tag)
                    file.seek(start + (8 if implicit else 12))
                    read_undefined_length_value(file, little, SequenceDelimiterTag)
    except Exception:
        return None
    dataset.file_meta = meta
    dataset.set_original_encoding(implicit, little)
    return dataset


def _at_open_end(tag: Any, vr: Any, length: int) -> bool:
    return length == 0xFFFFFFFF or tag >= 0x7FE00008


def _is_other(wanted: Any, tag: Any, vr: Any, length: int) -> bool:
    return tag != wanted


def _inflated(path: Path, meta: Any, header_only: bool) -> Any:
    """pydicom inflates without a bound, and a small file can inflate to any size."""
    from pydicom.filereader import read_dataset

    length = meta.get("FileMetaInformationGroupLength")
    if length is None:
        raise InputError(f"{path.name} is deflated and lacks the length of its header: export it uncompressed")
    with path.open("rb") as file:
        file.seek(132 + 12 + int(length))
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        content = unpacker.decompress(file.read(), _HEADER_BYTES if header_only else _INFLATED_BYTES)
    if not header_only and (unpacker.unconsumed_tail or not unpacker.eof):
        why = f"inflates to more than {_INFLATED_BYTES >> 20} MB" if unpacker.unconsumed_tail else "is truncated"
        raise InputError(f"{path.name} is deflated and {why}: export it uncompressed, or with JPEG, JPEG 2000 or RLE")
    dataset = read_dataset(io.BytesIO(content), False, True, stop_when=_at_pixels if header_only else None)
    dataset.file_meta = meta
    dataset.set_original_encoding(False, True)
    return dataset


def pixel_digest(path: str | Path, whole: bool = False) -> str:
    """A digest of a file's pixel data and their description, whatever else its header says; of the file where it holds
    none. Without ``whole``, large pixel data count by their size and four pieces: enough to know a picture again.
    "" where the file cannot be read.
    """
    import pydicom

    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            try:
                header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(_DESCRIPTION))
                start = file.tell()
                digest.update(repr([str(element(header, keyword)) for keyword in _DESCRIPTION]).encode())
            except Exception:  # a damaged header: the file as it is
                start = 0
            end = file.seek(0, os.SEEK_END)
            start = 0 if start >= end else start
            digest.update(str(end - start).encode())
            if whole or end - start <= _PIECES * _PIECE:
                file.seek(start)
                while block := file.read(1 << 20):
                    digest.update(block)
            else:
                for k in range(_PIECES):
                    file.seek(start + (end - start - _PIECE) * k // (_PIECES - 1))
                    digest.update(file.read(_PIECE))
    except OSError:
        return ""
    return digest.hexdigest()[:32]


def _at_pixels(tag: Any, vr: Any, length: int) -> bool:
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def not_an_image(dataset: Any) -> str | None:
    """What a DICOM object is that shows no picture of a patient ("a DICOM segmentation"), None for an image. Needs no
    more than its SOPClassUID and Modality."""
    meta = getattr(dataset, "file_meta", None) or {}
    sop_class = str(element(dataset, "SOPClassUID", "") or element(meta, "MediaStorageSOPClassUID", ""))
    modality = str(element(dataset, "Modality", ""))
    for root, kind in _OTHER_CLASSES.items():
        if sop_class == root or sop_class.startswith(f"{root}."):
            return kind
    return _OTHER_MODALITIES.get(modality)
