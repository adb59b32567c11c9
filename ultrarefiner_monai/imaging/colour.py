"""The colours of a picture, for viewers. The networks see its luminance (``readers``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import ImageFile, Limits
from ultrarefiner_monai.imaging.pictures import open_picture

_PICTURES, _ANIMATIONS = ("png", "jpeg", "tiff", "bmp"), ("gif", "webp")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def colour_frame(image_file: ImageFile, index: int = 0) -> np.ndarray | None:
    """Frame ``index`` of a picture as (H, W, 3) uint8, RGB, where transparent on black; None where all of it is grey, and for
    kinds of files that are shown in grey: more than 8 bits, NIfTI, NRRD, videos. Raises InputError as the reader does."""
    if image_file.kind in _ANIMATIONS:
        from PIL import Image

        with Image.open(image_file.path, formats=(image_file.kind.upper(),)) as image:
            image.seek(index)
            return _coloured(image, image_file)
    if image_file.kind not in _PICTURES:
        return None
    with open_picture(image_file.path, Limits()) as picture:
        for k, (image, flip) in enumerate(picture.frames()):
            if k == index:
                found = _coloured(image, image_file)
                return None if found is None else np.ascontiguousarray(found[flip])
    return None


def _coloured(image: Any, image_file: ImageFile) -> np.ndarray | None:
    if image.mode not in _COLOUR_MODES or image.size != (image_file.width, image_file.height):
        return None
    rgb = on_black(np.asarray(image.convert("RGBA")))
    grey = (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all()
    return None if grey else rgb


def on_black(colours: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 -> (H, W, 3) uint8: what is transparent lies on black."""
    alpha = colours[..., 3:]
    if (alpha == 255).all():
        return colours[..., :3]
    mixed: np.ndarray = (colours[..., :3].astype(np.uint16) * alpha + 127) // 255
    return mixed.astype(np.uint8)
