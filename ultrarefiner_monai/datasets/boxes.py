"""Two boxes around a lesion, in place of its mask: a big one that holds it, and a small one within it.

A table of them is a CSV file, one row an image: image, big_x1, big_y1, big_x2, big_y2, small_x1, small_y1, small_x2, small_y2; in
pixels of the image, the last ones included.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
_SIDES = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", *(f"{kind}_{side}" for kind in ("big", "small") for side in _SIDES))


@dataclass(frozen=True)
class BoxPair:
    """The boxes of one image."""

    big: Box
    small: Box


def derived(
    mask: np.ndarray, slack: float = 0.15, inner: float = 0.6, jitter: float = 0.0, seed: int = 0
) -> BoxPair | None:
    """Boxes as a user might draw them around a mask (H, W) bool; None for an empty one.

    Of several components the largest counts. slack: the big box sticks out on each side by this share of the lesion's
    extent, as far as the image reaches; inner: the small one has this share of the extent. jitter: each side is moved at
    random by up to this share of the extent (seeded), the small box within the big one.
    """
    from scipy.ndimage import find_objects, label

    parts, count = label(mask)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    rows, columns = find_objects(parts)[int(sizes.argmax())]
    box = np.array([columns.start, rows.start, columns.stop - 1, rows.stop - 1], dtype=float)
    extent = np.array([box[2] - box[0] + 1, box[3] - box[1] + 1] * 2)
    out = np.array([-1, -1, 1, 1])
    moves = np.random.default_rng(seed).uniform(-jitter, jitter, (2, 4)) * extent
    limit = np.array([mask.shape[1] - 1, mask.shape[0] - 1] * 2, dtype=float)
    big = np.clip(np.rint(box + out * slack * extent + moves[0]), 0, limit)
    small = np.rint(box - out * (1 - inner) / 2 * extent + moves[1])
    small = np.concatenate([np.maximum(small[:2], big[:2]), np.minimum(small[2:], big[2:])])
    middle = np.rint((box[:2] + box[2:]) / 2)
    small = np.concatenate([np.minimum(small[:2], middle), np.maximum(small[2:], middle)])
    return BoxPair(_box(big), _box(small))


def _box(values: np.ndarray) -> Box:
    x1, y1, x2, y2 = (float(v) for v in values)
    return x1, y1, x2, y2


def boxes_of_folder(
    data: Path, slack: float = 0.15, inner: float = 0.6, jitter: float = 0.0, seed: int = 0
) -> dict[str, BoxPair]:
    """``derived`` for each image of a prepared folder that has a lesion. Those whose lesion leaves nothing between the boxes (of a
    pixel or two, or as large as the image) are left out, with a warning."""
    from ultrarefiner_monai.datasets.datalist import read_index
    from ultrarefiner_monai.imaging.mask_files import read_mask

    found: dict[str, BoxPair] = {}
    tight = []
    for number, item in enumerate(read_index(data)):
        pair = derived(read_mask(item.mask)[0] > 0, slack, inner, jitter, seed + number)
        if pair is None:
            continue
        if pair.big == pair.small:
            tight.append(item.id)
        else:
            found[item.id] = pair
    if tight:
        log.warning("no room between the boxes of %d image(s), left out: %s", len(tight), ", ".join(tight[:5]))
    if not found:
        raise InputError(f"no image of {data} has a lesion with room for boxes")
    return found


def write_boxes(path: Path, boxes: Mapping[str, BoxPair]) -> None:
    """Write the table, beside its place and renamed there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for image, pair in sorted(boxes.items()):
            writer.writerow([image, *(f"{v:g}" for v in (*pair.big, *pair.small))])


def read_boxes(path: Path, sizes: Mapping[str, tuple[int, int]]) -> dict[str, BoxPair]:
    """image -> its boxes. sizes: image -> (H, W) of all that are known; a file's ending in the table does not matter.

    What sticks out of an image is cut off, with a warning. Raises InputError, with line and image, for other columns, what is no
    number, an unknown image or a second row of one, a box that is turned round or lies outside the image, a small box that is not within
    the big one, and boxes with nothing between them.
    """
    if not path.is_file():
        raise InputError(f"no boxes at {path}: `ultrarefiner boxes --data DIR --out {path.name}` makes them from masks")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lacking = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
        if lacking:
            raise InputError(f"{path} lacks the column(s) {', '.join(lacking)}; expected {','.join(COLUMNS)}")
        rows = list(enumerate(reader, 2))
    found: dict[str, BoxPair] = {}
    cut: list[str] = []
    for line, row in rows:
        name = (row["image"] or "").strip()
        image = name if name in sizes else Path(name).stem
        where = f"{path.name}, line {line}, image {name!r:.80}"
        if image not in sizes:
            raise InputError(f"{where}: there is no such image in the data")
        if image in found:
            raise InputError(f"{where}: it has a row already; one lesion of an image can be boxed")
        found[image] = _checked(row, where, sizes[image], cut)
    if cut:
        log.warning(
            "%s: boxes of %d image(s) stick out of it and are cut off: %s", path.name, len(cut), ", ".join(cut[:5])
        )
    return found


def _checked(row: Mapping[str, str | None], where: str, size: tuple[int, int], cut: list[str]) -> BoxPair:
    try:
        values = [float(row[column] or "") for column in COLUMNS[1:]]
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected eight numbers, got {[row[c] for c in COLUMNS[1:]]}") from None
    if not np.isfinite(values).all():
        raise InputError(f"{where}: a coordinate is not finite")
    height, width = size
    boxes = []
    for kind, box in (("big", values[:4]), ("small", values[4:])):
        x1, y1, x2, y2 = box
        if x2 < x1 or y2 < y1:
            raise InputError(f"{where}: the {kind} box is turned round: x1 <= x2 and y1 <= y2 are needed, got {box}")
        if x2 < 0 or y2 < 0 or x1 > width - 1 or y1 > height - 1:
            raise InputError(f"{where}: the {kind} box {box} lies outside the image of {width} x {height} pixels")
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, width - 1.0), min(y2, height - 1.0))
        if inside != (x1, y1, x2, y2) and (not cut or cut[-1] != where.rpartition(" ")[2]):
            cut.append(where.rpartition(" ")[2])
        boxes.append(inside)
    big, small = boxes
    if small[0] < big[0] or small[1] < big[1] or small[2] > big[2] or small[3] > big[3]:
        raise InputError(f"{where}: the small box {list(small)} is not within the big one {list(big)}")
    if small == big:
        raise InputError(
            f"{where}: there is nothing between the boxes: the big one has to be larger than the small one"
        )
    return BoxPair(big, small)
