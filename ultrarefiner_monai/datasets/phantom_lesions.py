"""A phantom's lesions: cysts and solid ones, benign and malignant, with what they do to the beam behind them."""

from __future__ import annotations

import numpy as np

from ultrarefiner_monai.datasets.phantom_shapes import Region, smooth_field, smooth_step
from ultrarefiner_monai.datasets.phantom_tissue import Tissue


def _draw_lesion(rng: np.random.Generator, aspect: float, malignant: bool, scale: float) -> Region:
    radius = scale * float(np.clip(rng.lognormal(np.log(0.17 if malignant else 0.125), 0.42), 0.045, 0.33))
    flat = rng.uniform(0.6, 1.35) if malignant else rng.uniform(0.38, 0.85)
    room = min(radius / np.sqrt(flat), 0.45 * aspect)
    top = min(0.08 + radius * np.sqrt(flat), 0.45)
    centre = (rng.uniform(room, max(aspect - room, room + 1e-3)), rng.uniform(top, max(0.62, top + 0.02)))
    base = Region.draw(rng, centre, radius, flat)
    if malignant:
        orders, size = range(2, rng.integers(7, 12)), rng.uniform(0.08, 0.2)
        count = rng.integers(3, 10) if rng.random() < 0.5 else 0
    else:
        orders, size = range(2, 4 + 2 * (rng.random() < 0.35)), rng.uniform(0.0, 0.08)
        count = 0
    harmonics = tuple(
        (k, float(rng.normal(0, size * (2 / k) ** 0.7)), float(rng.uniform(0, 2 * np.pi))) for k in orders
    )
    spicules = tuple(
        (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.1, 0.4)), float(rng.uniform(0.1, 0.25)))
        for _ in range(count)
    )
    return Region(base.cx, base.cy, base.rx, base.ry, base.angle, harmonics, spicules)


def add_lesion(
    rng: np.random.Generator,
    tissue: Tissue,
    mask: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    malignant: bool,
    scale: float = 1.0,
) -> str:
    """Put one lesion into tissue and mask (both in place); returns what it looks like."""
    shape = (y.shape[0], y.shape[1])
    where = _draw_lesion(rng, shape[1] / shape[0], malignant, scale)
    radius = float(np.sqrt(where.rx * where.ry))
    level = np.minimum(where.level(y, x), (y - 0.055) / 0.1)  # never through the skin
    mask |= level >= 0
    cyst = not malignant and rng.random() < 0.35
    softness = rng.uniform(0.03, 0.16) if malignant else rng.uniform(0.01, 0.05)
    inside = smooth_step(level, softness / radius * 0.17)
    if malignant:
        name, inner, uneven = "irregular hypoechoic lesion", rng.uniform(-20, -10), rng.uniform(1, 4.5)
        loss = rng.uniform(10, 140) if rng.random() < 0.65 else rng.uniform(-25, 10)
    elif cyst:
        name, inner, uneven, loss = "cyst", rng.uniform(-40, -24), 1.5, rng.uniform(-70, -25)
    else:
        name, inner, uneven = "oval hypoechoic lesion", rng.uniform(-18, -9), rng.uniform(0.5, 3)
        loss = rng.uniform(-45, 12)
    surroundings = float(np.median(tissue.strength[(level > -0.6) & (level < -0.1)]))
    inner = min(inner, surroundings - rng.uniform(5, 9))  # a lesion in dark fat is darker still
    interior = inner + uneven * (smooth_field(rng, shape, 9, 9) + 0.7 * smooth_field(rng, shape, 26, 18))
    strands = tissue.strength - tissue.strength.mean()  # of tissue left in it
    interior += rng.uniform(0, 0.35) * strands * (not cyst)
    if malignant and rng.random() < 0.3:  # microcalcifications
        interior += 22 * (smooth_field(rng, shape, 60, 60) > 2.6)
    tissue.strength += (interior - tissue.strength) * inside
    facing = np.abs(where.normal_y(y, x))
    rim = np.exp(-(((level + 0.06) / (0.1 if malignant else 0.05)) ** 2)) * (1 - inside)
    tissue.strength += rng.uniform(2, 8) * rim * (0.4 + 0.6 * facing)
    if malignant:  # echogenic halo of the infiltrated surroundings
        tissue.strength += rng.uniform(0, 6) * np.exp(-(((level + 0.25) / 0.25) ** 2)) * (level < 0)
    tissue.attenuation += loss * inside * min(1.0, 0.16 / radius)
    if not malignant:  # edge shadows: refraction at steep sides
        tissue.attenuation += rng.uniform(0, 60) * np.exp(-((level / 0.08) ** 2)) * (1 - facing) ** 2
    behind = "posterior shadow" if loss > 15 else "posterior enhancement" if loss < -15 else "no posterior feature"
    return f"{name}, {behind}"
