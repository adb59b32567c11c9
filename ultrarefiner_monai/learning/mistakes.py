"""What this department's model gets wrong: its first proposals against the labels that were saved, and the corrupted masks for
a training that follows it.

Kinds of error are those of the corruption (``mistake_kinds``), strengths are bands of Dice. Few corrections say little:
what was seen is mixed with the defaults as if those had been seen on PSEUDO images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ultrarefiner_monai.config.refine import CorruptionConfig
from ultrarefiner_monai.learning.mistake_kinds import kinds_of
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.studies.corrections import Correction

RIGHT = "identity"
PSEUDO = 40.0  # so many images the defaults count: after 40 images with a mistake, both count alike
FLOOR = 0.25  # of its default weight a kind, or a band, keeps at least this share


@dataclass(frozen=True)
class Mistake:
    """One outline that was offered without clicks, beside the label that was made of it.

    id: as of the correction. kinds: kind -> share, in sum 1; ``identity`` alone where it was good, empty for nothing on a
    lesion-free image. lesion: whether the label marks one. diameter: of a disc of its area, as a share of the frame's
    shorter side; 0 without one. weight: 1 over the number of frames of the same image: a cine counts as one image.
    """

    id: str
    kinds: Mapping[str, float]
    dice: float
    lesion: bool
    diameter: float = 0.0
    weight: float = 1.0


def mistake_of(name: str, outline: np.ndarray, label: np.ndarray, weight: float = 1.0) -> Mistake:
    """outline, label: (H, W), non-zero inside."""
    area = int(np.count_nonzero(label))
    diameter = 2 * math.sqrt(area / math.pi) / min(label.shape)
    return Mistake(name, kinds_of(outline, label), dice_of(outline, label), area > 0, diameter, weight)


def newest(corrections: Iterable[Correction]) -> list[Correction]:
    """Of each frame the correction saved last, where its first proposal is known: a save that was superseded is no truth."""
    found = {c.id: c for c in corrections if c.saved is not None}
    return [c for c in found.values() if c.first is not None]


def mistakes_of(corrections: Iterable[Correction]) -> list[Mistake]:
    """One for each frame of the corrections (``read_corrections``) whose first, automatic proposal is known."""
    kept = newest(corrections)
    frames = Counter(_image(c.id) for c in kept)
    return [
        mistake_of(c.id, c.first, c.saved, 1 / frames[_image(c.id)])
        for c in kept
        if c.first is not None and c.saved is not None
    ]


def shares_of(mistakes: Iterable[Mistake]) -> dict[str, float]:
    """Kind -> its share, weighted; {} where there is nothing."""
    found: Counter[str] = Counter()
    for mistake in mistakes:
        for kind, share in mistake.kinds.items():
            found[kind] += share * mistake.weight  # type: ignore[assignment]
    total = sum(found.values())
    return {kind: share / total for kind, share in found.most_common()}


def department_corruption(corrections: Sequence[Correction], base: CorruptionConfig | None = None) -> CorruptionConfig:
    """The corruption for a training on these corrections, which begins with ``base`` (the defaults)."""
    return corruption_for(mistakes_of(corrections), base=base)


def corruption_for(
    mistakes: Sequence[Mistake], floor: float = FLOOR, base: CorruptionConfig | None = None
) -> CorruptionConfig:
    """``base`` (the defaults) with ``kinds``, ``band_weights`` and ``empty_islands`` as the mistakes have them.

    kinds: over outlines with a mistake of lesions; ``identity``, which is no mistake, keeps its weight. band_weights: the
    Dice of outlines that met the lesion; what is worse than the hardest band counts for it, what is better than the
    easiest one not at all. empty_islands: how often there was an outline on a lesion-free image. Each share is

        floor * default + (1 - floor) * (PSEUDO * default + seen) / (PSEUDO + number seen)

    and the weights keep their sum. What is switched off in ``base`` (weight 0) stays off.
    """
    base = base or CorruptionConfig()
    lesions = [m for m in mistakes if m.lesion]
    seen = {k: sum(m.weight * m.kinds.get(k, 0) for m in lesions) for k in base.kinds if k != RIGHT}
    kinds = {**base.kinds, **_mixed({k: base.kinds[k] for k in seen}, seen, floor)}
    bands = [0.0] * len(base.bands)
    for mistake in lesions:
        if (band := _band(mistake.dice, base.bands)) is not None:
            bands[band] += mistake.weight
    weights = _mixed(dict(enumerate(base.band_weights)), dict(enumerate(bands)), floor)
    free = [m for m in mistakes if not m.lesion]
    alarms = sum(m.weight for m in free if m.kinds)
    islands = _drawn(base.empty_islands, alarms, sum(m.weight for m in free), floor)
    return replace(
        base,
        kinds=kinds,
        band_weights=tuple(weights[k] for k in range(len(bands))),
        empty_islands=islands,
    )


def _mixed(default: Mapping, seen: Mapping, floor: float) -> dict:
    """The default weights, drawn towards what was seen; their sum stays."""
    total, count = sum(default.values()), sum(seen[k] for k in default if default[k] > 0)
    if not total or not count:
        return dict(default)
    return {k: total * _drawn(weight / total, seen[k], count, floor) for k, weight in default.items()}


def _drawn(default: float, seen: float, count: float, floor: float) -> float:
    """A share, drawn from its default towards ``seen`` of ``count``."""
    if not default or not count:
        return default
    return floor * default + (1 - floor) * (PSEUDO * default + seen) / (PSEUDO + count)


def _band(dice: float, bands: Sequence[tuple[float, float]]) -> int | None:
    """The band of a Dice: the one with the highest lower end below it, else the hardest; None for what is too good, and for
    a lesion that was missed (Dice 0)."""
    if dice <= 0 or dice >= max(high for _, high in bands):
        return None
    below = [k for k, (low, _) in enumerate(bands) if low <= dice]
    return max(below, key=lambda k: bands[k][0]) if below else min(range(len(bands)), key=lambda k: bands[k][0])


def _image(item: str) -> str:
    return item.rpartition("@")[0]
