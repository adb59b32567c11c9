"""A DICOM header made usable: a damaged element that is not needed does not refuse a file, a missing one with an obvious
default does not either; both give a warning.

pydicom converts an element when it is asked for, so that anything (a decimal comma, three values for two) raises wherever
it is first touched. Whatever the readers touch goes through here once; after that, plain access is safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ultrarefiner_monai.core.types import InputError

# What the readers look at besides the pixels and what describes them.
_SEQUENCES = ("SequenceOfUltrasoundRegions", "SharedFunctionalGroupsSequence", "VOILUTSequence", "ModalityLUTSequence")
_VALUES = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber", "Modality", "PatientID"),
    *("PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PlanarConfiguration"),
)
# How many numbers an element must have where another count has no meaning.
_COUNTS = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3}
_NESTED_LEVELS = 8
_COLOUR = ("RGB", "YBR", "HSV", "ARGB", "CMYK")
_FLAGS = ("PixelRepresentation", "PlanarConfiguration")
_ASKED = ("Rows", "Columns", "BitsAllocated")


def element(dataset: Any, keyword: str, default: Any = None) -> Any:
    """The value of an element; ``default`` where it is missing, empty, or cannot be converted."""
    try:
        value = dataset.get(keyword, None)
    except Exception:  # pydicom converts now, and raises anything
        return default
    return default if value is None or (isinstance(value, (str, bytes)) and not value) else value


def whole_number(dataset: Any, keyword: str) -> int | None:
    """The element as a whole number, None where it is missing or none."""
    try:
        return int(element(dataset, keyword))
    except (TypeError, ValueError, OverflowError):
        return None


def numbers(dataset: Any, keyword: str) -> list[float]:
    """The values of an element as numbers; empty where it is missing, empty or holds anything else (a decimal comma)."""
    value = element(dataset, keyword)
    values = value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]
    try:
        return [float(v) for v in values]
    except (TypeError, ValueError):
        return []


def drop_damaged(dataset: Any, warnings: list[str]) -> None:
    """Take out of ``dataset`` what the readers would fail at, with a warning for each."""
    for keyword in (*_VALUES, *_SEQUENCES):
        try:
            if keyword not in dataset:
                continue
            value = dataset[keyword].value
            if keyword in _SEQUENCES:
                for item in value or ():
                    _drop_damaged_in(item, _NESTED_LEVELS)
            elif keyword in _COUNTS and value is not None and not _are_numbers(value, _COUNTS[keyword]):
                raise ValueError(f"expected {_COUNTS[keyword]} numbers")
        except Exception as error:
            warnings.append(f"{keyword} cannot be read ({_short(error)}): it is not used")
            del dataset[keyword]


def _drop_damaged_in(item: Any, levels: int) -> None:
    for tag in list(item.keys()):
        try:
            found = item[tag]
            if found.VR == "SQ" and levels:
                for inner in found.value or ():
                    _drop_damaged_in(inner, levels - 1)
        except Exception:  # what is left of a region or a group says whether it can be used
            del item[tag]


def _are_numbers(value: Any, count: int) -> bool:
    if value == "":
        return True
    try:
        return len(value) == count and all(math.isfinite(float(v)) for v in value)
    except (TypeError, ValueError):
        return False


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def frames_said(dataset: Any, warnings: list[str] | None = None) -> int:
    """NumberOfFrames; 1 where it is missing, and, with a warning, where it is none. So do ITK and 3D Slicer."""
    value = element(dataset, "NumberOfFrames")
    count = whole_number(dataset, "NumberOfFrames")
    if count is not None and count >= 1:
        return count
    if value is not None and warnings is not None:
        warnings.append(f"NumberOfFrames is {value!r:.40}: it is taken as 1")
    return 1


def fill_in(name: str, dataset: Any, warnings: list[str]) -> None:
    """Put in what is missing of the description of the pixels and has an obvious default, with a warning for each.

    Raises InputError for what has none: rows, columns, bits, and colours that nothing tells.
    """
    missing = [k for k in _ASKED if not whole_number(dataset, k)]
    photometric = str(element(dataset, "PhotometricInterpretation", "")).strip()
    samples = whole_number(dataset, "SamplesPerPixel") or _samples_of(dataset, photometric)
    if samples is None or (not photometric and samples not in (1, 3)):
        missing.append("PhotometricInterpretation")
    if missing or samples is None:
        raise InputError(f"{name} lacks {', '.join(missing)}: its pixels cannot be decoded")
    for keyword in _ASKED:
        _keep(dataset, keyword, whole_number(dataset, keyword))
    allocated, compressed = int(dataset.BitsAllocated), _is_encapsulated(dataset)
    stored = whole_number(dataset, "BitsStored")
    if stored is not None and not 1 <= stored <= allocated:
        warnings.append(f"BitsStored is {stored}, of {allocated} bits: it is taken as {allocated}")
        dataset.BitsStored = allocated
    colour = "YBR_FULL_422" if _is_baseline_jpeg(dataset) else "RGB"
    defaults = {
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": "MONOCHROME2" if samples == 1 else colour,
        "BitsStored": allocated,
        "PixelRepresentation": 0,
    }
    if samples > 1:
        defaults["PlanarConfiguration"] = 0
    for keyword, value in defaults.items():
        there = photometric if keyword == "PhotometricInterpretation" else whole_number(dataset, keyword)
        if keyword in _FLAGS and there not in (None, 0, 1):
            warnings.append(f"{keyword} is {there}, which means nothing: it is taken as {value}")
            setattr(dataset, keyword, value)
        elif there is None or there == "":
            setattr(dataset, keyword, value)
            if not (compressed and keyword == "PlanarConfiguration"):  # the stream says that by itself
                warnings.append(f"the file lacks {keyword}: it is taken as {value}")
        else:
            _keep(dataset, keyword, there)
    if whole_number(dataset, "HighBit") is None:
        dataset.HighBit = int(dataset.BitsStored) - 1  # nothing else is in use


def _keep(dataset: Any, keyword: str, value: Any) -> None:
    """The element as this value: numbers are also found as text, and text with blanks."""
    if dataset[keyword].value != value:
        setattr(dataset, keyword, value)


def _samples_of(dataset: Any, photometric: str) -> int | None:
    """SamplesPerPixel as the other elements tell it."""
    if photometric:
        return 3 if photometric.startswith(_COLOUR) else 1
    if _is_encapsulated(dataset) or "PixelData" not in dataset:
        return None
    pixels = (whole_number(dataset, "Rows") or 0) * (whole_number(dataset, "Columns") or 0)
    size = pixels * frames_said(dataset) * ((whole_number(dataset, "BitsAllocated") or 0) + 7 >> 3)
    return {size: 1, 3 * size: 3}.get(len(dataset.PixelData)) or {
        size + size % 2: 1,
        3 * size + size % 2: 3,
    }.get(len(dataset.PixelData))


def _is_encapsulated(dataset: Any) -> bool:
    return "PixelData" in dataset and bool(getattr(dataset["PixelData"], "is_undefined_length", False))


def _is_baseline_jpeg(dataset: Any) -> bool:
    return str(dataset.file_meta.get("TransferSyntaxUID", "")) in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


# --- a file that does not say how it is coded -------------------------------------------------------------------------


def transfer_syntax(name: str, dataset: Any, warnings: list[str]) -> str:
    """The file's TransferSyntaxUID; where it is missing, what its bytes look like, with a warning. It is also set in
    ``dataset.file_meta``. Raises InputError where they look like nothing that is known."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    said = str(element(dataset.file_meta, "TransferSyntaxUID", "")).strip("\0 ")
    if said:
        dataset.file_meta.TransferSyntaxUID = UID(said)
        return said
    if _is_encapsulated(dataset):
        found = _syntax_of_stream(bytes(dataset.PixelData))
        if found is None:
            raise InputError(f"{name} does not say how its pixels are coded (TransferSyntaxUID), nor do they show it")
    elif dataset.original_encoding[0]:
        found = str(ImplicitVRLittleEndian)
    else:
        found = str(ExplicitVRBigEndian if dataset.original_encoding[1] is False else ExplicitVRLittleEndian)
    uid = UID(found)
    warnings.append(f"the file does not say how its pixels are coded (TransferSyntaxUID): taken for {uid.name}")
    dataset.file_meta.TransferSyntaxUID = uid
    return found


def _syntax_of_stream(data: bytes) -> str | None:
    """The transfer syntax of encapsulated pixel data by the first bytes of its first frame."""
    table = int.from_bytes(data[4:8], "little")
    stream = data[8 + table + 8 :][: 1 << 16]
    if stream.startswith(b"\xff\x4f\xff\x51"):  # SOC, SIZ; CAP with bit 14 of Pcap is Part 15
        return "1.2.840.10008.1.2.4.203" if b"\xff\x50" in stream[:200] else "1.2.840.10008.1.2.4.91"
    if stream.startswith(b"\xff\xd8"):
        return _syntax_of_jpeg(stream)
    segments = int.from_bytes(stream[:4], "little")
    if 1 <= segments <= 15 and int.from_bytes(stream[4:8], "little") == 64:
        return "1.2.840.10008.1.2.5"
    return None


def _syntax_of_jpeg(stream: bytes) -> str | None:
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        known = {0xC0: "4.50", 0xC1: "4.51", 0xC3: "4.57", 0xF7: "4.81"}.get(marker)
        if known:
            return f"1.2.840.10008.1.2.{known}"
        at += 2 + length
    return None
