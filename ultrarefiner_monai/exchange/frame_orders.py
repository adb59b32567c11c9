"""In which order a series of a PACS shows its frames, now and before: it may grow while somebody outlines it.

A label that was drawn on the frames before follows them to the ones that there are now.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ultrarefiner_monai.core.image_file import Limits
from ultrarefiner_monai.dicom.series import dicom_files, frame_order, frames_in, reordered
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import write_mask

FRAMES = "frames"  # in a label's info: the frames that it was drawn on (``frame_order``)
_ENTRY = re.compile("[0-9a-f]{12}:[0-9]{1,6}")
_KEPT = 4


class FrameOrders:
    """The orders (``frame_order``) that each image had since the start, the last few of them."""

    def __init__(self) -> None:
        self._orders: dict[str, list[tuple[str, ...]]] = {}
        self._states: dict[str, tuple[int, int]] = {}  # of the image's folder, when the last order was read

    def of(self, image_id: str, folder: Path) -> tuple[str, ...]:
        """The order of what is in the image's folder now, empty where nothing is; read anew where the folder has changed."""
        try:
            stat = folder.stat()
            state = (stat.st_ino, stat.st_mtime_ns)
            if self._states.get(image_id) != state:
                order = frame_order(dicom_files(folder))
                known = self._orders.setdefault(image_id, [])
                if not known or known[-1] != order:
                    known[:] = [*known[1 - _KEPT :], order]
                self._states[image_id] = state
        except OSError:
            return ()
        return self._orders[image_id][-1]

    def known(self, image_id: str) -> list[tuple[str, ...]]:
        """Those that were read, oldest first."""
        return list(self._orders.get(image_id, ()))


def is_stale(drawn_on: Any, order: tuple[str, ...]) -> bool:
    """Whether a label, whose info says that it was drawn on the frames ``drawn_on``, was drawn on others than those that
    there are now; not where that is unknown, as of old ones."""
    is_order = isinstance(drawn_on, list) and all(isinstance(e, str) and _ENTRY.fullmatch(e) for e in drawn_on)
    return bool(order and drawn_on and is_order and tuple(drawn_on) != order)


def fit_label(label: Path, folder: Path, orders: Sequence[Sequence[str]], limits: Limits | None) -> Path:
    """The label file to keep for one that was drawn on the frames of an earlier order.

    label: what a client sent. folder: the image's files now. orders: those that it had, the present one last. Returns
    ``label`` itself where it has the present number of frames, or none that there was; else a file beside it.
    """
    may_be_a_part = label.name.lower().endswith(".seg.nrrd")
    if len(orders) < 2 or may_be_a_part:
        return label
    image_file = read_image_file(folder, limits)  # its grid is the limit for what comes
    most = max(map(frames_in, orders)) * image_file.height * image_file.width
    found = len(read_mask(label, limits=Limits(total_pixels=most)))
    before = next((o for o in reversed(orders[:-1]) if frames_in(o) == found), None)
    if before is None or found == frames_in(orders[-1]):
        return label
    path = label.with_name("fitted.nii.gz")
    write_moved(label, folder, before, orders[-1], path, limits)
    return path


def write_moved(
    label: Path, folder: Path, before: Sequence[str], now: Sequence[str], path: Path, limits: Limits | None
) -> bool:
    """Write ``label``, drawn on the frames ``before``, to ``path`` for the image in ``folder``, which has the frames
    ``now``; whether nothing of it is lost."""
    image_file = read_image_file(folder, limits)
    grid = (image_file.width, image_file.height, frames_in(before))
    drawn_on = replace(image_file, n_frames=grid[2], geometry=replace(image_file.geometry, shape=grid))
    mask, whole = reordered(read_mask(label, drawn_on, confirmed=True), before, now)
    write_mask(path, mask, image_file)
    return whole
