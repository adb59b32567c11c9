"""Decoded pixels of a DICOM file -> grey: which window, look-up table or scale holds for all of its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import luminance, to_unit
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.values import Scale, Table, Window, shows_nothing, table_of, window_of

_WEIGHTS = np.array([0.299, 0.587, 0.114])
_WINDOW_SAMPLES = 5


@dataclass(frozen=True)
class Decoded:
    """One frame: (H, W) values or (H, W, 3) colours as they are stored, and what they are. is_grey: (H, W) uint8, done."""

    pixels: np.ndarray
    photometric: str
    is_grey: bool = False


def grey_loader(
    dataset: Any,
    count: int,
    decode: Callable[[int], Decoded],
    warnings: list[str],
    scale: Scale,
    samples: int,
) -> Callable[[int], np.ndarray]:
    """index -> (H, W) float32 in [0, 1] by ``decode``; at most ``samples`` frames are looked at beforehand. What is found
    out is added to ``warnings``, at the latest when a frame is loaded."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    photometric = str(dataset.PhotometricInterpretation)
    mono = photometric.startswith("MONOCHROME")
    signed = mono and bool(int(dataset.PixelRepresentation))
    bits = 0 if signed else _without_overlays(dataset)
    # 8 bits in 8 leave nothing to find out. A window counts beyond 8 bits only: those of 8 are pictures already.
    clear = (allocated <= 8 and stored == allocated and not signed) or photometric == "PALETTE COLOR"
    tone: Window | Table | None = None
    if mono and stored > 8:
        tone = window_of(dataset, warnings) or table_of(dataset)
        if "ModalityLUTSequence" in dataset and not clear:
            warnings.append("the file's modality look-up table is not applied")
    own, seen = Scale(), list[np.ndarray]()
    sign = _sign_bit(stored, allocated) if signed else 0

    def numbers(found: Decoded) -> np.ndarray:
        values = found.pixels & bits if bits else found.pixels
        return _with_sign(values, sign) if sign else values

    spread = [] if clear else sorted({round(k) for k in np.linspace(0, count - 1, min(count, samples))})
    for index in spread:
        try:
            found = decode(index)
        except InputError:  # it is refused when somebody asks for it
            continue
        values = numbers(found)
        own.see(values, stored, signed)
        if isinstance(tone, Window) and len(seen) < _WINDOW_SAMPLES:
            seen.append(values)
    if isinstance(tone, Window) and seen and shows_nothing(tone, seen):
        warnings.append(f"the file's window ({tone}) would show nearly nothing of the picture: it is not used")
        tone = None
    if clear:
        scale = Scale()
        scale.stored = stored
    elif tone is None:
        scale.join(own)
        if said := own.warning():
            warnings.append(said)

    def load(index: int) -> np.ndarray:
        found = decode(index)
        if found.is_grey:
            return to_unit(found.pixels)
        pixels = numbers(found)
        if not clear and tone is None and index not in spread and float(pixels.max()) > scale.white:
            _once(warnings, "some frames hold larger values than the others: what is beyond is shown white")
        unit = _colour_unit(pixels, found.photometric, scale) if pixels.ndim == 3 else (tone or scale).unit(pixels)
        unit = np.clip(unit, 0, 1).astype(np.float32)
        return 1 - unit if found.photometric == "MONOCHROME1" else unit

    return load


def _colour_unit(pixels: np.ndarray, photometric: str, scale: Scale) -> np.ndarray:
    white = scale.white
    if photometric.startswith("YBR_PARTIAL"):  # Y from 16 to 235
        return (pixels[..., 0].astype(np.float32) * np.float32(255 / white) - 16) / 219
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return pixels[..., 0] / np.float32(white)
    if pixels.dtype == np.uint8 and white == 255:
        return to_unit(luminance(pixels))
    return pixels.astype(np.float64) / white @ _WEIGHTS


def _sign_bit(stored: int, allocated: int) -> int:
    """The bit that is the sign of values of fewer bits than they take, 0 where the type's own is."""
    return 1 << (stored - 1) if 0 < stored < allocated else 0


def _with_sign(values: np.ndarray, sign: int) -> np.ndarray:
    """Values of fewer bits than their type -> the same with their sign. Decoders leave the bits above it 0; where they
    are filled already, or hold more than BitsStored says, the values stay."""
    if values.min(initial=0) < 0 or values.max(initial=0) >= 2 * sign:
        return values
    return (values.astype(np.int32) ^ sign) - sign


def _without_overlays(dataset: Any) -> int:
    """The mask of BitsStored where old files keep overlays in the bits above, else 0."""
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0102) in dataset and (group, 0x3000) not in dataset:
            try:
                position = int(dataset[group, 0x0102].value)
            except Exception:  # damaged: no overlay
                continue
            if position >= int(dataset.BitsStored):
                return (1 << int(dataset.BitsStored)) - 1
    return 0


def _once(warnings: list[str], text: str) -> None:
    if text not in warnings:
        warnings.append(text)
