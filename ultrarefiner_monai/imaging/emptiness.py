"""Is there anything in a picture? An export that went wrong comes out black, and "no lesion" would be a wrong answer to it.

One rule for all formats: ``readers.read_image_file`` asks it of every image file.
"""

from __future__ import annotations

import numpy as np

from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import InputError

_SPREAD = 8 / 255  # grey values between the 1st and the 99th percentile: less is one grey to the eye
_DARK, _BRIGHT = 16 / 255, 239 / 255  # the 99th percentile below, the 1st above
_PIXELS = 20_000  # looked at of a frame
EMPTY = ": what is found in it, or not, means nothing; look at the file, and export it again"


def emptiness(frame: np.ndarray) -> str:
    """ "nearly black", "nearly white" or "nearly one grey" for (H, W) in [0, 1] that shows nothing, else ""."""
    step = max(1, int((frame.size / _PIXELS) ** 0.5))
    low, high = np.quantile(frame[::step, ::step], (0.01, 0.99))
    if high < _DARK:
        return "nearly black"
    if low > _BRIGHT:
        return "nearly white"
    return "nearly one grey" if high - low <= _SPREAD else ""


def empty_warnings(image_file: ImageFile) -> list[str]:
    """A warning where the picture, or a cine's first, middle or last frame, shows nothing. Frames that cannot be decoded
    are passed over: they are refused when they are asked for."""
    found: dict[str, list[int]] = {}
    for index in sorted({0, image_file.n_frames // 2, image_file.n_frames - 1}):
        try:
            what = emptiness(image_file.frame(index))
        except InputError:
            continue
        if what:
            found.setdefault(what, []).append(index)
    texts = []
    for what, frames in found.items():
        if not image_file.is_volume:
            which = "the picture is"
        else:
            which = f"frame {frames[0]} is" if len(frames) == 1 else f"frames {', '.join(map(str, frames))} are"
        texts.append(f"{which} {what}{EMPTY}")
    return texts
