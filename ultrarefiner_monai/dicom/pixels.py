"""The pixels of a DICOM dataset: every transfer syntax and photometric interpretation that ultrasound comes in.

pydicom and its plug-ins decode; what they get wrong or do not know is done here: colours of baseline JPEG, the retired
YBR_PARTIAL, HTJ2K. Only the luminance is wanted, so YCbCr is not turned into colours where its Y can be taken.
What their values mean is decided in ``dicom.grey``. docs/it/compatibility.md lists what was tried.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import luminance, to_unit
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.codestreams import check_stream
from ultrarefiner_monai.dicom.frames import compressed_frames, native_frames
from ultrarefiner_monai.dicom.grey import Decoded, grey_loader
from ultrarefiner_monai.dicom.values import Scale, bits_holding

_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG-2 (.100) to HEVC (.108)
# Uncompressed: implicit, explicit, deflated (by now inflated), big endian. Compressed: JPEG baseline, extended, lossless
# (twice), JPEG-LS (twice), JPEG 2000 (twice), RLE, HTJ2K.
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_COMPRESSED = (
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
    "1.2.840.10008.1.2.5",
    *_HTJ2K,
)
_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_LOSSLESS_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 81))
# How many frames are decoded to learn the range of a file's values: native ones cost nothing, the others do.
_SAMPLES = {False: 64, True: 9}
_PIXEL_KEYWORDS = (
    "Rows Columns SamplesPerPixel PlanarConfiguration PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData"
).split()


def frame_loader(
    name: str, dataset: Any, count: int, warnings: list[str], scale: Scale | None = None
) -> Callable[[int], np.ndarray]:
    """index -> (H, W) float32 in [0, 1]. Keeps the file's bytes as they are; the number of frames is checked here.

    scale: one for several files whose greys must agree. Some frames are decoded to learn what their values are, where the
    header alone does not say it. Raises InputError for a transfer syntax that is not read (it names it), and for fewer
    frames than announced.
    """
    from pydicom.encaps import encapsulate

    header = {k: dataset[k] for k in _PIXEL_KEYWORDS if k in dataset}
    size = (int(dataset.Rows), int(dataset.Columns))
    syntax = dataset.file_meta.TransferSyntaxUID
    meta = dataset.file_meta
    compressed = _is_compressed(name, syntax)
    if compressed:
        raw = compressed_frames(name, dataset, syntax, count, warnings)
        if syntax in _JPEG and int(dataset.SamplesPerPixel) == 3 and int(dataset.BitsStored) <= 8:
            return _colour_jpeg_loader(name, raw, str(dataset.PhotometricInterpretation), size)
        plain = _plain_decoder(syntax, dataset) is not None
        parts = raw if plain else [encapsulate([part]) for part in raw]
    else:
        parts = native_frames(name, dataset, count, warnings)
    # Not the dataset itself: it holds all pixels once more.
    coding, kind = dataset.original_encoding, dataset["PixelData"].VR

    def decode(index: int) -> Decoded:
        from pydicom import Dataset

        one = Dataset()
        for element in header.values():
            one.add(copy(element))  # what decodes rewrites them
        one.file_meta = meta
        one.set_original_encoding(*coding)
        one.PixelData = parts[index]
        one["PixelData"].VR = kind
        one["PixelData"].is_undefined_length = compressed
        try:
            return _decoded(one, size)
        except Exception as error:  # every decoder has its own errors
            words = " ".join(str(error).split())  # of several decoders: several lines
            raise InputError(
                f"{name}: frame {index} cannot be decoded ({syntax.name}; {type(error).__name__}: {words})"
            ) from error

    return grey_loader(dataset, count, decode, warnings, scale or Scale(), _SAMPLES[compressed])


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


def _decoded(one: Any, size: tuple[int, int]) -> Decoded:
    from pydicom.pixels import get_decoder

    if one.file_meta.TransferSyntaxUID.startswith("1.2.840.10008.1.2.4."):  # JPEG and its kin
        check_stream(one.PixelData, *size)
    named = str(one.PhotometricInterpretation)
    decode = _plain_decoder(one.file_meta.TransferSyntaxUID, one)
    if decode is not None:
        pixels, photometric = decode(one.PixelData), named
    else:
        if named == "YBR_PARTIAL_422":  # stored alike; pydicom knows the other name only
            one.PhotometricInterpretation = "YBR_FULL_422"
        # raw: colours stay as they are stored; what a decoder has turned to RGB all the same, it says. Bits beyond those that the
        # header announces are kept: it is often wrong, and ``grey_loader`` looks.
        decoder = get_decoder(one.file_meta.TransferSyntaxUID)
        pixels, facts = decoder.as_array(one, raw=True, correct_unused_bits=False)
        photometric = str(facts["photometric_interpretation"])
    if pixels.shape[:2] != size:
        raise ValueError(f"the stream is {pixels.shape[1]} x {pixels.shape[0]}, the header says {size[1]} x {size[0]}")
    if photometric == "PALETTE COLOR":
        return Decoded(_palette_grey(one, pixels), "MONOCHROME2", is_grey=True)
    if pixels.ndim == 2 and photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"photometric interpretation {photometric} is not known")
    return Decoded(pixels, named if named.startswith("YBR_PARTIAL") else photometric)


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
    from pydicom.pixels import apply_color_lut

    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    if one.original_encoding[1] is False and "GreenPaletteColorLookupTableData" in one:
        if int(one.GreenPaletteColorLookupTableDescriptor[2]) == 16:  # pydicom takes the tables for little endian
            for name in names:
                setattr(one, name, np.frombuffer(one[name].value, ">u2").astype("<u2").tobytes())
    colours = apply_color_lut(pixels, one)
    if colours.dtype != np.uint8:  # 16-bit tables; some writers put values of 8 or 12 bits into them
        tables = [np.frombuffer(one[name].value, "<u2").max() for name in names if name in one]
        highest = int(max(tables)) if tables else int(colours.max())
        colours = (colours >> (bits_holding(highest) - 8)).astype(np.uint8)
    return luminance(colours)
