"""The random transform that makes simulated coarse masks of labels, for phase 2 (docs/research/corruption.md).

Which kind each label gets, how hard, and how soft the result is; what the kinds are stands in ``corruption_kinds`` and
``corruption_sdf``, what is drawn for them in ``corruption_draws``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F

from ultrarefiner_monai.config import CorruptionConfig
from ultrarefiner_monai.training.data.corruption_draws import (
    DISTANCE_KINDS,
    DISTANCE_TILT,
    HARD,
    TILT,
    TWELVE,
    Draws,
    draw_change,
    growth_room,
)
from ultrarefiner_monai.training.data.corruption_fields import Shapes, dice, shapes_of, signed_distance
from ultrarefiner_monai.training.data.corruption_kinds import roughen, soften
from ultrarefiner_monai.training.data.corruption_sdf import level_for_dice

# Pixels worked on at once on a CPU: what fits its cache. A GPU takes all masks at once.
PIECE_PIXELS = 300_000
# Every kind by name: the twelve, then those of the signed-distance domain.
KINDS = (*TWELVE, *DISTANCE_KINDS, "sdf_vanish")


@dataclass(frozen=True)
class CorruptedBatch:
    """corrupted_prob: (B, 1, H, W) in [0, 1]. dice: (B,) of corrupted_prob > .5 against the label; two empty masks: 1.

    kind: B names. asked: (B, 2) lowest and highest Dice that was asked for, NaN where none was.
    """

    corrupted_prob: torch.Tensor
    dice: torch.Tensor
    kind: list[str]
    asked: torch.Tensor


def _in_full_precision(method: Callable[..., CorruptedBatch]) -> Callable[..., CorruptedBatch]:
    """Areas and places are sums over pixels: in mixed precision, which a training may be in, they would be wrong or NaN."""

    @wraps(method)
    def exact(self: Corruptor, masks: torch.Tensor, *args: Any, **kwargs: Any) -> CorruptedBatch:
        with torch.autocast(masks.device.type, enabled=False):
            return method(self, masks, *args, **kwargs)

    return exact


class Corruptor:
    """masks -> CorruptedBatch, from its own generator."""

    def __init__(self, config: CorruptionConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def set_seed(self, seed: int) -> None:
        """What is drawn from here on depends on ``seed`` (and on the masks) alone."""
        self.generator.manual_seed(seed)

    @_in_full_precision
    def __call__(self, masks: torch.Tensor, difficulty: float | None = None) -> CorruptedBatch:
        """masks: (B, 1, H, W), 0 or 1. difficulty: 0 (easy) to 1 (the full mix), None: 1. Everything comes back on the
        masks' device; the same masks and seed give the same on each."""
        difficulty = _checked(masks, difficulty)
        labels = masks[:, 0] > 0.5
        draws = Draws(self.generator, masks.device)
        shapes = _measure(labels)
        return self._apply(labels, shapes, self._kinds(shapes, draws, difficulty, labels.shape[-2:]), draws, difficulty)

    @_in_full_precision
    def as_kinds(self, masks: torch.Tensor, kind: Sequence[str], difficulty: float | None = None) -> CorruptedBatch:
        """The same with the kinds (KINDS) given, one for each mask; of a mask without a lesion nothing but islands come."""
        difficulty = _checked(masks, difficulty)
        unknown = sorted(set(kind) - set(KINDS))
        if unknown or len(kind) != len(masks):
            raise ValueError(f"expected {len(masks)} of {', '.join(KINDS)}; got {len(kind)}, unknown: {unknown}")
        labels = masks[:, 0] > 0.5
        shapes = _measure(labels)
        kind = ["empty" if a == 0 and k != "islands" else k for a, k in zip(shapes.area.tolist(), kind)]
        return self._apply(labels, shapes, kind, Draws(self.generator, masks.device), difficulty)

    def _apply(
        self, labels: torch.Tensor, shapes: Shapes, kind: list[str], draws: Draws, difficulty: float
    ) -> CorruptedBatch:
        prob = torch.zeros(labels.shape, device=labels.device)
        got = torch.ones(len(labels), device=labels.device)
        asked = torch.full((len(labels), 2), torch.nan, device=labels.device)
        twelve = torch.tensor([name in TWELVE for name in kind], dtype=torch.bool)
        whole = torch.full((len(labels),), labels.shape[1] * labels.shape[2])
        for rows in _pieces(twelve.nonzero()[:, 0], whole, labels.device):
            names = [kind[i] for i in rows]
            prob[rows], got[rows] = self._twelve(labels[rows], shapes.pick(rows), names, draws, difficulty)
        vanish = torch.tensor([name == "sdf_vanish" for name in kind], dtype=torch.bool)
        got[vanish.to(got.device)] = 0
        # Lesions of one size together, since they share the size of their crop.
        rest = (~twelve & ~vanish).nonzero()[:, 0]
        rest = rest[shapes.radius.cpu()[rest].argsort(stable=True)]
        asked[rest] = self._bands(shapes.pick(rest), draws, difficulty)
        for rows in _pieces(rest, (4 * shapes.radius.cpu() + 10).square(), labels.device):
            names = [kind[i] for i in rows]
            prob[rows], got[rows] = self._distance(labels[rows], shapes.pick(rows), names, asked[rows], draws)
        return CorruptedBatch(prob[:, None], got, kind, asked)

    # --- what each label gets -----------------------------------------------------------------------------------------

    def _kinds(self, shapes: Shapes, draws: Draws, difficulty: float, size: Sequence[int]) -> list[str]:
        """A name for each label: one of the twelve, or one of the signed-distance kinds."""
        c, n = self.config, len(shapes.area)
        severity = shapes.severity.cpu()

        def drawn(weights: dict[str, float], tilt: dict[str, float]) -> list[str]:
            names = list(weights)
            each = torch.tensor([weights[k] * (difficulty if k in HARD else 1) for k in names])
            if not each.sum() > 0:
                each = torch.tensor([weights[k] for k in names])
            each = each * (1 + severity[:, None] * torch.tensor([tilt.get(k, 0.0) for k in names]))
            return [names[i] for i in draws.choose(each)]

        from_twelve, distance = drawn(c.kinds, TILT), drawn(DISTANCE_KINDS, DISTANCE_TILT)
        is_twelve = draws.happens(c.share_twelve, n)
        tiny = shapes.radius.cpu() < c.vanish_radius * max(size) / 224
        vanishes = draws.happens(c.vanish_share * difficulty, n) & tiny
        has_islands = draws.happens(c.empty_islands * difficulty, n)
        names = []
        for i in range(n):
            if shapes.area[i] == 0:
                names.append("islands" if has_islands[i] else "empty")
            elif is_twelve[i]:
                names.append(from_twelve[i])
            else:
                names.append("sdf_vanish" if vanishes[i] else distance[i])
        return names

    def _bands(self, shapes: Shapes, draws: Draws, difficulty: float) -> torch.Tensor:
        """(N, 2) lowest and highest Dice asked for. The harder bands come in one after the other as difficulty rises."""
        bands = torch.tensor(self.config.bands)
        weights = torch.tensor(self.config.band_weights)
        ramp = (difficulty * len(bands) - torch.arange(len(bands)) + (1 - difficulty)).clamp(0, 1)
        weights = weights * ramp if float((weights * ramp).sum()) > 0 else weights
        # Too few pixels for a small change: one pixel more than the lesion's own has to be good enough for the band.
        area = shapes.area.cpu()[:, None]
        possible = bands[:, 0] <= 2 * area / (2 * area + 1)
        hardest = torch.zeros(len(bands))
        hardest[int(bands[:, 0].argmin())] = 1
        each = weights * possible
        each = torch.where(each.sum(1, keepdim=True) > 0, each, hardest)
        return bands[draws.choose(each)].to(shapes.area.device) if len(area) else bands[:0].to(shapes.area.device)

    # --- the two ways -------------------------------------------------------------------------------------------------

    def _twelve(
        self, labels: torch.Tensor, shapes: Shapes, names: list[str], draws: Draws, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W) labels -> probabilities (N, H, W), Dice (N,)."""
        c, n, size = self.config, len(labels), (labels.shape[1], labels.shape[2])
        scale = max(size) / 224
        hard = draws.uniform(n) ** (1 / (1 + shapes.severity)) * (0.3 + 0.7 * difficulty)
        out = labels.clone()
        for name in dict.fromkeys(names):
            rows = torch.tensor([i for i, other in enumerate(names) if other == name], device=labels.device)
            out[rows] = TWELVE[name](labels[rows], shapes.pick(rows), hard[rows], draws)
        rough = draws.happens(c.roughness_share, n) & out.flatten(1).any(1).cpu()
        rows = rough.nonzero()[:, 0].to(labels.device)
        if len(rows):
            low, high = c.roughness
            # Two standard deviations of the jitter are its stated size; never more than half a lesion's radius.
            size_px = draws.uniform(len(rows), low=low, high=high) * scale
            radius = shapes.radius[rows]
            sigma = torch.where(radius > 0, torch.minimum(size_px, radius / 2), size_px) / 2
            length = draws.uniform(2 * len(rows), low=4, high=10) * scale
            moves = draws.field(size, length) * sigma.repeat(2)[:, None, None]
            out[rows] = roughen(out[rows], moves[: len(rows)], moves[len(rows) :])
        soft = draws.happens(c.soften_twelve, n) & out.flatten(1).any(1).cpu()
        temperature = self._temperature(n, scale, draws)
        prob = out.float()
        rows = soft.nonzero()[:, 0].to(labels.device)
        if len(rows):
            sdf = signed_distance(out[rows])
            prob[rows] = soften(sdf, _gentle(temperature[rows], sdf))
        return prob, dice(out, labels)

    def _distance(
        self, labels: torch.Tensor, shapes: Shapes, names: list[str], band: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W) labels, each with a lesion, and the Dice asked for -> probabilities (N, H, W), Dice (N,)."""
        c, n, size = self.config, len(labels), (labels.shape[1], labels.shape[2])
        low, high = (0.1, 0.9)
        hard = low + (high - low) * draws.uniform(n) ** (1 / (1 + shapes.severity))
        aim = band[:, 1] - (band[:, 1] - band[:, 0]) * hard
        soft = draws.happens(c.soften_sdf, n).to(labels.device)
        temperature = self._temperature(n, max(size) / 224, draws)
        origin, crop = _crop_windows(shapes, size, whole=labels.device.type != "cpu")
        crops = _cut(labels, origin, crop)
        inner = Shapes(**{**vars(shapes), "centre": shapes.centre - origin.to(labels.device)})
        change = draw_change(names, crops, inner, c.correlation, draws)
        _still_at_the_seam(change.drift, change.lumps, origin, crop, size)
        level, got = level_for_dice(change, crops, band, aim)
        gentle = _gentle(torch.minimum(temperature, change.sdf.flatten(1).amax(1) / 2), level)
        level = _uncut(level, origin, size)
        prob = soften(level, gentle)
        prob[~soft] = (level[~soft] > 0).float()
        return prob, got

    def _temperature(self, n: int, scale: float, draws: Draws) -> torch.Tensor:
        low, high = self.config.temperature
        return draws.uniform(n, low=low, high=high) * scale


def _checked(masks: torch.Tensor, difficulty: float | None) -> float:
    if masks.ndim != 4 or masks.shape[1] != 1:
        raise ValueError(f"masks must be (B, 1, H, W), got {tuple(masks.shape)}")
    if difficulty is not None and not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be in [0, 1], got {difficulty}")
    return 1.0 if difficulty is None else difficulty


def _measure(labels: torch.Tensor) -> Shapes:
    some = max(1, PIECE_PIXELS // max(1, labels.shape[1] * labels.shape[2]))
    parts = [shapes_of(piece) for piece in (labels.split(some) if labels.device.type == "cpu" else (labels,))]
    return Shapes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _pieces(rows: torch.Tensor, pixels: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """``rows`` in their order, in pieces of about PIECE_PIXELS, where item i takes ``pixels[i]``."""
    if device.type != "cpu" and len(rows):
        return [rows.to(device)]
    place = (pixels[rows].double().cumsum(0) / PIECE_PIXELS).long()
    return list(rows.split(torch.unique_consecutive(place, return_counts=True)[1].tolist())) if len(rows) else []


def _gentle(temperature: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """At most half the inradius of what is left, or tiny lesions would vanish in their own softness."""
    return torch.minimum(temperature, level.flatten(1).amax(1) / 2).clamp(min=0.1)


# --- crops ------------------------------------------------------------------------------------------------------------


def _crop_windows(shapes: Shapes, size: tuple[int, int], whole: bool) -> tuple[torch.Tensor, tuple[int, int]]:
    """Where N lesions with room to grow lie: (N, 2) long, y and x of the windows' first pixels, and their common size.

    Most of a frame is far from the lesion; on a CPU leaving it out saves most of the time.
    """
    n = len(shapes.area)
    if whole:
        return torch.zeros(n, 2, dtype=torch.long), size
    margin = growth_room(shapes)
    first, last = shapes.box[:, :2] - margin[:, None], shapes.box[:, 2:] + margin[:, None] + 1
    crop = tuple(int(min(side, int((last - first)[:, axis].max()))) for axis, side in enumerate(size))
    room = torch.tensor([size[0] - crop[0], size[1] - crop[1]])
    return torch.minimum(first.clamp(min=0), room), (crop[0], crop[1])


def _cut(labels: torch.Tensor, origin: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    if crop == tuple(labels.shape[1:]):
        return labels
    return torch.stack([labels[i, y : y + crop[0], x : x + crop[1]] for i, (y, x) in enumerate(origin.tolist())])


def _still_at_the_seam(
    drift: torch.Tensor, lumps: torch.Tensor | None, origin: torch.Tensor, crop: tuple[int, int], size: tuple[int, int]
) -> None:
    """Nothing grows into the outermost pixels of a crop (in place), save where the frame ends there as well."""
    for axis in (0, 1):
        for at, inside in ((0, origin[:, axis] > 0), (-1, origin[:, axis] + crop[axis] < size[axis])):
            rows = inside.nonzero()[:, 0]
            if len(rows):
                drift.select(axis + 1, at)[rows] = 0
                if lumps is not None:
                    lumps.select(axis + 1, at)[rows] = torch.inf


def _uncut(level: torch.Tensor, origin: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Crops (N, h, w) of levels -> (N, H, W): beyond a crop the level falls on by one per pixel."""
    crop = level.shape[1:]
    if tuple(crop) == tuple(size):
        return level
    out = level.new_empty(len(level), *size)
    y, x = torch.arange(size[0]), torch.arange(size[1])
    for i, (y0, x0) in enumerate(origin.tolist()):
        pad = (x0, size[1] - x0 - crop[1], y0, size[0] - y0 - crop[0])
        out[i] = F.pad(level[i][None, None], pad, mode="replicate")[0, 0]
        away_y = torch.maximum(y0 - y, y - (y0 + crop[0] - 1)).clamp(min=0)
        away_x = torch.maximum(x0 - x, x - (x0 + crop[1] - 1)).clamp(min=0)
        out[i].sub_(away_y[:, None]).sub_(away_x)
    return out
