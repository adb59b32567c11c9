"""What can be known to go wrong is known before a run starts: headers, checksums and labels of every image of a split."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ultrarefiner_monai.core.threads import in_threads
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item, Split, names_of, sets_of
from ultrarefiner_monai.datasets.seen import digests_of, name_records, named_sets, seen_by_name, unpack
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.models.checkpoints import read_header

log = logging.getLogger(__name__)
SHOWN = 5


def check_data(split: Split) -> None:
    """Look at every image and label of ``split``; about two milliseconds each.

    Raises InputError that names the first faults and how many there are: an unreadable file, a mask of another size than
    its image, a label that is none by its values (``label_values``), a label that is empty although the index promises a
    lesion (or the reverse), a reported fold without a lesion.
    """
    everything = (*split.train, *split.select, *split.report)
    if split.report and not any(item.has_lesion for item in split.report):
        raise InputError(
            f"the fold held out ({split.report[0].fold}) holds no image with a lesion: nothing could be reported of it; "
            "check index.csv's folds, or choose another --fold"
        )
    found = in_threads(lambda pair: list(_faults(*pair)), list(zip(everything, names_of(everything))))
    faults = [fault for own in found for fault in own]
    if faults:
        more = f"; {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(f"the data cannot be trained on: {'; '.join(faults[:SHOWN])}{more}")


def _faults(item: Item, name: str) -> Iterator[str]:
    try:
        size, label_size = _size(item.image), _size(item.mask)
        marked = bool(read_mask(item.mask).any())
    except (InputError, OSError, SyntaxError, ValueError) as error:  # Pillow's for a damaged PNG is a SyntaxError
        words = str(error).removeprefix(f"{item.mask.name}: ")
        meaning = words.startswith("its label")
        yield f"{name}: {words if meaning else f'its image or label cannot be read ({words})'}"
        return
    if size != label_size:
        yield f"{name}: its label is {label_size[0]} x {label_size[1]} pixels, its image {size[0]} x {size[1]}"
    if marked != item.has_lesion:
        said = "a lesion, but its label is empty" if item.has_lesion else "no lesion, but its label marks one"
        yield f"{name}: index.csv says it shows {said}"


def _size(path: Path) -> tuple[int, int]:
    """(width, height), without decoding: from the header, with the checksums looked at."""
    try:
        with Image.open(path) as picture:
            size = picture.size
            picture.verify()
    except UnidentifiedImageError as error:
        raise InputError(f"{path.name} is not a picture") from error
    return size


def copies_in_report(split: Split) -> int:
    """How many of the reported images also stand, pixel by pixel, in the training or selection part; logs a warning.

    Within a set groups keep them together. Two sets may hold the same pictures, such as copies of one folder.
    """
    count = len(digests_of(split.report) & digests_of((*split.train, *split.select)))
    if count:
        log.warning(
            "%d pictures that are reported also stand among those that are trained on or selected by: the figures promise "
            "too much. Are two data folders copies, or parts, of one?",
            count,
        )
    return count


def check_held_out(
    name: str, meta: Mapping[str, Any], split: Split, fold: str | int, leave_out: Sequence[str] = ()
) -> None:
    """Raise InputError when the checkpoint ``name`` has seen images that a run on ``split`` reports; meta: the checkpoint's.

    Told by the images themselves where the checkpoint knows them (``datasets.seen``), else by its sets and the fold held out.
    """
    fold = str(fold)
    for record in name_records(meta):
        _check_names(name, record, split, fold, leave_out)
    seen = unpack(meta)
    if seen is None or not split.report:
        return
    # A picture that also stands among this run's own training images is not the checkpoint's fault.
    reported = digests_of(split.report) - digests_of((*split.train, *split.select))
    count = len(reported & seen)
    if count:
        by_name = [s for s in sets_of(split.report) if seen_by_name(meta, s, fold)]
        if by_name and not leave_out:
            raise InputError(_other_fold(name, meta, fold))
        raise InputError(
            f"{name} was trained on {count} of the {len(split.report)} images that this run reports; start from one that "
            f"held them out{_left(leave_out)}"
        )


def _check_names(name: str, meta: Mapping[str, Any], split: Split, fold: str, leave_out: Sequence[str]) -> None:
    for own in sorted({*sets_of((*split.train, *split.select, *split.report))}):
        if not named_sets(meta, own):
            continue
        if own in leave_out:
            raise InputError(
                f"{name} was trained on {own}, which this run leaves out and reports; start from one that was trained "
                f"with --leave-out {own}"
            )
        if meta.get("fold") not in (None, fold):
            raise InputError(_other_fold(name, meta, fold))


def _other_fold(name: str, meta: Mapping[str, Any], fold: str) -> str:
    return (
        f"{name} was trained with fold {meta['fold']} held out, so it has seen fold {fold}, which this run reports; "
        f"use --fold {meta['fold']}"
    )


def _left(leave_out: Sequence[str]) -> str:
    return f" (trained with {' '.join(f'--leave-out {name}' for name in leave_out)})" if leave_out else ""


def stored_meta(path: str | Path) -> dict[str, Any] | None:
    """The meta of one of our checkpoints; None for any other file, or a name that is no file."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return None
    try:
        return read_header(path)[1]
    except InputError:  # a SAM of others
        return None
