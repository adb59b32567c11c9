"""What can be known to go wrong is known before a run starts: headers, checksums and labels of every image of a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ultrarefiner_monai.data.datalist import Item, Split
from ultrarefiner_monai.data.masks import read_mask
from ultrarefiner_monai.types import InputError

SHOWN = 5


def check_data(split: Split) -> None:
    """Look at every image and label of ``split``; about two milliseconds each.

    Raises InputError that names the first faults and how many there are: an unreadable file, a mask of another size than
    its image, a label that is none by its values (``labelvalues``), a label that is empty although the index promises a
    lesion (or the reverse), a reported fold without a lesion.
    """
    if split.report and not any(item.has_lesion for item in split.report):
        raise InputError(
            f"the fold held out ({split.report[0].fold}) holds no image with a lesion: nothing could be reported of it; "
            "check index.csv's folds, or choose another --fold"
        )
    faults = [fault for item in (*split.train, *split.select, *split.report) for fault in _faults(item)]
    if faults:
        more = f"; {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(f"the data cannot be trained on: {'; '.join(faults[:SHOWN])}{more}")


def _faults(item: Item) -> Iterator[str]:
    try:
        size, label_size = _size(item.image), _size(item.mask)
        marked = bool(read_mask(item.mask).any())
    except (InputError, OSError, SyntaxError, ValueError) as error:  # Pillow's for a damaged PNG is a SyntaxError
        words = str(error).removeprefix(f"{item.mask.name}: ")
        meaning = words.startswith("its label")
        yield f"{item.id}: {words if meaning else f'its image or label cannot be read ({words})'}"
        return
    if size != label_size:
        yield f"{item.id}: its label is {label_size[0]} x {label_size[1]} pixels, its image {size[0]} x {size[1]}"
    if marked != item.has_lesion:
        said = "a lesion, but its label is empty" if item.has_lesion else "no lesion, but its label marks one"
        yield f"{item.id}: index.csv says it shows {said}"


def _size(path: Path) -> tuple[int, int]:
    """(width, height), without decoding: from the header, with the checksums looked at."""
    try:
        with Image.open(path) as picture:
            size = picture.size
            picture.verify()
    except UnidentifiedImageError as error:
        raise InputError(f"{path.name} is not a picture") from error
    return size


def check_held_out(name: str, meta: Mapping[str, Any], data: str, fold: str | int) -> None:
    """Raise InputError when the checkpoint ``name`` was trained on this fold of the dataset ``data``; meta: the checkpoint's."""
    if meta.get("data") == data and meta.get("fold") not in (None, str(fold)):
        raise InputError(
            f"{name} was trained with fold {meta['fold']} held out, so it has seen fold {fold}, which this run reports; "
            f"use --fold {meta['fold']}"
        )
