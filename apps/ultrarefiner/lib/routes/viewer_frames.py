"""What a viewer drew, on the frames that the image has when it is saved: a series may have grown since it was opened, and a viewer may
show a part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException

from ultrarefiner_monai.core.image_file import ImageFile
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.file import open_dicom
from ultrarefiner_monai.dicom.header import element
from ultrarefiner_monai.dicom.series import instance_files
from ultrarefiner_monai.masks.runs import mask_of

CHANGED = "the series is not as it was when this image was opened"
_MOST_FRAMES = 100_000
Objects = list[tuple[str, int]]  # (SOPInstanceUID, number of its frames), in the order of the image's frames


def objects_of(sent: Sequence[Sequence[Any]]) -> Objects:
    """``Objects`` from JSON. Raises InputError for more frames than an image can have."""
    if sum(count for _, count in sent) > _MOST_FRAMES:
        raise InputError(f"instances: more than {_MOST_FRAMES} frames")
    return [(str(uid), int(count)) for uid, count in sent]


@lru_cache(maxsize=256)
def objects_in(path: Path, state: tuple) -> tuple[tuple[str, int], ...]:
    """The DICOM objects of an image's files by their headers, in order. state: of the files now (``state_of``): each click asks."""
    headers = [open_dicom(file, header_only=True) for file in instance_files(path)]
    return tuple((str(h.SOPInstanceUID), max(1, int(element(h, "NumberOfFrames", 1) or 1))) for h in headers)


def on_frames_of_now(
    sent: Mapping[str, Any], objects: Objects, before: Callable[[], np.ndarray | None], image_file: ImageFile
) -> np.ndarray:
    """The label that was sent: (T, H, W) uint8.

    sent: ``masks``, frame -> runs; ``instances``, as the image had them when it was opened (as now, where that is not said); ``shown``, the
    frames that ``masks`` is all of (all, where that is not said). objects: as the image has them now. before: reads the label of now,
    whose other frames stay; asked only where there are any. Raises InputError for a frame that is not there and for runs that are no mask of a frame, HTTPException (409) for
    one of a picture that is gone.
    """
    now = {place: k for k, place in enumerate(_places(objects))}
    opened = _places(objects_of(sent["instances"])) if "instances" in sent else list(now)
    masks = _by_frame(sent.get("masks", {}))
    shown = {*masks, *sent.get("shown", range(len(opened)))}
    if shown and max(shown) >= len(opened):
        raise InputError(f"masks: there is no frame {max(shown)}; the image has {len(opened)}")
    others = len({opened[frame] for frame in shown} & now.keys()) < len(now)
    kept = before() if others else None
    mask = np.zeros(image_file.shape, np.uint8) if kept is None else kept.copy()
    for frame in sorted(shown):
        if opened[frame] in now:
            runs = masks.get(frame, [image_file.height * image_file.width])
            mask[now[opened[frame]]] = mask_of(runs, (image_file.height, image_file.width))
        elif frame in masks:
            raise HTTPException(409, f"{CHANGED}: the picture of frame {frame} is gone. Open it again")
    return mask


def _by_frame(masks: Mapping[str, list[int]]) -> dict[int, list[int]]:
    if not all(name.isdecimal() for name in masks):
        raise InputError("masks: expected numbers of frames as names")
    return {int(name): runs for name, runs in masks.items()}


def _places(objects: Objects) -> list[tuple[str, int]]:
    """Of each frame: (SOPInstanceUID, number in it from 0)."""
    return [(uid, k) for uid, count in objects for k in range(count)]
