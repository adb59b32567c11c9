"""A phantom's healthy breast: layers, septa, skin, and dark things that are no lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ultrarefiner_monai.datasets.phantom_shapes import Region, ridges, smooth_field, smooth_step, streaks


@dataclass
class Tissue:
    """strength: (H, W) dB, scatterers. attenuation: (H, W) dB lost per image height, beyond what the scanner's time
    gain makes up for; negative behind fluid."""

    strength: np.ndarray
    attenuation: np.ndarray


def background(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> tuple[Tissue, list[str]]:
    """Healthy breast with distractors. Built with flat layers, then bent by one smooth displacement."""
    shape = (y.shape[0], y.shape[1])
    fat_end, gland_end = rng.uniform(0.1, 0.4), rng.uniform(0.55, 0.95)
    fat_edge = y - fat_end - rng.uniform(0.01, 0.04) * smooth_field(rng, shape, 1, 4)
    muscle_edge = y - gland_end - 0.01 * smooth_field(rng, shape, 1, 2)

    fat = rng.uniform(-13, -7) + 1.5 * smooth_field(rng, shape, 7, 5) + 2 * streaks(rng, shape, 30, 5)
    fat += rng.uniform(10, 18) * ridges(rng, shape, rng.uniform(6, 11), rng.uniform(1.5, 3), rng.uniform(4, 8))
    gland = (
        rng.uniform(-3, 0)
        + 2.5 * smooth_field(rng, shape, 6, 4)
        + rng.uniform(1.5, 3) * smooth_field(rng, shape, 30, 12)
    )
    gland += rng.uniform(2, 6) * streaks(rng, shape, rng.uniform(26, 44), rng.uniform(3, 8))
    gland += rng.uniform(2, 6) * streaks(rng, shape, rng.uniform(55, 85), rng.uniform(6, 14))
    gland += rng.uniform(3, 9) * ridges(rng, shape, rng.uniform(9, 18), rng.uniform(2, 5), rng.uniform(2.5, 5))
    gland -= rng.uniform(0, 10) * smooth_step(
        smooth_field(rng, shape, 10, rng.uniform(3, 8)) - 0.9, 0.3
    )  # ducts, fat in the gland
    muscle = rng.uniform(-15, -8) + 2 * smooth_field(rng, shape, 6, 3)
    muscle += rng.uniform(3, 7) * streaks(rng, shape, rng.uniform(24, 40), rng.uniform(1.5, 3))

    strength = fat + (gland - fat) * smooth_step(fat_edge, rng.uniform(0.008, 0.04))
    strength += (muscle - strength) * smooth_step(muscle_edge, 0.01)
    for edge, gain in ((fat_edge, rng.uniform(0, 9)), (muscle_edge, rng.uniform(5, 16))):  # fascia
        strength += gain * np.exp(-((edge / 0.007) ** 2)) * np.clip(smooth_field(rng, shape, 2, 4) + 0.5, 0, 1.3)
    bend = rng.uniform(0.01, 0.035) * smooth_field(rng, shape, 2, 2) + rng.uniform(0.0, 0.012) * smooth_field(
        rng, shape, 5, 6
    )
    rows = np.clip(y + bend * smooth_step(y - 0.1, 0.06), 0, 1) * shape[0]
    strength = ndimage.map_coordinates(strength, [rows, x * shape[0]], order=1, mode="nearest")
    attenuation = rng.uniform(3, 20) + rng.uniform(0, 25) * y**2 + 10 * smooth_field(rng, shape, 3, 3)
    tissue = Tissue(strength, attenuation.astype(np.float32))
    notes = _add_distractors(rng, tissue, y, x, fat_end, gland_end)
    _add_skin(rng, tissue, y)
    return tissue, notes


def _add_skin(rng: np.random.Generator, tissue: Tissue, y: np.ndarray) -> None:
    thickness = rng.uniform(0.015, 0.04)
    wave = 0.004 * smooth_field(rng, (y.shape[0], y.shape[1]), 1, 3)
    for place, gain in ((0.004, 14), (thickness, 12)):
        tissue.strength += gain * np.exp(-(((y - place - wave) / 0.005) ** 2))
    tissue.strength += 5 * smooth_step(thickness - y, 0.004)


def _add_distractors(
    rng: np.random.Generator, tissue: Tissue, y: np.ndarray, x: np.ndarray, fat_end: float, gland_end: float
) -> list[str]:
    """Dark things that are no lesions, into tissue (in place). Returns their names."""
    notes, aspect = [], y.shape[1] / y.shape[0]
    for _ in range(rng.integers(0, 4)):  # fat lobules: as dark as fat, flat, with a bright capsule above and below
        where = Region.draw(rng, (rng.uniform(0, aspect), rng.uniform(fat_end, 0.7)), rng.uniform(0.03, 0.09), 0.35)
        level = where.level(y, x)
        dark = rng.uniform(-11, -6) + 1.5 * smooth_field(rng, (y.shape[0], y.shape[1]), 10, 8)
        tissue.strength += (dark - tissue.strength) * 0.85 * smooth_step(level, 0.15)
        tissue.strength += 7 * np.exp(-((level / 0.12) ** 2)) * np.abs(where.normal_y(y, x))
        notes = ["fat lobules"]
    if rng.random() < 0.3:  # a vessel or duct: thin and fluid
        where = Region.draw(rng, (rng.uniform(0, aspect), rng.uniform(0.1, 0.7)), rng.uniform(0.012, 0.03), 0.15)
        tissue.strength -= 18 * smooth_step(where.level(y, x), 0.2)
        notes.append("duct")
    if rng.random() < 0.2:  # ribs: bright curved surface, nothing behind it
        centre, half = rng.uniform(0, aspect), rng.uniform(0.12, 0.3)
        surface = y - rng.uniform(gland_end, 1.0) - 0.6 * (x - centre) ** 2
        inside = smooth_step(half - np.abs(x - centre), 0.02)
        tissue.strength += inside * (14 * np.exp(-((surface / 0.01) ** 2)) - 8 * smooth_step(surface, 0.01))
        tissue.attenuation += inside * 150 * smooth_step(surface, 0.01)
        notes.append("rib shadow")
    if rng.random() < 0.18:  # nipple: shadow from the surface downwards, wider with depth
        centre, half = rng.uniform(0.2, 0.8) * aspect, rng.uniform(0.04, 0.1)
        inside = smooth_step(half * (1 + 0.8 * y) - np.abs(x - centre - rng.uniform(-0.2, 0.2) * y), 0.03)
        tissue.attenuation += inside * rng.uniform(30, 90) * (y < 0.3)
        notes.append("nipple shadow")
    if rng.random() < 0.3:  # poor contact at one side
        side = x if rng.random() < 0.5 else aspect - x
        tissue.attenuation += 150 * smooth_step(rng.uniform(0.02, 0.12) - side, 0.03) * (y < 0.12)
        notes.append("poor contact")
    streaks = np.clip(smooth_field(rng, (1, y.shape[1]), 1, rng.uniform(4, 9)), -1, 3)  # narrow shadows of ligaments
    tissue.attenuation += (
        rng.uniform(0, 25) * streaks * smooth_step(y - fat_end * rng.uniform(0.2, 1), 0.03) * (y < 0.5)
    )
    return notes
