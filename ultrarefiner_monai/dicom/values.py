"""From the stored values of a DICOM file to grey: windows, look-up tables, and the scale where a file has neither.

A file without a window is scaled by what its values are, not only by what its header says: 8-bit values in 16 bits would
come out black, 12-bit values that are said to be 8 white. One scale holds for all frames of a file (and for all files of a
series): a cine does not flicker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ultrarefiner_monai.dicom.header import element, numbers

_BITS = (8, 10, 12, 14, 16, 24, 32)
LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
_CLIPPED = 0.995  # a window that leaves more than this share of the pixels black or white shows nothing


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2) and the modality's rescaling before it."""

    centre: float
    width: float
    function: str = LINEAR_EXACT
    slope: float = 1.0
    intercept: float = 0.0

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Stored values -> [0, 1] where the window shows them, beyond it where it does not (a sigmoid never is)."""
        shifted = values.astype(np.float64) * self.slope + self.intercept - self.centre
        if self.function == SIGMOID:
            return 1 / (1 + np.exp(np.clip(-4 * shifted / self.width, -500, 500)))
        return shifted / self.width + 0.5

    def __str__(self) -> str:
        return f"centre {self.centre:g}, width {self.width:g}"


def window_of(dataset: Any, warnings: list[str]) -> Window | None:
    """The first window of the file that can be used, None where there is none, with a warning where one was unusable."""
    centres, widths = (numbers(dataset, k) for k in ("WindowCenter", "WindowWidth"))
    function = str(element(dataset, "VOILUTFunction", LINEAR)).strip().upper()
    if function not in (LINEAR, LINEAR_EXACT, SIGMOID):
        warnings.append(f"the window's function {function:.20} is not known: it is taken as linear")
        function = LINEAR
    slope, intercept = _rescale(dataset)
    for centre, width in zip(centres, widths):
        if math.isfinite(centre) and math.isfinite(width) and width > (1 if function == LINEAR else 0):
            # LINEAR differs from LINEAR_EXACT by half a value at the ends: not worth two formulas.
            return Window(centre, width, SIGMOID if function == SIGMOID else LINEAR_EXACT, slope, intercept)
    if centres or widths:
        warnings.append("the file's window makes no sense: it is not used")
    return None


def bits_holding(value: float) -> int:
    """The smallest of 8, 10, 12, 14, 16 bits (as ``image.to_unit``; then 24, 32) that holds ``value``."""
    return next((bits for bits in _BITS if value <= 2.0**bits - 1), 64)


class Scale:
    """Stored values of a file, or of all files of a series, to [0, 1]. ``see`` samples of them, then ``unit`` scales.

    Black is 0, white the largest value of as many bits as the values need. Where values lie below 0: from the smallest to
    the largest.
    """

    def __init__(self) -> None:
        self.low, self.high, self.signed = math.inf, -math.inf, False
        self.stored = 0

    def see(self, values: np.ndarray, stored: int, signed: bool) -> None:
        """values: any shape; stored: BitsStored."""
        self.stored, self.signed = max(self.stored, stored), self.signed or signed
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def join(self, other: Scale) -> None:
        """Take over what ``other`` has seen."""
        self.stored, self.signed = max(self.stored, other.stored), self.signed or other.signed
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def white(self) -> float:
        """The value that is shown as white."""
        if self.below_zero:
            return max(self.high, self.black + 1.0)
        said, needed = 2.0 ** max(self.stored, 1) - 1, 2.0 ** bits_holding(self.high) - 1
        if self.high > said or (math.isfinite(self.high) and needed < said):
            return needed
        return said

    @property
    def black(self) -> float:
        return self.low if self.below_zero else 0.0

    @property
    def below_zero(self) -> bool:
        """Many writers declare unsigned values as signed; the values decide."""
        return self.signed and -math.inf < self.low < 0

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Values -> [0, 1], float."""
        if self.below_zero:
            return (values.astype(np.float64) - self.black) / (self.white - self.black)
        return values.astype(np.float32) / np.float32(self.white)

    def warning(self) -> str:
        """A warning where the values differ from what the header says, else ""."""
        if not math.isfinite(self.high):
            return ""
        if self.below_zero:
            return (
                f"signed pixel values without a window: the smallest of them ({self.low:g}) is shown black, the "
                f"largest ({self.high:g}) white"
            )
        said = 2.0**self.stored - 1
        if self.white == said:
            return ""
        bits = bits_holding(self.high)
        if self.high > said:
            return (
                f"pixel values up to {self.high:g} do not fit the {self.stored} bits announced: scaled by {bits} bits"
            )
        return (
            f"pixel values up to {self.high:g} where {self.stored} bits are announced, and no window: scaled by "
            f"{bits} bits, or the picture would be black"
        )


def shows_nothing(window: Window, samples: Iterable[np.ndarray]) -> bool:
    """Whether ``window`` leaves nearly all of the sampled frames black or white though they hold a picture."""
    values = [s.ravel()[:: max(1, s.size // 50_000)] for s in samples]
    if not values:
        return False
    together = np.concatenate(values)
    spread = np.quantile(together, 0.99) - np.quantile(together, 0.01)
    unit = window.unit(together)
    clipped = float(np.mean((unit <= 1 / 255) | (unit >= 254 / 255)))
    return bool(spread >= 8 and clipped > _CLIPPED)


@dataclass(frozen=True)
class Table:
    """A VOI look-up table (PS3.3 C.11.2.1.1): the entry of value ``first``, of the next one, ..., in [0, 1]."""

    first: int
    entries: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Stored values -> [0, 1]; beyond the table its ends count."""
        at = np.rint(values.astype(np.float64) * self.slope + self.intercept) - self.first
        return self.entries[np.clip(at, 0, len(self.entries) - 1).astype(np.int64)]


def table_of(dataset: Any) -> Table | None:
    """The first look-up table of the VOI LUT sequence that can be used, or None."""
    for item in element(dataset, "VOILUTSequence") or []:
        descriptor, data = numbers(item, "LUTDescriptor"), element(item, "LUTData")
        if len(descriptor) != 3 or data is None:
            continue
        count, first, bits = (int(n) for n in descriptor)
        order = ">" if dataset.original_encoding[1] is False else "<"
        entries = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.array(data, ndmin=1)
        entries = entries[: count or 1 << 16].astype(np.float32)
        if len(entries) > 1 and entries.max() > 0:
            white = 2.0 ** max(bits, bits_holding(float(entries.max()))) - 1
            slope, intercept = _rescale(dataset)
            return Table(first, entries / np.float32(white), slope, intercept)
    return None


def _rescale(dataset: Any) -> tuple[float, float]:
    """(slope, intercept) of the modality; (1, 0) where they are missing or make no sense."""
    slope = next(iter(numbers(dataset, "RescaleSlope")), 1.0) or 1.0
    intercept = next(iter(numbers(dataset, "RescaleIntercept")), 0.0)
    return (slope, intercept) if math.isfinite(slope) and math.isfinite(intercept) else (1.0, 0.0)
