"""Pictures and masks of raw datasets, as ``prepare`` takes them: the grey levels that serving sees, masks as labels mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.emptiness import EMPTY, emptiness
from ultrarefiner_monai.imaging.label_pictures import from_picture
from ultrarefiner_monai.imaging.pictures import Flip, dark_warnings, is_halved, open_picture, stored_numbers
from ultrarefiner_monai.imaging.readers import read_image_file

EXIF_TURN = "an EXIF orientation is not applied, as in serving"


def read_image(path: Path, warnings: list[str]) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; three equal channels become one. Raises InputError when it cannot be read.

    Pixels of 8 bits stay as they are. Wider ones are scaled as in serving (``imaging/readers.py``, ``to_unit`` in
    ``core/image_file.py``).
    """
    with _opened(path) as (image, flip):
        halved = is_halved(image)
        if int(image.getexif().get(0x0112) or 1) != 1:
            warnings.append(EXIF_TURN)
        if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
            grey = stored_numbers(image)
            if grey.dtype == np.uint8:
                warnings += _empty_warning(grey)
                return np.ascontiguousarray(grey[flip])
            image_file = read_image_file(path)
            warnings += [w for w in image_file.warnings if "EXIF" not in w]
            return np.rint(image_file.frame(0) * 255).astype(np.uint8)
        pixels = np.asarray(image.convert("RGB"))[flip]
    warnings += dark_warnings(halved, pixels) + _empty_warning(pixels[..., 0])
    return np.ascontiguousarray(pixels[..., 0]) if _is_grey(pixels) else pixels


def read_label(path: Path, size: tuple[int, int], coloured: bool, warnings: list[str]) -> tuple[np.ndarray, str]:
    """(mask (H, W) bool, what its colours say: benign, malignant, normal or "") of a mask's file.

    size: (H, W) of its image, compared before anything is decoded. Edges and noise between black and white are cut in
    the middle with a warning, up to a tenth of the pixels. coloured: green benign, red malignant. Raises InputError.
    """
    with _opened(path) as (image, flip):
        if image.size != size[::-1]:
            raise InputError(f"{path} is {image.width} x {image.height} pixels, its image {size[1]} x {size[0]}")
        try:
            mask = from_picture(image, warnings, soft=True, coloured=coloured).astype(bool)[flip]
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return mask, _category(np.asarray(image.convert("RGB"))[flip], mask) if coloured else ""


def _empty_warning(pixels: np.ndarray) -> list[str]:
    """(H, W) uint8 -> a warning where the picture shows nothing, in serving's words."""
    what = emptiness(pixels / np.float32(255))
    return [f"the picture is {what}{EMPTY}"] if what else []


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Flip]]:
    """The file, not yet decoded, as a picture of one page, and the flip of its pixels; what goes wrong with it is an
    InputError."""
    try:
        with open_picture(path) as picture:
            if len(picture.pages) > 1:
                raise InputError(f"{path} has several pages; expected one picture")
            yield next(picture.frames())
    except InputError:
        raise
    except Exception as error:  # decoders raise anything, also from what reads metadata
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())


def _category(pixels: np.ndarray, mask: np.ndarray) -> str:
    """BUS-UCLM's masks: green benign, red malignant, black normal; other colours do not name a class."""
    if not mask.any():
        return "normal"
    red, green = pixels[..., 0][mask], pixels[..., 1][mask]
    counts = int((green > red).sum()), int((red > green).sum())
    return "" if counts == (0, 0) else ("malignant" if counts[1] > counts[0] else "benign")
