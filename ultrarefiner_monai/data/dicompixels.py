"""The pixels of a DICOM dataset: every transfer syntax and photometric interpretation that ultrasound comes in.

pydicom and its plug-ins decode; what they get wrong or do not know is done here: colours of baseline JPEG, the retired
YBR_PARTIAL, HTJ2K. Only the luminance is wanted, so YCbCr is not turned into colours where its Y can be taken.
docs/compatibility.md lists what was tried.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np

from ultrarefiner_monai.data.codestreams import check_stream
from ultrarefiner_monai.data.study import luminance, to_unit
from ultrarefiner_monai.types import InputError

_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG-2 (.100) to HEVC (.108)
# Uncompressed: implicit, explicit, deflated (by now inflated), big endian. Compressed: JPEG baseline, extended, lossless (twice), JPEG-LS (twice),
# JPEG 2000 (twice), RLE.
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_COMPRESSED = (
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
    "1.2.840.10008.1.2.5",
    *_HTJ2K,
)
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_LOSSLESS_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 81))
_PIXEL_KEYWORDS = (
    "Rows Columns SamplesPerPixel PlanarConfiguration PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
).split()


def frame_loader(name: str, dataset: Any, count: int) -> Callable[[int], np.ndarray]:
    """index -> (H, W) float32 in [0, 1]. Keeps the file's bytes as they are; the number of frames is checked here.

    Raises InputError for a transfer syntax that is not read (it names it), and for fewer frames than announced.
    """
    from pydicom.encaps import encapsulate, generate_pixel_data_frame
    from pydicom.uid import ImplicitVRLittleEndian

    header = {k: dataset[k] for k in _PIXEL_KEYWORDS if k in dataset}
    window = _window(dataset)
    size = (int(dataset.Rows), int(dataset.Columns))
    meta = dataset.file_meta
    syntax = meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    meta.TransferSyntaxUID = syntax
    compressed = _is_compressed(name, syntax)
    if compressed:
        raw = list(generate_pixel_data_frame(dataset.PixelData, count))
        if len(raw) < count:
            raise InputError(f"{name} is truncated: {count} frames announced, {len(raw)} there")
        if syntax in _JPEG and int(dataset.get("SamplesPerPixel", 1)) == 3 and int(dataset.BitsStored) <= 8:
            return _colour_jpeg_loader(name, raw, str(dataset.PhotometricInterpretation), size)
        plain = _plain_decoder(syntax, dataset) is not None
        parts = raw if plain else [encapsulate([part]) for part in raw]
    else:
        parts = _native_parts(name, dataset, count)
    # Not the dataset itself: it holds all pixels once more.
    coding, kind = (dataset.is_little_endian, dataset.is_implicit_VR), dataset["PixelData"].VR

    def load(index: int) -> np.ndarray:
        from pydicom import Dataset

        one = Dataset()
        for element in header.values():
            one.add(copy(element))  # what decodes rewrites them
        one.file_meta = meta
        one.is_little_endian, one.is_implicit_VR = coding
        one.PixelData = parts[index]
        one["PixelData"].VR = kind
        one["PixelData"].is_undefined_length = compressed
        try:
            return _grey(one, window, size)
        except Exception as error:  # every decoder has its own errors
            raise InputError(
                f"{name}: frame {index} cannot be decoded ({syntax.name}; {type(error).__name__}: {error})"
            ) from error

    return load


def _is_compressed(name: str, syntax: Any) -> bool:
    if syntax in _NATIVE or syntax in _COMPRESSED:
        return syntax in _COMPRESSED
    what = "video" if syntax.startswith(_VIDEO) else "coded in a way that is not read"
    raise InputError(
        f"{name} is {what} ({syntax.name}): export it uncompressed, or frame by frame with JPEG, JPEG-LS, JPEG 2000 or RLE"
    )


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
    if dataset.PhotometricInterpretation in ("YBR_FULL_422", "YBR_PARTIAL_422"):
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


def _grey(one: Any, window: tuple[float, float, float, float] | None, size: tuple[int, int]) -> np.ndarray:
    if one.file_meta.TransferSyntaxUID.startswith("1.2.840.10008.1.2.4."):  # JPEG and its kin
        check_stream(one.PixelData, *size)
    named = str(one.PhotometricInterpretation)
    decode = _plain_decoder(one.file_meta.TransferSyntaxUID, one)
    if decode is not None:
        pixels, photometric = decode(one.PixelData), named
    else:
        if named == "YBR_PARTIAL_422":  # stored alike; pydicom knows the other name only
            one.PhotometricInterpretation = "YBR_FULL_422"
        pixels = one.pixel_array
        photometric = str(one.PhotometricInterpretation)  # decoders set it to RGB where they have converted
    if pixels.shape[:2] != size:
        raise ValueError(f"the stream is {pixels.shape[1]} x {pixels.shape[0]}, the header says {size[1]} x {size[0]}")
    if photometric == "PALETTE COLOR":
        return _palette_grey(one, pixels)
    if pixels.ndim == 3:
        if named.startswith("YBR_PARTIAL"):  # Y from 16 to 235
            return np.clip((pixels[..., 0].astype(np.float32) - 16) / 219, 0, 1)
        white = 2.0 ** int(one.BitsStored) - 1
        if photometric in ("YBR_FULL", "YBR_FULL_422"):
            return np.clip(pixels[..., 0] / np.float32(white), 0, 1).astype(np.float32)
        if pixels.dtype == np.uint8:
            return to_unit(luminance(pixels))
        return np.clip(pixels.astype(np.float64) / white @ np.array([0.299, 0.587, 0.114]), 0, 1).astype(np.float32)
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


def _plain_decoder(syntax: str, dataset: Any) -> Callable[[bytes], np.ndarray] | None:
    """The decoder of a stream where pydicom does not know the syntax, or would turn the colours of an RGB stream."""
    if syntax in _HTJ2K:
        import openjpeg

        return openjpeg.decode
    if syntax in _LOSSLESS_JPEG and int(dataset.get("SamplesPerPixel", 1)) == 3:
        import libjpeg

        return lambda stream: libjpeg.decode(stream, colour_transform=0)
    return None


def _palette_grey(one: Any, pixels: np.ndarray) -> np.ndarray:
    from pydicom.pixel_data_handlers.util import apply_color_lut

    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    if not one.is_little_endian and "GreenPaletteColorLookupTableData" in one:
        if int(one.GreenPaletteColorLookupTableDescriptor[2]) == 16:  # pydicom takes the tables for little endian
            for name in names:
                setattr(one, name, np.frombuffer(one[name].value, ">u2").astype("<u2").tobytes())
    colours = apply_color_lut(pixels, one)
    if colours.dtype != np.uint8:  # 16-bit tables; some writers put 8-bit values into them
        tables = [np.frombuffer(one[name].value, "<u2").max() for name in names if name in one]
        highest = int(max(tables)) if tables else int(colours.max())
        colours = (colours >> 8 if highest > 255 else colours).astype(np.uint8)
    return to_unit(luminance(colours))
