"""What the values of a label mean, decided once for files, DICOM SEGs, training and ``prepare``: which pixels are the lesion.

There is one label, so a label holds two values: 0 and one other. What holds more says something that cannot be kept (two
findings, a probability, a grey picture), and is refused with its values and what to do. Messages are about "its label";
the caller puts the file's name in front. Colours and transparency of pictures: ``imaging.label_pictures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ultrarefiner_monai.core.types import LABEL_NAME, InputError

# A label that marks more of a frame is most likely inverted; the largest lesion of BUSI takes 51 %.
MOST_MARKED = 0.9
# Grey levels (of 0 to 255) from black or white that a lossy coder moves a mask by: JPEG of quality 50 moves few further.
NEAR = 32
# Pixels in between for each pixel of the outline's length (steps between a marked and an unmarked neighbour). Measured on
# masks of BUSI: JPEG of quality 5 to 95 leaves up to 1.6, resizing up to three times (anti-aliased) 1.9, a Gauss of 1
# pixel 1.9, of 2 pixels 3.7. Probability maps lie above.
EDGE = 2.0
_PART = 1 << 22  # values that are rounded at once
_LESION_WORDS = (
    "lesion",
    "mass",
    "tumor",
    "tumour",
    "neoplasm",
    "nodule",
    "cyst",
    "carcinoma",
    "cancer",
    "fibroadenoma",
)
# Names that viewers give to new segments: they say nothing about the content.
_UNSAID_WORDS = ("", "tissue", "segment", "segmentation", "roi", "region", "annotation", "unknown", "label", "mask")


def from_numbers(values: np.ndarray) -> np.ndarray:
    """A labelmap's values of any shape -> uint8, 1 where they are not 0.

    Whole numbers of any type, 0 and one other above it; floats may miss them by .001, as scaled integers do. Raises
    InputError for probabilities, negative values, NaN, and several labels.
    """
    whole = whole_numbers(values)
    mask = two_values(whole)
    if mask is None:
        raise InputError(
            f"its label has several values ({listed(whole[whole != 0])}); expected 0 and one other, the lesion. Keep one "
            "segment, or merge them, and save it again"
        )
    return mask


def whole_numbers(values: np.ndarray) -> np.ndarray:
    """The same values, floats as uint32; InputError unless they are whole and not negative."""
    if values.dtype.kind not in "buif":
        raise InputError(f"its label is of type {values.dtype}; expected whole numbers, 0 and one other")
    low, high = values.min(initial=0), values.max(initial=0)  # NaN passes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            "its label has values that are no numbers (NaN or infinity); expected 0 and one other, the lesion"
        )
    if low < 0:
        raise InputError(
            f"its label has negative values ({listed(values)}); expected 0 and one other above it, the lesion"
        )
    if values.dtype.kind != "f":
        return values
    whole = np.zeros(values.shape, np.uint32)
    axis = int(np.argmax(values.shape))
    parts = max(values.size // _PART, 1)
    for given, kept in zip(np.array_split(values, parts, axis), np.array_split(whole, parts, axis), strict=True):
        rounded = np.rint(given)
        if (np.abs(given - rounded) > 1e-3).any() or 0 < high < 0.5 or high >= 2**32:
            raise InputError(
                f"its label has values that are not whole ({listed(values)}): a probability map is no label. Expected 0 "
                "and one other, the lesion: cut it (3D Slicer: Threshold) and save it again"
            )
        kept[...] = rounded
    return whole


def two_values(values: np.ndarray) -> np.ndarray | None:
    """uint8, 1 where the values are not 0; None where there are others than 0 and one more. values: not negative."""
    high = values.max(initial=0)
    mask: np.ndarray = values == high
    if high == 0:
        return np.zeros(values.shape, np.uint8)
    if np.count_nonzero(mask) + np.count_nonzero(values == 0) != values.size:
        return None
    return mask.astype(np.uint8)


def listed(values: np.ndarray, most: int = 5) -> str:
    """Some of the values for a message, the smallest and the largest among them."""
    found = np.unique(values.reshape(-1, order="A")[:1_000_000])
    found = np.unique([*found[:most], values.min(), values.max()])
    names = [f"{v:.4g}" for v in found]
    return ", ".join(names if len(names) <= most else [*names[: most - 1], "...", names[-1]])


# --- segments ---------------------------------------------------------------------------------------------------------


def kind_of_name(name: str) -> str:
    """What a segment's name or meaning says: "lesion", "unsaid" (a viewer's default name) or "other"."""
    name = name.lower()
    if LABEL_NAME in name or any(word in name for word in _LESION_WORDS):
        return "lesion"
    return "unsaid" if name.strip().rstrip(" 0123456789_-") in _UNSAID_WORDS else "other"


def has_segments(header: Mapping[str, Any]) -> bool:
    """Whether a NRRD header describes segments. Where it does not, several values are several labels (``from_numbers``)."""
    return any(key.startswith("Segment") and key.endswith("_LabelValue") for key in map(str, header))


def from_segments(layers: np.ndarray, header: Mapping[str, Any]) -> np.ndarray:
    """Layers (L, ...) of a .seg.nrrd -> (...) uint8, 1 inside of any segment.

    In 3D Slicer one draws a segment for each lesion, so several segments are joined, also where they overlap (layers).
    A segment that is alone may have any name. Of several, each has to be called a lesion or what the viewer called it:
    a "shadow" beside a lesion is none, and names are in any language. header: NRRD, its ``SegmentN_...`` fields.
    """
    layers = whole_numbers(layers)
    names = _names(header)
    found = [(k, value) for k, layer in enumerate(layers) for value in _present(layer)]
    called = [names.get(place, "") for place in found]
    others = [name for name in called if kind_of_name(name) == "other"]
    if len(found) > 1 and others:
        raise InputError(
            f"its label has several segments ({', '.join(repr(n[:40]) for n in called[:5])}) and not all of them are called "
            f"lesions; expected one segment, or several called {LABEL_NAME}. Delete what is no lesion, rename the others, "
            "and save it again"
        )
    return (layers != 0).any(axis=0).astype(np.uint8)


def _names(header: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """(layer, value) -> name of each segment; the fields of 3D Slicer."""
    names = {}
    for key in header:
        number = key[7:-11] if key.startswith("Segment") and key.endswith("_LabelValue") else ""
        if number.isdigit():
            try:
                place = int(header.get(f"Segment{number}_Layer", 0)), int(header[key])
            except ValueError:
                continue
            names[place] = str(header.get(f"Segment{number}_Name", ""))
    return names


def _present(layer: np.ndarray) -> list[int]:
    """The values above 0, sorted."""
    if layer.dtype == np.uint8:
        return [int(v) for v in np.flatnonzero(np.bincount(layer.reshape(-1, order="A"), minlength=2)) if v]
    return [int(v) for v in np.unique(layer) if v]


# --- grey levels ------------------------------------------------------------------------------------------------------


def cut(levels: np.ndarray, soft: bool = False) -> np.ndarray | None:
    """Grey levels (..., H, W) uint8 of a mask with edges or noise -> uint8, 1 from 128 on; None where they are no mask.

    Nearly all have to lie within ``NEAR`` of black or white, both there, but for a thin line along the outlines (a
    lossy coder, anti-aliasing). soft: a tenth of the pixels may lie anywhere (masks that a data set had resized).
    """
    black, white = levels <= NEAR, levels >= 255 - NEAR
    mask: np.ndarray = levels >= 128
    between = levels.size - np.count_nonzero(black) - np.count_nonzero(white)
    if between > 0.1 * levels.size or not mask.any():
        return None
    length = sum(np.count_nonzero(np.diff(mask, axis=axis)) for axis in (-1, -2))
    if not soft and not (black.any() and white.any() and between <= EDGE * length):
        return None
    return mask.astype(np.uint8)


def from_fractions(values: np.ndarray, largest: int, warnings: list[str]) -> np.ndarray:
    """Fractions (T, H, W) of ``largest``, not negative -> uint8, 1 from a half on.

    Two values, one on each side of the half, are a mask; more are cut there, with a warning, where they are one but for
    its edges (``cut``). Raises InputError for other fractions: probabilities.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if high == 0:
        return np.zeros(values.shape, np.uint8)
    mask: np.ndarray = values >= (largest + 1) // 2
    plain = bool(((values == low) | (values == high)).all())
    if plain and high * 2 >= largest and (low * 2 < largest or low == high):
        return mask.astype(np.uint8)
    levels = np.clip(np.rint(values * (255.0 / largest)), 0, 255).astype(np.uint8)
    if cut(levels) is None:
        raise InputError(
            f"its fractions ({listed(values)} of {largest}) are no outline: a probability map is no label. Expected 0 and "
            f"{largest}: save it as a binary segmentation"
        )
    warnings.append(f"the fractions between 0 and {largest} along its outline are cut at the half")
    return mask.astype(np.uint8)


def is_confirmed(info: object) -> bool:
    """Whether a label's info says that who saved it means it to mark nearly all of a frame."""
    return isinstance(info, Mapping) and info.get("confirmed") is True


def check_share(mask: np.ndarray, confirmed: bool = False, warnings: list[str] | None = None) -> None:
    """InputError where a frame of (T, H, W) is marked nearly all over, unless somebody confirmed that it is meant.

    A frame that is marked at all four corners, and more than half, gets a warning: a lesion hardly does that.
    """
    if confirmed:
        return
    shares = mask.mean(axis=(-2, -1), dtype=float)
    corners = mask[:, [0, 0, -1, -1], [0, -1, 0, -1]].all(axis=-1) & (shares > 0.5)
    worst = int(np.argmax(shares))
    if shares[worst] > MOST_MARKED:
        raise InputError(
            f"its label marks {100 * shares[worst]:.3g} % of {_frame(worst, shares)}: is it inverted? Expected the lesion "
            "alone: invert it (3D Slicer: Logical operators, Invert) and save it again. If it is meant, a program can send "
            '"confirm": true in its params'
        )
    if corners.any() and warnings is not None:
        where = _frame(int(np.argmax(corners)), shares)
        warnings.append(f"the label marks all four corners of {where}: is it inverted?")


def _frame(index: int, frames: np.ndarray) -> str:
    return "the picture" if len(frames) == 1 else f"frame {index}"
