"""In which order a series of a PACS shows its frames, now and before: it may grow while somebody outlines it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ultrarefiner_monai.dicom.series import dicom_files, frame_order

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
