"""What is drawn for each kind of corruption: places, sizes and directions, in proportion to the lesion.

Each ``draw_*`` takes masks (N, H, W) bool that hold a lesion, their Shapes, how hard to hit each of them (N,) in [0, 1]
and the Draws, and applies the pure function of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ultrarefiner_monai.training.data import corruption_kinds as kinds
from ultrarefiner_monai.training.data.corruption_fields import (
    Shapes,
    edge,
    field_cells,
    gaussian_field,
    pick_pixels,
    signed_distance,
)
from ultrarefiner_monai.training.data.corruption_sdf import Change, nearest_disc

# How much likelier (or less likely, below 0) a kind becomes for the tiniest, most irregular lesion.
TILT = {"identity": -0.7, "giant": 1.0, "under": 0.5, "chunk": 0.5, "fragments": 1.0, "shift": 0.5, "empty": 2.0}
# Kinds that a curriculum starts without.
HARD = ("giant", "islands", "bridge", "fragments", "empty", "noise")
DISTANCE_KINDS = {"sdf_offset": 0.35, "sdf_field": 0.30, "sdf_holes": 0.15, "sdf_attachments": 0.20}
DISTANCE_TILT = {"sdf_field": 0.5, "sdf_holes": 0.3, "sdf_attachments": 1.0}


class Draws:
    """Random numbers from a generator of one's own, on the CPU, so that a GPU gives the same corruption."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device

    def uniform(self, *size: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """float32 of ``size`` in [low, high)."""
        return (low + (high - low) * torch.rand(size, generator=self.generator)).to(self.device)

    def normal(self, *size: int) -> torch.Tensor:
        """Standard normal float32 of ``size``."""
        return torch.randn(size, generator=self.generator).to(self.device)

    def choose(self, weights: torch.Tensor) -> torch.Tensor:
        """(N, M) weights >= 0 -> (N,) indices, on the CPU."""
        total = weights.double().cpu().cumsum(1)
        at = torch.rand(len(weights), 1, generator=self.generator, dtype=torch.float64) * total[:, -1:]
        return torch.searchsorted(total, at, right=True)[:, 0].clamp(max=weights.shape[1] - 1)

    def happens(self, share: torch.Tensor | float, count: int) -> torch.Tensor:
        """(count,) bool on the CPU, True with the given share (one, or one each)."""
        return torch.rand(count, generator=self.generator) < (share.cpu() if isinstance(share, torch.Tensor) else share)

    def field(self, size: tuple[int, int], length: torch.Tensor) -> torch.Tensor:
        """(N, H, W) smooth Gaussian random fields of correlation lengths (N,) pixels."""
        shortest = float(length.min())
        grid = (field_cells(size[0], shortest), field_cells(size[1], shortest))
        return gaussian_field(self.normal(len(length), *grid), size, length)


def _few(draws: Draws, n: int, most: int, fewest: int = 1) -> torch.Tensor:
    """(n, most) bool: how many of up to ``most`` things there are, small numbers as likely as large ones in ratio."""
    count = torch.exp(draws.uniform(n, low=math.log(fewest), high=math.log(most + 1))).floor()
    return torch.arange(most, device=draws.device) < count[:, None]


def _squeeze(draws: Draws, n: int, k: int) -> torch.Tensor:
    return torch.exp(draws.uniform(n, k, low=-0.35, high=0.35))


# --- the twelve -------------------------------------------------------------------------------------------------------


def _uneven(masks: torch.Tensor, shapes: Shapes, draws: Draws) -> torch.Tensor:
    """(N, H, W) reluctance: smooth unevenness for all, one-sided for a third of them."""
    n, size = len(masks), (masks.shape[1], masks.shape[2])
    lean = draws.uniform(n, low=1, high=4) * draws.happens(1 / 3, n).to(draws.device)
    side = kinds.one_sided(shapes.centre, shapes.radius, draws.uniform(n, high=2 * math.pi), lean, size)
    return side * torch.exp(0.25 * draws.field(size, (0.8 * shapes.radius).clamp(min=3)))


def draw_over(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """1.2 to 3 times the area."""
    return kinds.change_area(masks, signed_distance(masks), 1.2 + 1.8 * hard, _uneven(masks, shapes, draws))


def draw_giant(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """3 to 20 times the area, as far as the frame allows."""
    return kinds.change_area(masks, signed_distance(masks), 3 * (20 / 3) ** hard, _uneven(masks, shapes, draws))


def draw_under(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """.4 to .9 of the area."""
    return kinds.change_area(masks, signed_distance(masks), 0.9 - 0.5 * hard, _uneven(masks, shapes, draws))


def draw_chunk(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """5 to 30 % taken away: a wedge from near the centre, or a bite from the edge."""
    n = len(masks)
    wedge = draws.happens(0.5, n).to(draws.device)
    bite = pick_pixels(edge(masks), draws.uniform(n, 1, 2))[:, 0]
    tip = shapes.centre + 0.2 * shapes.radius[:, None] * draws.normal(n, 2).clamp(-1.5, 1.5)
    corner = torch.where(wedge[:, None], tip, bite)
    return kinds.missing_chunk(masks, 0.05 + 0.25 * hard, corner, draws.uniform(n, high=2 * math.pi), wedge)


def draw_holes(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """One to four holes of 2 to 20 % of the area each."""
    n = len(masks)
    fractions = 0.02 * 10 ** (hard[:, None] * draws.uniform(n, 4)) * _few(draws, n, 4)
    return kinds.internal_holes(masks, pick_pixels(masks, draws.uniform(n, 4, 2)), fractions, _squeeze(draws, n, 4))


def draw_bridge(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """A band of .1 to .4 radii to each side, 1 to 2.5 radii away from the edge, with a bulb at its end for half of them."""
    n = len(masks)
    start = pick_pixels(edge(masks), draws.uniform(n, 1, 2))[:, 0]
    away = start - shapes.centre
    turn = torch.atan2(away[:, 0], away[:, 1]) + draws.uniform(n, low=-0.6, high=0.6)
    reach = (shapes.radius * (1 + 1.5 * hard)).clamp(min=3)
    end = start + reach[:, None] * torch.stack((turn.sin(), turn.cos()), 1)
    half_width = (shapes.radius * draws.uniform(n, low=0.1, high=0.4)).clamp(min=0.8)
    bulb = shapes.radius * draws.uniform(n, low=0.2, high=0.7) * draws.happens(0.5, n).to(draws.device)
    return kinds.bridge(masks, start - 0.1 * away, end, half_width, bulb)


def draw_islands(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """1 to 30 false positives of .08 to .5 lesion radii; where there is no lesion, as if one of usual size were there."""
    n, height, width = masks.shape
    radius = torch.where(shapes.radius > 0, shapes.radius, 0.12 * math.sqrt(height * width))
    there = _few(draws, n, 30) & (torch.arange(30, device=draws.device) < (1 + 29 * hard)[:, None])
    # The more islands, the smaller.
    size = 0.5 * draws.uniform(n, 30, low=0.3) / there.sum(1, keepdim=True).clamp(min=1).sqrt()
    radii = (radius[:, None] * size.clamp(min=0.08)).clamp(min=0.6) * there
    centres = draws.uniform(n, 30, 2) * torch.tensor([height, width], device=draws.device)
    return kinds.islands(masks, centres, radii, _squeeze(draws, n, 30))


def draw_fragments(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """One to five cuts, .03 to .12 radii to each side, roughly in one direction."""
    n, size = len(masks), (masks.shape[1], masks.shape[2])
    there = _few(draws, n, 5) & (torch.arange(5, device=draws.device) < (1 + 4 * hard)[:, None])
    half_width = (shapes.radius[:, None] * draws.uniform(n, 5, low=0.03, high=0.12)).clamp(min=0.75) * there
    angle = draws.uniform(n, 1, high=math.pi) + draws.uniform(n, 5, low=-0.4, high=0.4)
    bend = 0.15 * shapes.radius[:, None, None] * draws.field(size, shapes.radius.clamp(min=3))
    return kinds.fragments(masks, pick_pixels(masks, draws.uniform(n, 5, 2)), angle, half_width, bend)


def draw_shift(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """5 to 30 % of the diameter away, turned by 5 to 20 degrees."""
    n = len(masks)
    towards = draws.uniform(n, high=2 * math.pi)
    far = 2 * shapes.radius * (0.05 + 0.25 * hard)
    way = torch.where(draws.happens(0.5, n).to(draws.device), 1.0, -1.0)
    turn = way * torch.deg2rad(5 + 15 * hard)
    return kinds.shift(masks, shapes.centre, far[:, None] * torch.stack((towards.sin(), towards.cos()), 1), turn)


def draw_noise(masks: torch.Tensor, shapes: Shapes, hard: torch.Tensor, draws: Draws) -> torch.Tensor:
    """2 to 20 % of the lesion's pixels turned over, fewer further away, in specks of one to three pixels."""
    n, height, width = masks.shape
    block = 1 + int(draws.uniform(1, high=3)[0])
    coarse = draws.uniform(n, -(-height // block), -(-width // block))
    uniform = coarse.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :height, :width]
    return kinds.scatter_noise(masks, uniform, 0.02 + 0.18 * hard, shapes.centre, shapes.radius)


Draw = Callable[[torch.Tensor, Shapes, torch.Tensor, Draws], torch.Tensor]

TWELVE: dict[str, Draw] = {
    "identity": lambda masks, shapes, hard, draws: kinds.identity(masks),
    "over": draw_over,
    "giant": draw_giant,
    "under": draw_under,
    "chunk": draw_chunk,
    "holes": draw_holes,
    "bridge": draw_bridge,
    "islands": draw_islands,
    "fragments": draw_fragments,
    "shift": draw_shift,
    "empty": lambda masks, shapes, hard, draws: kinds.empty(masks),
    "noise": draw_noise,
}


# --- in the signed-distance domain ------------------------------------------------------------------------------------


def growth_room(shapes: Shapes) -> torch.Tensor:
    """(N,) long: how far around a lesion the changes reach. A Dice of .6 takes growth by about half a radius."""
    return (0.85 * shapes.radius).ceil().long() + 4


def draw_change(
    names: list[str], labels: torch.Tensor, shapes: Shapes, correlation: tuple[float, float], draws: Draws
) -> Change:
    """The Change of each of N labels (N, H, W), by names of DISTANCE_KINDS; ``shapes`` in the labels' own frame.

    correlation: shortest and longest correlation length of the field in lesion radii. At strength 1 outlines move by
    about a radius; a little field is always there, since whole layers of pixels at one distance would move at once.
    """
    n, size = len(labels), (labels.shape[1], labels.shape[2])
    low, high = (math.log(c) for c in correlation)
    length = shapes.radius * torch.exp(draws.uniform(n, low=low, high=high)) * (1 - 0.3 * shapes.severity)
    field = draws.field(size, length.clamp(min=3))
    outwards = torch.where(draws.happens(0.5, n).to(draws.device), 1.0, -1.0)
    some, little = draws.uniform(n), draws.uniform(n, low=0.15, high=0.5)

    def by_kind(offset: torch.Tensor, field: torch.Tensor, holes: torch.Tensor, lumps: torch.Tensor) -> torch.Tensor:
        rows = {"sdf_offset": offset, "sdf_field": field, "sdf_holes": holes, "sdf_attachments": lumps}
        return torch.stack([rows[name][i] for i, name in enumerate(names)])

    one = torch.ones_like(some)
    offset = by_kind(outwards, 0.3 * outwards * some, -0.3 * some, 0.3 * some) * shapes.radius
    spread = by_kind(little, one, little, little) * shapes.radius
    change = Change(signed_distance(labels, growth_room(shapes)), offset[:, None, None] + spread[:, None, None] * field)
    parts: dict[str, torch.Tensor] = {}
    for kind, name, name_of_size in (
        ("sdf_holes", "holes", "hole_size"),
        ("sdf_attachments", "lumps", "lump_size"),
    ):
        has = torch.tensor([other == kind for other in names], device=draws.device)
        if has.any():
            rows = has.nonzero()[:, 0]
            within = edge(labels[rows]) if kind == "sdf_attachments" else labels[rows]
            # Between the pixels, so that no two of them are equally far.
            place = pick_pixels(within, draws.uniform(len(rows), 3, 2)) + draws.uniform(
                len(rows), 3, 2, low=-0.5, high=0.5
            )
            radii = shapes.radius[rows, None] * draws.uniform(len(rows), 1, low=0.2, high=0.6)
            radii = radii * draws.uniform(len(rows), 3, low=0.5) * _few(draws, len(rows), 3)
            distance, sizes = torch.full(labels.shape, torch.inf, device=draws.device), torch.ones_like(some)
            distance[rows], sizes[rows] = nearest_disc(size, place, radii), radii.amax(1)
            parts[name] = distance
            parts[name_of_size] = sizes
    return Change(**{**vars(change), **parts})
