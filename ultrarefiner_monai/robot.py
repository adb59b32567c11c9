"""A user made of rules: clicks on the worst mistake, again and again, so that clicks can be measured and trained with.

Arrays are (H, W) in the image frame, 0 and 1 or bool; a click is (x, y, positive) in pixel indices. Foreground components
are 8-connected, as everywhere. Nothing is drawn by chance: equal masks give equal clicks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from .postprocess import bounding_slices, label_components

Click = tuple[int, int, bool]


def next_click(mask: np.ndarray, label: np.ndarray, clicked_xy: Iterable[tuple[float, float]] = ()) -> Click | None:
    """Where a user would correct ``mask`` next: the deepest point of the largest error component; None without an error.

    Depth is the distance to the component's outline; beyond the image there is no error (the distance transform is
    padded, as in RITM, Sofiiuk et al. 2022), so that no click falls on the border for want of an outline there. What the
    mask misses asks for a positive click, what it has too much for a negative one. Ties: a missed part before a
    superfluous one, then the component and the pixel that come first, row by row.
    clicked_xy: earlier clicks; they are no error any more, whatever the mask says there, and the next click keeps its
    distance from them (a network may ignore a click; the result that is served never does).
    """
    if mask.shape != label.shape or mask.ndim != 2:
        raise ValueError(f"expected two (H, W) masks of one shape, got {mask.shape} and {label.shape}")
    mask, label = mask.astype(bool), label.astype(bool)
    missed, extra = label & ~mask, mask & ~label
    for x, y in clicked_xy:
        missed[round(y), round(x)] = extra[round(y), round(x)] = False
    largest, positive, area = missed, True, 0
    for error, kind in ((missed, True), (extra, False)):
        labels, areas = label_components(error)
        first = int(areas.argmax())
        if areas[first] > area:
            largest, positive, area = labels == first, kind, int(areas[first])
    where = bounding_slices(largest)
    if where is None:
        return None
    depth = ndimage.distance_transform_edt(np.pad(largest[where], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(column) + where[1].start, int(row) + where[0].start, positive
