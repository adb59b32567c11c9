"""What is wrong with one outline, in the words of the corruption (``training/data/corruption_kinds.py``), by measurable rules.

Masks are (H, W) bool of one frame: what was offered, and the label. A and r: the label's area, and the radius of a disc of
that area. *Missing* is what the label has and the outline lacks, *extra* the other way round.

empty      the outline meets the label nowhere: the lesion was missed
noise      specks of missing or extra, each below 1 % of A and more than 2 px from the label's edge; five or more, some inside
islands    parts of the outline that do not meet the label; where the label is empty, any outline: a false alarm
holes      missing parts that the outline encloses, of 1 % of A or more
fragments  missing strips narrower than .3 r between pieces of the outline inside the label, two or more of 5 % of A or more
bridge     extra that leaves a rim of .15 r through a neck of 20 % of the rim's length or less, and reaches .5 r or further
shift      all that is left, where moving the outline to the label's centre mends 40 % of it or more
chunk      missing that is deep (what an opening of .1 r leaves; 3 % of A or more) and takes 40 % of the label's edge or less
under      all other missing
giant      all other extra, where the outline has three times the label's area or more
over       all other extra otherwise

They are taken in this order, and what one explains is put right before the next one looks. The wrong pixels of each are its
share; below 1 % of A it has none. As soon as what is left has a Dice of .95, it is no mistake (two readers differ by as
much), and where nothing was found before, all of it is ``identity``.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.masks.pixels import edge_pixels
from ultrarefiner_monai.masks.postprocess import EIGHT, bounding_slices, fill_holes

GOOD_DICE = 0.95
_LEAST = 0.01
_SPECK, _FEWEST_SPECKS, _OFF_EDGE = 0.01, 5, 2.0
_PIECE, _CUT = 0.05, 0.3
_MENDED = 0.4
_BITE_EDGE, _BITE_LEAST, _OPENING = 0.4, 0.03, 0.1
_GIANT = 3.0
_RIM, _NECK, _REACH = 0.15, 0.2, 0.5


def kinds_of(outline: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Kind -> its share of the wrong pixels, in sum 1; empty for two empty masks. Masks (H, W), non-zero inside."""
    outline, label = np.asarray(outline, dtype=bool), np.asarray(label, dtype=bool)
    if outline.shape != label.shape or outline.ndim != 2:
        raise ValueError(f"expected two masks (H, W) of one size, got {outline.shape} and {label.shape}")
    if not label.any():
        return {"islands": 1.0} if outline.any() else {}
    if not (outline & label).any():
        return {"empty": 0.5, "islands": 0.5} if outline.any() else {"empty": 1.0}
    where = bounding_slices(outline | label, margin=3)
    assert where is not None
    found = {kind: pixels for kind, pixels in _parts(outline[where], label[where]).items() if pixels > 0}
    total = sum(found.values())
    return {kind: pixels / total for kind, pixels in found.items()} or {"identity": 1.0}


def _parts(outline: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Kind -> wrong pixels that count. Both masks hold something, and overlap."""
    area = float(np.count_nonzero(label))
    radius = math.sqrt(area / math.pi)
    left, found = outline.copy(), {}

    def take(kind: str, part: np.ndarray) -> None:
        """``part`` is put right in ``left``, so that the next kind does not see it."""
        left[part] = label[part]
        if (pixels := np.count_nonzero(part)) >= _LEAST * area:
            found[kind] = float(pixels)

    take("noise", _specks(left ^ label, label, area))
    take("islands", _apart(left, label))
    take("holes", _large(fill_holes(left) & label & ~left, _LEAST * area))
    take("fragments", _cuts(left & label, area, radius) & label & ~left)
    giant = np.count_nonzero(left) >= _GIANT * area
    if not giant:
        take("bridge", _bridges(left & ~label, label, radius))
    if dice_of(left, label) >= GOOD_DICE:
        return found
    if _mended(left, label) > _MENDED:
        take("shift", left ^ label)
    take("chunk", _bites(label & ~left, label, area, radius))
    if dice_of(left, label) < GOOD_DICE:
        take("under", label & ~left)
        take("giant" if giant else "over", left & ~label)
    return found


def _specks(wrong: np.ndarray, label: np.ndarray, area: float) -> np.ndarray:
    """(H, W) the specks; none where there are too few, or none of them inside the label."""
    numbers, _ = ndimage.label(wrong, EIGHT)
    inside = ndimage.distance_transform_edt(np.pad(label, 1))[1:-1, 1:-1]
    depth = np.where(label, inside, ndimage.distance_transform_edt(~label))
    small = np.bincount(numbers.ravel()) < max(2, _SPECK * area)
    small[np.unique(numbers[depth <= _OFF_EDGE])] = False
    small[0] = False
    enough = np.count_nonzero(small) >= _FEWEST_SPECKS and (small[numbers] & label).any()
    return small[numbers] if enough else np.zeros(label.shape, dtype=bool)


def _apart(outline: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The parts of the outline that do not meet the label."""
    numbers, _ = ndimage.label(outline, EIGHT)
    meets = np.zeros(numbers.max() + 1, dtype=bool)
    meets[np.unique(numbers[label])] = True
    meets[0] = True
    return ~meets[numbers]


def _large(mask: np.ndarray, least: float) -> np.ndarray:
    numbers, _ = ndimage.label(mask, EIGHT)
    keep = np.bincount(numbers.ravel()) >= least
    keep[0] = False
    return keep[numbers]


def _cuts(pieces: np.ndarray, area: float, radius: float) -> np.ndarray:
    """What a closing adds between pieces of the outline, where there are two or more."""
    numbers, _ = ndimage.label(pieces)
    sizes = np.bincount(numbers.ravel())[1:]
    if np.count_nonzero(sizes >= _PIECE * area) < 2:
        return np.zeros(pieces.shape, dtype=bool)
    reach = max(1.0, _CUT / 2 * radius)
    padded = np.pad(pieces, math.ceil(reach) + 1)
    near = ndimage.distance_transform_edt(~padded) <= reach
    closed = ndimage.distance_transform_edt(near) > reach
    inner = math.ceil(reach) + 1
    return (closed | padded)[inner:-inner, inner:-inner] & ~pieces


def _mended(outline: np.ndarray, label: np.ndarray) -> float:
    """Which share of the wrong pixels goes when the outline is moved to the label's centre."""
    step = np.subtract(ndimage.center_of_mass(label), ndimage.center_of_mass(outline))
    room = math.ceil(np.abs(step).max()) + 1
    moved = ndimage.shift(np.pad(outline, room).astype(np.float32), step, order=1) > 0.5
    return 1 - np.count_nonzero(moved ^ np.pad(label, room)) / np.count_nonzero(outline ^ label)


def _bites(missing: np.ndarray, label: np.ndarray, area: float, radius: float) -> np.ndarray:
    """What is missing in depth, where that takes little of the edge."""
    deep = _opened(missing, _OPENING * radius)
    edge = edge_pixels(label)
    share = deep[edge[:, 0], edge[:, 1]].mean()
    is_bite = share <= _BITE_EDGE and np.count_nonzero(deep) >= _BITE_LEAST * area
    return deep if is_bite else np.zeros(label.shape, dtype=bool)


def _bridges(extra: np.ndarray, label: np.ndarray, radius: float) -> np.ndarray:
    """The extra parts that leave the label's rim through a narrow neck and reach far."""
    away = ndimage.distance_transform_edt(~label)
    rim = max(2.0, _RIM * radius)
    neck = (away > rim) & (away <= rim + 1.5)
    numbers, count = ndimage.label(extra & (away > rim), EIGHT)
    widths = np.bincount(numbers[neck], minlength=count + 1) / max(1, int(np.count_nonzero(neck)))
    reach = ndimage.maximum(away, numbers, np.arange(count + 1)) if count else np.zeros(1)
    is_bridge = (widths > 0) & (widths <= _NECK) & (np.asarray(reach) >= _REACH * radius)
    is_bridge[0] = False
    return is_bridge[numbers]


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """What of a mask is wide enough for a disc of this radius."""
    padded = np.pad(mask, 1)
    core = ndimage.distance_transform_edt(padded) > radius
    if not core.any():
        return np.zeros(mask.shape, dtype=bool)
    return ((ndimage.distance_transform_edt(~core) <= radius) & padded)[1:-1, 1:-1]
