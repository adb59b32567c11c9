"""One ultrasound picture in every DICOM coding: transfer syntax x photometric interpretation. For tests and for
docs/it/compatibility.md; the encoders (imagecodecs) are no part of what serving needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from coded_file import NATIVE, card, dicom, half, palette, tables, ybr

from ultrarefiner_monai.core.image_file import luminance

RLE = ("RLE Lossless", "1.2.840.10008.1.2.5")
_J = "1.2.840.10008.1.2.4."
# Not read: video, and codings that no ultrasound scanner is known to write.
REFUSED = {
    "JPEG Full Progression (retired)": f"{_J}55",
    "JPEG 2000 Part 2 Multi-component": f"{_J}93",
    "JPIP Referenced": f"{_J}94",
    "MPEG2 Main Profile": f"{_J}100",
    "MPEG-4 AVC/H.264 High Profile": f"{_J}102",
    "HEVC/H.265 Main Profile": f"{_J}107",
    "JPEG XL": f"{_J}112",
    "private": "1.2.826.0.1.3680043.8.498.1.1",
}


@dataclass(frozen=True)
class Coded:
    """One file. expected: (T, H, W) uint8 grey; None: it must be refused. tolerance: of 255, for most of the pixels."""

    syntax: str
    photometric: str
    note: str
    content: bytes
    expected: np.ndarray | None = field(repr=False)
    tolerance: float = 1.0

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.syntax, self.photometric, self.note)))


def every_coding() -> Iterator[Coded]:
    """All of them, in the order of the table."""
    yield from _native()
    yield from _rle()
    yield from _jpeg()
    yield from _lossless_jpeg()
    yield from _jpeg_ls()
    yield from _jpeg_2000()
    rgb = card()
    for name, uid in REFUSED.items():
        yield Coded(name, "YBR_PARTIAL_420" if "MP" in name else "RGB", "", dicom(uid, "RGB", rgb, [b"\0" * 64]), None)


# --- the parts of the table -------------------------------------------------------------------------------------------


def _native() -> Iterator[Coded]:
    rgb = card()
    grey = luminance(rgb)
    for name, uid in NATIVE.items():

        def made(photometric: str, pixels: np.ndarray, expected: np.ndarray, note: str = "", **values: Any) -> Coded:
            return Coded(name, photometric, note, dicom(uid, photometric, pixels, **values), expected)  # noqa: B023

        yield made("MONOCHROME2", grey, grey[None])
        yield made("MONOCHROME1", 255 - grey, grey[None])
        yield made("MONOCHROME2", grey.astype("u2") * 16, grey[None], "12 bits", BitsStored=12, HighBit=11)
        yield made("RGB", rgb, grey[None], "planar 0")
        yield made("RGB", np.moveaxis(rgb, -1, 0), grey[None], "planar 1", PlanarConfiguration=1)
        yield made("YBR_FULL", ybr(rgb), grey[None], "planar 0")
        yield made("YBR_FULL", np.moveaxis(ybr(rgb), -1, 0), grey[None], "planar 1", PlanarConfiguration=1)
        yield made("YBR_FULL_422", half(ybr(rgb)), grey[None])
        yield made("YBR_PARTIAL_422", half(ybr(rgb, partial=True)), grey[None])
        yield made("PALETTE COLOR", *palette(grey), "8-bit table", **tables(8))
        yield made("PALETTE COLOR", *palette(grey), "16-bit table", **tables(16))
        cine = np.stack([card(k) for k in range(3)])
        yield made("RGB", cine, luminance(cine), "3 frames", NumberOfFrames=3)
        halves = np.stack([half(ybr(image, partial=True)) for image in cine])
        yield made("YBR_PARTIAL_422", halves, luminance(cine), "3 frames", NumberOfFrames=3)
        indices = luminance(cine)
        shown = np.concatenate([palette(frame)[1] for frame in indices])
        yield made("PALETTE COLOR", indices, shown, "16-bit table, 3 frames", NumberOfFrames=3, **tables(16))


def rle_stream(frame: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) as RLE Lossless."""
    from pydicom.pixels import get_encoder
    from pydicom.uid import RLELossless

    bits, samples = 8 * frame.dtype.itemsize, 1 if frame.ndim == 2 else frame.shape[2]
    facts = {"rows": frame.shape[0], "columns": frame.shape[1], "samples_per_pixel": samples, "number_of_frames": 1}
    facts |= {"bits_allocated": bits, "bits_stored": bits, "pixel_representation": 0, "planar_configuration": 0}
    colours = "MONOCHROME2" if samples == 1 else "RGB"
    encoder = get_encoder(RLELossless)
    return encoder.encode(frame, encoding_plugin="pydicom", photometric_interpretation=colours, **facts)


def _rle() -> Iterator[Coded]:

    rgb, (name, uid) = card(), RLE
    grey = luminance(rgb)

    def made(photometric: str, frames: list[np.ndarray], expected: np.ndarray, note: str = "", **values: Any) -> Coded:
        streams = [rle_stream(frame) for frame in frames]
        return Coded(name, photometric, note, dicom(uid, photometric, frames[0], streams, **values), expected)

    yield made("MONOCHROME2", [grey], grey[None])
    yield made("MONOCHROME1", [255 - grey], grey[None])
    yield made("MONOCHROME2", [grey.astype("u2") * 16], grey[None], "12 bits", BitsStored=12, HighBit=11)
    yield made("RGB", [rgb], grey[None], PlanarConfiguration=1)
    yield made("YBR_FULL", [ybr(rgb)], grey[None], PlanarConfiguration=1)
    indices, expected = palette(grey)
    yield made("PALETTE COLOR", [indices], expected, "16-bit table", **tables(16))
    cine = [card(k) for k in range(3)]
    yield made("RGB", cine, luminance(np.stack(cine)), "3 frames", PlanarConfiguration=1, NumberOfFrames=3)


def _jpeg() -> Iterator[Coded]:
    imagecodecs = _encoders()
    rgb = card()
    grey = luminance(rgb)

    def stream(image: np.ndarray, sampling: str = "444", colour: str = "YCBCR") -> bytes:
        space = {} if image.ndim == 2 else {"colorspace": "RGB", "outcolorspace": colour, "subsampling": sampling}
        return imagecodecs.jpeg8_encode(image, level=95, **space)

    for name, uid in (("JPEG Baseline", f"{_J}50"), ("JPEG Extended", f"{_J}51")):

        def made(
            photometric: str, frames: list[bytes], image: np.ndarray, expected: Any, note: str = "", **values: Any
        ):
            return Coded(name, photometric, note, dicom(uid, photometric, image, frames, **values), expected, 8)  # noqa: B023

        yield made("MONOCHROME2", [stream(grey)], grey, grey[None])
        yield made("MONOCHROME1", [stream(255 - grey)], grey, grey[None])
        yield made("YBR_FULL", [stream(rgb)], rgb, grey[None], "4:4:4")
        yield made("YBR_FULL_422", [stream(rgb, "422")], rgb, grey[None], "4:2:2")
        yield made("YBR_FULL_422", [stream(rgb, "420")], rgb, grey[None], "4:2:0")
        yield made("RGB", [stream(rgb, colour="RGB")], rgb, grey[None])
        yield made("RGB", [stream(rgb, "422")], rgb, grey[None], "header wrong: the stream is YCbCr")
        cine = [card(k) for k in range(3)]
        frames = [stream(image, "422") for image in cine]
        yield made("YBR_FULL_422", frames, rgb, luminance(np.stack(cine)), "3 frames", NumberOfFrames=3)
    wide = grey.astype("u2") * 16
    deep = imagecodecs.jpeg8_encode(wide, level=95, bitspersample=12)
    content = dicom(f"{_J}51", "MONOCHROME2", wide, [deep], BitsStored=12, HighBit=11)
    yield Coded("JPEG Extended", "MONOCHROME2", "12 bits", content, grey[None], 8)


def _lossless_jpeg() -> Iterator[Coded]:
    imagecodecs = _encoders()

    def stream(image: np.ndarray) -> bytes:
        if image.ndim == 2:
            return imagecodecs.ljpeg_encode(image, bitspersample=12 if image.dtype == np.uint16 else 8)
        return imagecodecs.jpeg8_encode(image, lossless=True, colorspace="RGB", outcolorspace="RGB")

    for name, uid in (("JPEG Lossless (process 14)", f"{_J}57"), ("JPEG Lossless (process 14, SV 1)", f"{_J}70")):
        yield from _exact(name, uid, stream)


def _jpeg_ls() -> Iterator[Coded]:
    imagecodecs = _encoders()
    yield from _exact("JPEG-LS Lossless", f"{_J}80", imagecodecs.jpegls_encode)
    yield from _exact("JPEG-LS Near-lossless", f"{_J}81", lambda image: imagecodecs.jpegls_encode(image, level=2), 4)


def _jpeg_2000() -> Iterator[Coded]:
    imagecodecs = _encoders()

    def classic(image: np.ndarray, mct: bool = False, **options: Any) -> bytes:
        return imagecodecs.jpeg2k_encode(image, codecformat="j2k", mct=mct, **options)

    def high_throughput(image: np.ndarray, mct: bool = False, reversible: bool = True, **_: Any) -> bytes:
        return imagecodecs.htj2k_encode(image, reversible=reversible, rgb=mct)

    rgb = card()
    grey = luminance(rgb)[None]
    kinds: list[tuple[str, str, Callable[..., bytes], bool]] = [
        ("JPEG 2000 Lossless", f"{_J}90", classic, True),
        ("JPEG 2000", f"{_J}91", classic, False),
        ("HTJ2K Lossless", f"{_J}201", high_throughput, True),
        ("HTJ2K Lossless RPCL", f"{_J}202", high_throughput, True),
        ("HTJ2K", f"{_J}203", high_throughput, False),
    ]
    for name, uid, encode, lossless in kinds:
        if encode is high_throughput and not hasattr(imagecodecs, "htj2k_encode"):
            continue  # the newest imagecodecs for Python 3.10 is too old
        yield from _exact(name, uid, lambda image: encode(image, reversible=True), 1)  # noqa: B023
        transformed = "YBR_RCT" if lossless else "YBR_ICT"
        options = {"reversible": True} if lossless else {"reversible": False, "level": 45}
        stream = encode(rgb, mct=True, **options)
        tolerance = 1 if lossless else 6
        yield Coded(name, transformed, "", dicom(uid, transformed, rgb, [stream]), grey, tolerance)


def _exact(name: str, uid: str, encode: Callable[[np.ndarray], bytes], tolerance: float = 1) -> Iterator[Coded]:
    """What each lossless coding can hold."""
    rgb = card()
    grey = luminance(rgb)
    indices, shown = palette(grey)
    wide = grey.astype("u2") * 16
    cine = [card(k) for k in range(3)]
    rows: list[tuple[str, list[np.ndarray], np.ndarray, str, dict[str, Any]]] = [
        ("MONOCHROME2", [grey], grey[None], "", {}),
        ("MONOCHROME1", [255 - grey], grey[None], "", {}),
        ("MONOCHROME2", [wide], grey[None], "12 bits", {"BitsStored": 12, "HighBit": 11}),
        ("RGB", [rgb], grey[None], "", {}),
        ("YBR_FULL", [ybr(rgb)], grey[None], "", {}),
        ("RGB", cine, luminance(np.stack(cine)), "3 frames", {"NumberOfFrames": 3}),
    ]
    if "Near" not in name:
        rows.append(("PALETTE COLOR", [indices], shown, "16-bit table", tables(16)))
    for photometric, frames, expected, note, values in rows:
        content = dicom(uid, photometric, frames[0], [encode(np.ascontiguousarray(f)) for f in frames], **values)
        yield Coded(name, photometric, note, content, expected, tolerance)


def _encoders() -> Any:
    return importlib.import_module("imagecodecs")  # of the extra `test` only
