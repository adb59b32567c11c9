"""DICOM files with pixels -> ``Study``. Meant for ultrasound; other modalities are read with a warning.

Spacing, for measuring: the tissue region of SequenceOfUltrasoundRegions (PS3.3 C.8.5.5), then PixelSpacing,
ImagerPixelSpacing, the shared functional groups. Geometry, for placing: what ITK's reader (so 3D Slicer) gives the same
file. It knows PixelSpacing but **not** the ultrasound regions, and takes 1 mm where the former is missing; a mask that
carried the regions' spacing would lie shrunken in the corner of the picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.data.regions import region_spacing_mm, tissue_regions
from ultrarefiner_monai.data.study import (
    RAS_FROM_LPS,
    Geometry,
    Limits,
    Study,
    flat_geometry,
    luminance,
    plausible_spacing,
    to_unit,
)
from ultrarefiner_monai.types import InputError

_STORAGE = "1.2.840.10008.5.1.4.1.1"
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
_PIXEL_KEYWORDS = (
    "Rows Columns SamplesPerPixel PlanarConfiguration PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
).split()


def read_dicom(path: Path, limits: Limits, region_spacing: bool = False, decode: bool = True) -> Study:
    """One DICOM file; frames of a cine are decoded when they are asked for. Raises InputError (see ``read_study``).

    region_spacing: place the grid by the pixels' known size instead of as ITK does (``series.read_series``).
    decode: also decode a single frame at once; without it a damaged one raises at ``frame``, as a cine's.
    """
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:  # pydicom would inflate it without a bound
            raise InputError(f"{path.name} is deflated: export it uncompressed, or with JPEG, JPEG 2000 or RLE")
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError:
        dataset = pydicom.dcmread(path, force=True)  # no preamble: some exports leave it out
        if "Rows" not in dataset:
            raise InputError(f"{path.name} is not a DICOM file") from None
    modality = str(dataset.get("Modality", "") or "unknown")
    kind = not_an_image(dataset)
    if kind is not None:
        raise InputError(f"{path.name} is {kind}: expected an image")
    if "PixelData" not in dataset:
        raise InputError(f"{path.name} holds no pixels (modality {modality}), or is cut off before them")
    missing = [k for k in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if k not in dataset]
    if missing:
        raise InputError(f"{path.name} lacks {', '.join(missing)}: its pixels cannot be decoded")
    height, width, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames", None) or 1)
    limits.check(path.name, height, width, count)
    warnings = [] if modality == "US" else [f"modality {modality}: made for breast ultrasound (US)"]
    load = _frame_loader(path.name, dataset, count)
    if count == 1 and decode:
        only = load(0)  # a damaged picture must be refused now, not at the first click
        load = _same(only)
    spacing = spacing_mm(dataset, warnings)
    geometry = _geometry(dataset, height, width, count, spacing if region_spacing else None)
    patient = str(dataset.get("PatientID", "") or "")
    regions = tissue_regions(dataset, height, width, warnings)
    return Study(path, "dicom", height, width, count, geometry, load, spacing, patient, warnings, regions)


def not_an_image(dataset: Any) -> str | None:
    """What a DICOM object is that shows no picture of a patient ("a DICOM segmentation"), None for an image. Needs no
    more than its SOPClassUID and Modality."""
    sop_class, modality = str(dataset.get("SOPClassUID", "") or ""), str(dataset.get("Modality", "") or "")
    for root, kind in _OTHER_CLASSES.items():
        if sop_class == root or sop_class.startswith(f"{root}."):
            return kind
    return _OTHER_MODALITIES.get(modality)


def _same(frame: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda index: frame.copy()


# --- pixels -----------------------------------------------------------------------------------------------------------


def _frame_loader(name: str, dataset: Any, count: int) -> Callable[[int], np.ndarray]:
    """index -> (H, W) float32 in [0, 1]. Keeps the file's bytes as they are; the number of frames is checked here."""
    from pydicom.encaps import encapsulate, generate_pixel_data_frame
    from pydicom.uid import ImplicitVRLittleEndian, JPEGBaseline8Bit

    header = {k: dataset[k] for k in _PIXEL_KEYWORDS if k in dataset}
    window = _window(dataset)
    height, width = int(dataset.Rows), int(dataset.Columns)
    meta = dataset.file_meta
    syntax = meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    meta.TransferSyntaxUID = syntax
    if syntax.is_compressed and not syntax.is_deflated:
        raw = list(generate_pixel_data_frame(dataset.PixelData, count))
        if len(raw) < count:
            raise InputError(f"{name} is truncated: {count} frames announced, {len(raw)} there")
        if syntax == JPEGBaseline8Bit and int(dataset.get("SamplesPerPixel", 1)) == 3:
            return _colour_jpeg_loader(name, raw, str(dataset.PhotometricInterpretation), (height, width))
        parts = [encapsulate([part]) for part in raw]
    else:
        parts = _native_parts(name, dataset, count)

    def load(index: int) -> np.ndarray:
        from pydicom import Dataset

        one = Dataset()
        for element in header.values():
            one.add(element)
        one.file_meta = meta
        one.is_little_endian, one.is_implicit_VR = dataset.is_little_endian, dataset.is_implicit_VR
        one.PixelData = parts[index]
        one["PixelData"].VR = dataset["PixelData"].VR
        one["PixelData"].is_undefined_length = syntax.is_compressed and not syntax.is_deflated
        try:
            return _grey(one, window)
        except Exception as error:  # every decoder has its own errors
            raise InputError(
                f"{name}: frame {index} cannot be decoded ({syntax.name}; {type(error).__name__}: {error})"
            ) from error

    return load


def _colour_jpeg_loader(
    name: str, frames: list[bytes], photometric: str, size: tuple[int, int]
) -> Callable[[int], np.ndarray]:
    """Baseline JPEG with three components. Decoders guess their colour space from the stream alone, and take an RGB
    stream without markers for YCbCr; DICOM says it in the header. What the stream states wins, then the header."""

    def load(index: int) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(frames[index]), formats=("JPEG",)) as image:
                if image.size != size[::-1]:
                    raise ValueError(f"the stream is {image.size}, the header says {size[::-1]}")
                grey = _jpeg_grey(image, photometric)
        except Exception as error:
            raise InputError(f"{name}: frame {index} cannot be decoded ({type(error).__name__}: {error})") from error
        return to_unit(grey)

    return load


def _jpeg_grey(image: Any, photometric: str) -> np.ndarray:
    """(H, W) uint8 of an opened JPEG."""
    layers = getattr(image, "layer", [])  # (component id, horizontal sampling, vertical sampling, table)
    named_rgb = [layer[0] for layer in layers] in ([82, 71, 66], [b"R", b"G", b"B"], ["R", "G", "B"])
    if image.mode != "RGB" or image.info.get("adobe_transform") == 0 or named_rgb:
        return luminance(np.asarray(image.convert("RGB")))
    subsampled = any(layer[1] != layers[0][1] or layer[2] != layers[0][2] for layer in layers)
    ycbcr = image.info.get("adobe_transform") == 1 or "jfif" in image.info or subsampled or photometric != "RGB"
    image.draft("YCbCr", None)  # the components as they are stored
    components = np.asarray(image)
    return components[..., 0] if ycbcr else luminance(components)


def _native_parts(name: str, dataset: Any, count: int) -> list[bytes]:
    samples = int(dataset.get("SamplesPerPixel", 1))
    pixels = int(dataset.Rows) * int(dataset.Columns)
    bits = pixels * samples * int(dataset.BitsAllocated)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        bits = pixels * 16
    if bits % 8 and count > 1:
        raise InputError(f"{name}: frames of {bits} bits do not end on a byte; export it with 8 bits a pixel")
    size = -(-bits // 8)
    data = dataset.PixelData
    if len(data) < size * count:
        raise InputError(f"{name} is truncated: {size * count} bytes of pixels announced, {len(data)} there")
    if count == 1:
        return [data]
    parts = [data[k * size : (k + 1) * size] for k in range(count)]
    return [part + b"\0" * (len(part) % 2) for part in parts]


def _window(dataset: Any) -> tuple[float, float, float, float] | None:
    """(slope, intercept, centre, width) of the first window, for more than 8 bits."""

    def first(keyword: str, default: float | None) -> float | None:
        value = dataset.get(keyword, None)
        if value is None or value == "":
            return default
        return float(value[0]) if isinstance(value, (list, tuple)) or hasattr(value, "append") else float(value)

    centre, width = first("WindowCenter", None), first("WindowWidth", None)
    if centre is None or width is None or not width > 1:
        return None
    return first("RescaleSlope", 1.0) or 1.0, first("RescaleIntercept", 0.0) or 0.0, centre, width


def _grey(one: Any, window: tuple[float, float, float, float] | None) -> np.ndarray:
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space

    pixels = one.pixel_array
    photometric = str(one.PhotometricInterpretation)  # decoders set it to RGB where they have converted
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, one)
        if pixels.dtype != np.uint8:  # 16-bit tables; some writers put 8-bit values into them
            pixels = (pixels >> 8 if int(pixels.max()) > 255 else pixels).astype(np.uint8)
        return to_unit(luminance(pixels))
    if pixels.ndim == 3:
        if photometric in ("YBR_FULL", "YBR_FULL_422"):
            pixels = convert_color_space(pixels, photometric, "RGB")
        if pixels.dtype == np.uint8:
            return to_unit(luminance(pixels))
        rgb = pixels.astype(np.float64) / (2.0 ** int(one.BitsStored) - 1)
        return np.clip(rgb @ np.array([0.299, 0.587, 0.114]), 0, 1).astype(np.float32)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"photometric interpretation {photometric} is not known")
    bits, signed = int(one.BitsStored), bool(one.PixelRepresentation)
    if window is not None and bits > 8:
        slope, intercept, centre, width = window
        unit = (pixels.astype(np.float64) * slope + intercept - centre) / width + 0.5
    elif signed:
        low, high = float(pixels.min()), float(pixels.max())
        unit = (pixels.astype(np.float64) - low) / max(high - low, 1.0)
    else:
        unit = pixels.astype(np.float32) / np.float32(2.0**bits - 1)
    unit = np.clip(unit, 0, 1).astype(np.float32)
    return 1 - unit if photometric == "MONOCHROME1" else unit


# --- spacing and geometry ---------------------------------------------------------------------------------------------


def spacing_mm(dataset: Any, warnings: list[str]) -> tuple[float, float] | None:
    """(row, column) distance of pixel centres in mm: ultrasound regions, PixelSpacing, ImagerPixelSpacing, functional
    groups; None where none is there or plausible, with a warning for what is not."""
    return region_spacing_mm(dataset, warnings) or _other_spacing_mm(dataset, warnings)


def pixel_spacing_mm(dataset: Any, warnings: list[str]) -> tuple[float, float] | None:
    """(row, column) distance of pixel centres, mm: tissue region first, then what the header says; None = unknown."""
    return region_spacing_mm(dataset, warnings) or _other_spacing_mm(dataset, warnings)


def _other_spacing_mm(dataset: Any, warnings: list[str]) -> tuple[float, float] | None:
    places = [dataset]
    for groups in dataset.get("SharedFunctionalGroupsSequence", None) or []:
        places.extend(groups.get("PixelMeasuresSequence", None) or [])
    for place in places:
        for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
            value = place.get(keyword, None)
            if value is not None and len(value) == 2:
                spacing = plausible_spacing(value[0], value[1], keyword, warnings)
                if spacing:
                    return spacing
    return None


def _geometry(dataset: Any, height: int, width: int, count: int, known: tuple[float, float] | None = None) -> Geometry:
    """ITK's view of the file: PixelSpacing or 1 mm; patient position where it is there; frames 1 mm apart. A ``known``
    (row, column) spacing stands instead of PixelSpacing."""
    spacing = dataset.get("PixelSpacing", None)
    row, column = (float(spacing[0]), float(spacing[1])) if spacing is not None and len(spacing) == 2 else (1.0, 1.0)
    if not (row > 0 and column > 0 and np.isfinite([row, column]).all()):
        row = column = 1.0
    row, column = known or (row, column)
    orientation, position = dataset.get("ImageOrientationPatient", None), dataset.get("ImagePositionPatient", None)
    if not orientation or not position or len(orientation) != 6 or len(position) != 3:
        return flat_geometry(height, width, count, (column, row))
    right, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    local = np.eye(4)
    local[:3, 0], local[:3, 1], local[:3, 2] = right * column, down * row, np.cross(right, down)
    local[:3, 3] = np.array(position, float)
    if abs(np.linalg.det(local[:3, :3])) < 1e-9:
        return flat_geometry(height, width, count, (column, row))
    return Geometry((width, height, count), RAS_FROM_LPS @ local)
