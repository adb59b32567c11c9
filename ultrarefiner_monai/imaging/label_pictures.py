"""What a picture that is a label means: PNG, TIFF, BMP and JPEG pages -> the mask that they show.

Colours count, never a palette's indices. The lesion is the one colour that is not black. Annotation tools also keep the
mask in the transparency: it counts where the colours say nothing else, and where both say the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import luminance
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.pictures import is_halved, stored_numbers, white_is_zero
from ultrarefiner_monai.masks.label_values import NEAR, cut, from_numbers, listed, two_values

LOSSY = "its label is of a lossy picture, or has soft edges: the grey levels are cut in the middle"


def from_picture(image: Any, warnings: list[str], soft: bool = False, coloured: bool = False) -> np.ndarray:
    """The current page of a Pillow image -> (H, W) uint8, 1 inside of the lesion.

    Exactly one colour (or grey value) and black; {0, 1}, {0, 128}, {0, 255}, one bit and 16 bits alike. Levels near
    black and white, as JPEG leaves them, are cut in the middle with a warning (``cut``; soft: its). coloured: any
    colours beside black are lesions (classes of a data set). Raises InputError for what else there is, with its colours.
    """
    if image.mode == "1" and "transparency" not in image.info:
        return np.asarray(image).astype(np.uint8)
    lossy = image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    halved = is_halved(image)
    colours, alpha = _pixels(image)
    if coloured and colours.ndim == 3:
        colours = colours.max(axis=-1)
    if alpha is not None and alpha.min() == alpha.max():
        if not alpha.any() and colours.any():
            raise InputError("its label is wholly transparent, but has colours; save it without transparency")
        alpha = None
    if alpha is not None:
        return _of_alpha(colours, alpha, soft, warnings)
    if halved and colours.min() == colours.max():
        raise InputError("its label has 16 bits a colour, and the upper 8 are the same everywhere; save it with 8 bits")
    return _of_colours(colours, lossy, soft, warnings)


def _pixels(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(colours: (H, W) numbers, or (H, W, 3) uint8 where they are not grey; transparency (H, W) uint8 or None)."""
    clear = image.info.get("transparency")
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        grey = stored_numbers(image)
        if white_is_zero(image) and grey.dtype.kind == "u":
            grey = np.iinfo(grey.dtype).max - grey
        grey = grey.astype(np.uint8) * np.uint8(255) if image.mode == "1" else grey
        alpha = None if clear is None else np.where(grey == clear, 0, 255).astype(np.uint8)
        return grey, alpha
    alpha = None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and clear is not None):
        pixels = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
        alpha = pixels[..., 3]
    else:
        pixels = np.asarray(image.convert("RGB"))
        if image.mode == "RGB" and isinstance(clear, tuple):
            alpha = np.where((pixels == np.array(clear)).all(axis=-1), 0, 255).astype(np.uint8)
    colours = pixels[..., :3]
    if _is_grey(colours):
        colours = np.ascontiguousarray(colours[..., 0])
    return colours, alpha


def _is_grey(colours: np.ndarray) -> bool:
    return bool((colours[..., 0] == colours[..., 1]).all() and (colours[..., 1] == colours[..., 2]).all())


def _codes(colours: np.ndarray) -> np.ndarray:
    """One number for each colour, 0 for black."""
    if colours.ndim == 2:
        return colours
    codes = colours[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes <<= 8
        codes |= colours[..., channel]
    return codes


def _of_colours(colours: np.ndarray, lossy: bool, soft: bool, warnings: list[str]) -> np.ndarray:
    if colours.ndim == 2 and colours.dtype != np.uint8:
        return from_numbers(colours)
    mask = two_values(_codes(colours))
    # A lossy picture cannot be coded 0 and 1: small values are what is left of black, or nobody knows.
    if mask is not None and not (lossy and 0 < colours.max() < 128):
        return mask
    mask = None if lossy and colours.max() < 128 else _cut_colours(colours, soft)
    if mask is None:
        raise InputError(_several(colours))
    warnings.append(LOSSY)
    return mask


def _cut_colours(colours: np.ndarray, soft: bool) -> np.ndarray | None:
    if colours.ndim == 3:
        if int(np.ptp(colours, axis=-1).max()) > NEAR:  # a colour, not what a lossy coder made of a grey
            return None
        colours = luminance(colours)
    return cut(colours, soft)


def _several(colours: np.ndarray) -> str:
    """Why these colours are no label."""
    codes = _codes(colours)
    found = np.unique(codes)
    if colours.ndim == 2:
        what = f"holds the values {listed(found)}"
    else:
        what = f"holds {len(found)} colours ({', '.join(f'#{c:06x}' for c in found[:4])}{', ...' if len(found) > 4 else ''})"
    if len(found) == 2:
        return f"its label {what}, none of them black: which is the lesion? Paint the rest black, and save it again"
    return (
        f"its label {what}; expected 0 and one other (black and one colour), the lesion: a probability map, a picture or "
        "several labels are no label. Keep one label, without soft edges, and save it again as PNG"
    )


def _of_alpha(colours: np.ndarray, alpha: np.ndarray, soft: bool, warnings: list[str]) -> np.ndarray:
    """The mask of a picture whose transparency differs from pixel to pixel."""
    said: list[str] = []
    try:
        shown: np.ndarray | None = _of_colours(colours, False, soft, said)
    except InputError:
        shown = None
    if alpha.min() > 0:  # all of it is seen: as a mask only where the transparency follows the colours
        solid = alpha == alpha.max()
        plain = bool((solid | (alpha == alpha.min())).all())
        if shown is not None and plain and shown.min() != shown.max():
            if np.array_equal(shown.astype(bool), solid) or np.array_equal(shown == 0, solid):
                warnings += said
                return shown
        raise InputError(_CONTRADICTION)
    drawn = two_values(alpha)
    edges = np.zeros(alpha.shape, bool)
    if drawn is None:
        drawn, edges = cut(alpha, soft), (alpha > NEAR) & (alpha < 255 - NEAR)
        warnings.append(LOSSY)
    if drawn is None:
        raise InputError(
            f"its label has {len(np.unique(alpha))} degrees of transparency; expected two, or none. Save it without "
            "transparency, in black and one colour"
        )
    if shown is not None and shown.min() != shown.max():
        if ((shown != drawn) & ~edges).any():
            raise InputError(_CONTRADICTION)
        return drawn
    seen = _codes(colours)[drawn.astype(bool) & ~edges]
    one = seen.size == 0 or bool((seen == seen[0]).all())
    # Black that hides several colours: a picture with a hole, or a mask drawn in black? Nobody knows.
    if not one or (shown is None and not seen.any()):
        raise InputError(_CONTRADICTION)
    return drawn


_CONTRADICTION = (
    "its label says one thing in its colours and another in its transparency; expected the lesion in one colour on black. "
    "Save it without transparency"
)
