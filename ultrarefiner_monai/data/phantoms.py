"""Breast-ultrasound phantoms: pictures with the physics that matters, for training, tests and the sample data.

A tissue map (skin, fat lobules with septa, fibroglandular layer, pectoral muscle, ribs) gives each pixel a scatterer
strength and an attenuation, both in dB. Attenuation is summed up along the beam, so shadows and enhancement come out
by themselves. Fully developed speckle is complex Gaussian noise of that strength, blurred by a point-spread function
that widens with depth; its envelope is Rayleigh distributed, and a few looks are averaged as scanners do (Wagner et
al., "Statistics of speckle in ultrasound B-scans", IEEE Trans. Sonics Ultrason. 30, 1983). No patient is in any of it.

Lengths are shares of the image's height, except speckle, which is in pixels of a 256-row image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

LesionKind = Literal["random", "none", "benign", "malignant"]
KINDS: tuple[str, ...] = ("random", "none", "benign", "malignant")


@dataclass(frozen=True)
class Phantom:
    """image: (H, W) uint8. mask: (H, W) uint8, 0 or 1, all zero without a lesion. description: a few words."""

    image: np.ndarray
    mask: np.ndarray
    description: str


@dataclass
class _Tissue:
    """strength: (H, W) dB, scatterers. attenuation: (H, W) dB lost per image height, beyond what the scanner's time
    gain makes up for; negative behind fluid."""

    strength: np.ndarray
    attenuation: np.ndarray


def make_phantom(rng: np.random.Generator, height: int, width: int, lesion: LesionKind = "random") -> Phantom:
    """One phantom frame of (height, width), at least 32 x 32; the same generator state gives the same picture.

    ``random`` draws none (25 %), benign (40 %) or malignant (35 %). Distractors (dark fat lobules, rib and nipple
    shadows, poor contact, small vessels) are drawn with and without a lesion.
    """
    if lesion not in KINDS:
        raise ValueError(f"lesion must be one of {', '.join(KINDS)}, got {lesion!r}")
    if height < 32 or width < 32:
        raise ValueError(f"a phantom needs at least 32 x 32 pixels, got {height} x {width}")
    kind = str(rng.choice(["none", "benign", "malignant"], p=[0.25, 0.4, 0.35])) if lesion == "random" else lesion
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(height)
    tissue, notes = _background(rng, y, x)
    mask = np.zeros((height, width), bool)
    if kind != "none":
        note = _add_lesion(rng, tissue, mask, y, x, malignant=kind == "malignant")
        notes.insert(0, note)
        if kind == "benign" and rng.random() < 0.1:
            _add_lesion(rng, tissue, mask, y, x, malignant=False, scale=0.6)
            notes.insert(1, "a second lesion")
    image = _scan(rng, tissue, y)
    return Phantom(image, mask.astype(np.uint8), ", ".join([kind if kind != "none" else "normal", *notes]))


# --- random fields ----------------------------------------------------------------------------------------------------


def _axis_weights(n: int, cells: int) -> np.ndarray:
    """(n, cells + 3): smooth interpolation weights of a coarse grid, rows of unit length so that variance stays 1."""
    position = np.linspace(0, cells, n, dtype=np.float32)[:, None] - (np.arange(cells + 3, dtype=np.float32) - 1)[None]
    weights = np.exp(-0.5 * (position / 0.6) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def _field(rng: np.random.Generator, shape: tuple[int, int], cells_y: float, cells_x: float) -> np.ndarray:
    """Smooth Gaussian random field (H, W), mean 0, variance 1; ``cells`` features per image height along each axis."""
    height, width = shape
    ny, nx = max(1, round(cells_y)), max(1, round(cells_x * width / height))
    grid = rng.standard_normal((ny + 3, nx + 3), dtype=np.float32)
    return _axis_weights(height, ny) @ grid @ _axis_weights(width, nx).T


def _ridges(rng: np.random.Generator, shape: tuple[int, int], cells_y: float, cells_x: float, sharp: float):
    """(H, W) in [0, 1]: thin curved lines, the zero crossings of a smooth field, fading in and out along the way."""
    lines = np.exp(-((_field(rng, shape, cells_y, cells_x) * sharp) ** 2))
    return lines * np.clip(0.45 + 0.5 * _field(rng, shape, 5, 4), 0, 1)


def _streaks(rng: np.random.Generator, shape: tuple[int, int], cells_y: float, cells_x: float) -> np.ndarray:
    """(H, W), mean about 0, skewed to bright: fibres across the beam reflect, those along it do not."""
    texture = _field(rng, shape, cells_y, cells_x)
    return np.clip(texture, -0.8, None) * (0.6 + 0.5 * np.clip(texture, 0, 2)) - 0.35


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Smooth step from 0 (negative distance) to 1, ``softness`` wide."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


# --- tissue -----------------------------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> tuple[_Tissue, list[str]]:
    """Healthy breast with distractors. Built with flat layers, then bent by one smooth displacement."""
    shape = (y.shape[0], y.shape[1])
    fat_end, gland_end = rng.uniform(0.1, 0.4), rng.uniform(0.55, 0.95)
    fat_edge = y - fat_end - rng.uniform(0.01, 0.04) * _field(rng, shape, 1, 4)
    muscle_edge = y - gland_end - 0.01 * _field(rng, shape, 1, 2)

    fat = rng.uniform(-13, -7) + 1.5 * _field(rng, shape, 7, 5) + 2 * _streaks(rng, shape, 30, 5)
    fat += rng.uniform(10, 18) * _ridges(rng, shape, rng.uniform(6, 11), rng.uniform(1.5, 3), rng.uniform(4, 8))
    gland = rng.uniform(-3, 0) + 2.5 * _field(rng, shape, 6, 4) + rng.uniform(1.5, 3) * _field(rng, shape, 30, 12)
    gland += rng.uniform(2, 6) * _streaks(rng, shape, rng.uniform(26, 44), rng.uniform(3, 8))
    gland += rng.uniform(2, 6) * _streaks(rng, shape, rng.uniform(55, 85), rng.uniform(6, 14))
    gland += rng.uniform(3, 9) * _ridges(rng, shape, rng.uniform(9, 18), rng.uniform(2, 5), rng.uniform(2.5, 5))
    gland -= rng.uniform(0, 10) * _step(_field(rng, shape, 10, rng.uniform(3, 8)) - 0.9, 0.3)  # ducts, fat in the gland
    muscle = rng.uniform(-15, -8) + 2 * _field(rng, shape, 6, 3)
    muscle += rng.uniform(3, 7) * _streaks(rng, shape, rng.uniform(24, 40), rng.uniform(1.5, 3))

    strength = fat + (gland - fat) * _step(fat_edge, rng.uniform(0.008, 0.04))
    strength += (muscle - strength) * _step(muscle_edge, 0.01)
    for edge, gain in ((fat_edge, rng.uniform(0, 9)), (muscle_edge, rng.uniform(5, 16))):  # fascia
        strength += gain * np.exp(-((edge / 0.007) ** 2)) * np.clip(_field(rng, shape, 2, 4) + 0.5, 0, 1.3)
    bend = rng.uniform(0.01, 0.035) * _field(rng, shape, 2, 2) + rng.uniform(0.0, 0.012) * _field(rng, shape, 5, 6)
    rows = np.clip(y + bend * _step(y - 0.1, 0.06), 0, 1) * shape[0]
    strength = ndimage.map_coordinates(strength, [rows, x * shape[0]], order=1, mode="nearest")
    attenuation = rng.uniform(3, 20) + rng.uniform(0, 25) * y**2 + 10 * _field(rng, shape, 3, 3)
    tissue = _Tissue(strength, attenuation.astype(np.float32))
    notes = _add_distractors(rng, tissue, y, x, fat_end, gland_end)
    _add_skin(rng, tissue, y)
    return tissue, notes


def _add_skin(rng: np.random.Generator, tissue: _Tissue, y: np.ndarray) -> None:
    thickness = rng.uniform(0.015, 0.04)
    wave = 0.004 * _field(rng, (y.shape[0], y.shape[1]), 1, 3)
    for place, gain in ((0.004, 14), (thickness, 12)):
        tissue.strength += gain * np.exp(-(((y - place - wave) / 0.005) ** 2))
    tissue.strength += 5 * _step(thickness - y, 0.004)


def _add_distractors(
    rng: np.random.Generator, tissue: _Tissue, y: np.ndarray, x: np.ndarray, fat_end: float, gland_end: float
) -> list[str]:
    """Dark things that are no lesions. Returns their names."""
    notes, aspect = [], y.shape[1] / y.shape[0]
    for _ in range(rng.integers(0, 4)):  # fat lobules: as dark as fat, flat, with a bright capsule above and below
        where = _Ellipse.draw(rng, (rng.uniform(0, aspect), rng.uniform(fat_end, 0.7)), rng.uniform(0.03, 0.09), 0.35)
        level = where.level(y, x)
        dark = rng.uniform(-11, -6) + 1.5 * _field(rng, (y.shape[0], y.shape[1]), 10, 8)
        tissue.strength += (dark - tissue.strength) * 0.85 * _step(level, 0.15)
        tissue.strength += 7 * np.exp(-((level / 0.12) ** 2)) * np.abs(where.normal_y(y, x))
        notes = ["fat lobules"]
    if rng.random() < 0.3:  # a vessel or duct: thin and fluid
        where = _Ellipse.draw(rng, (rng.uniform(0, aspect), rng.uniform(0.1, 0.7)), rng.uniform(0.012, 0.03), 0.15)
        tissue.strength -= 18 * _step(where.level(y, x), 0.2)
        notes.append("duct")
    if rng.random() < 0.2:  # ribs: bright curved surface, nothing behind it
        centre, half = rng.uniform(0, aspect), rng.uniform(0.12, 0.3)
        surface = y - rng.uniform(gland_end, 1.0) - 0.6 * (x - centre) ** 2
        inside = _step(half - np.abs(x - centre), 0.02)
        tissue.strength += inside * (14 * np.exp(-((surface / 0.01) ** 2)) - 8 * _step(surface, 0.01))
        tissue.attenuation += inside * 150 * _step(surface, 0.01)
        notes.append("rib shadow")
    if rng.random() < 0.18:  # nipple: shadow from the surface downwards, wider with depth
        centre, half = rng.uniform(0.2, 0.8) * aspect, rng.uniform(0.04, 0.1)
        inside = _step(half * (1 + 0.8 * y) - np.abs(x - centre - rng.uniform(-0.2, 0.2) * y), 0.03)
        tissue.attenuation += inside * rng.uniform(30, 90) * (y < 0.3)
        notes.append("nipple shadow")
    if rng.random() < 0.3:  # poor contact at one side
        side = x if rng.random() < 0.5 else aspect - x
        tissue.attenuation += 150 * _step(rng.uniform(0.02, 0.12) - side, 0.03) * (y < 0.12)
        notes.append("poor contact")
    streaks = np.clip(_field(rng, (1, y.shape[1]), 1, rng.uniform(4, 9)), -1, 3)  # narrow shadows of ligaments
    tissue.attenuation += rng.uniform(0, 25) * streaks * _step(y - fat_end * rng.uniform(0.2, 1), 0.03) * (y < 0.5)
    return notes


# --- lesion -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ellipse:
    """A star-shaped region: an ellipse whose radius is modulated by harmonics of the angle."""

    cx: float
    cy: float
    rx: float
    ry: float
    angle: float
    harmonics: tuple[tuple[int, float, float], ...] = ()
    spicules: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator, centre_xy: tuple[float, float], radius: float, flat: float) -> _Ellipse:
        """``flat``: height over width before rotation. The area is that of a circle of ``radius``."""
        root = float(np.sqrt(flat))
        return cls(centre_xy[0], centre_xy[1], radius / root, radius * root, float(rng.normal(0, 0.18)))

    def _polar(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, s = np.cos(self.angle), np.sin(self.angle)
        u = ((x - self.cx) * c + (y - self.cy) * s) / self.rx
        v = ((y - self.cy) * c - (x - self.cx) * s) / self.ry
        return np.hypot(u, v), np.arctan2(v, u)

    def level(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(H, W): 1 at the centre, 0 on the outline, negative outside; in units of the local radius."""
        radius, theta = self._polar(y, x)
        reach = np.ones_like(theta)
        for k, amplitude, phase in self.harmonics:
            reach += amplitude * np.cos(k * theta + phase)
        for at, amplitude, width in self.spicules:
            reach += amplitude * np.exp((np.cos(theta - at) - 1) / width**2)
        return 1 - radius / np.maximum(reach, 0.25)

    def normal_y(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """How far the outline faces the probe, in [-1, 1]: surfaces across the beam reflect, edges along it do not."""
        return np.sin(self._polar(y, x)[1])


def _draw_lesion(rng: np.random.Generator, aspect: float, malignant: bool, scale: float) -> _Ellipse:
    radius = scale * float(np.clip(rng.lognormal(np.log(0.17 if malignant else 0.125), 0.42), 0.045, 0.33))
    flat = rng.uniform(0.6, 1.35) if malignant else rng.uniform(0.38, 0.85)
    room = min(radius / np.sqrt(flat), 0.45 * aspect)
    top = min(0.08 + radius * np.sqrt(flat), 0.45)
    centre = (rng.uniform(room, max(aspect - room, room + 1e-3)), rng.uniform(top, max(0.62, top + 0.02)))
    base = _Ellipse.draw(rng, centre, radius, flat)
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
    return _Ellipse(base.cx, base.cy, base.rx, base.ry, base.angle, harmonics, spicules)


def _add_lesion(
    rng: np.random.Generator,
    tissue: _Tissue,
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
    inside = _step(level, softness / radius * 0.17)
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
    interior = inner + uneven * (_field(rng, shape, 9, 9) + 0.7 * _field(rng, shape, 26, 18))
    interior += (
        rng.uniform(0, 0.35) * (tissue.strength - tissue.strength.mean()) * (not cyst)
    )  # tissue strands left in it
    if malignant and rng.random() < 0.3:  # microcalcifications
        interior += 22 * (_field(rng, shape, 60, 60) > 2.6)
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


# --- scanner ----------------------------------------------------------------------------------------------------------


def _scan(rng: np.random.Generator, tissue: _Tissue, y: np.ndarray) -> np.ndarray:
    """B-mode image (H, W) uint8 of the tissue: attenuation along the beam, speckle, log compression, grey map."""
    height, width = y.shape
    lost = np.cumsum(tissue.attenuation, axis=0, dtype=np.float32) / height
    lost = ndimage.gaussian_filter1d(lost, 0.012 * height, axis=1)  # a beam is wider than a pixel
    amplitude = (10 ** ((tissue.strength - np.clip(lost, -14, 45)) / 20)).astype(np.float32)
    unit = height / 256  # one pixel of a 256-row image
    axial, lateral = rng.uniform(0.45, 0.8) * unit, rng.uniform(0.7, 1.3) * unit
    looks = int(rng.integers(2, 4))
    envelope = sum(_speckle(rng, amplitude, y, axial, lateral) for _ in range(looks)) / looks
    floor = 10 ** (rng.uniform(-42, -30) / 20) * (0.5 + rng.random((height, width), dtype=np.float32))
    decibel = 20 * np.log10(envelope + floor)
    top, dynamic_range = np.percentile(decibel[:: max(1, height // 128)], 97), rng.uniform(36, 50)
    grey = np.clip((decibel - top) / dynamic_range + 1, 0, 1.35) ** rng.uniform(1.05, 1.7)
    grey = ndimage.gaussian_filter(grey, rng.uniform(0.35, 0.7) * unit)
    image = np.clip(grey * rng.uniform(150, 200), 0, 255)
    if rng.random() < 0.15:  # scanners leave the lowest rows black
        image[int(height * rng.uniform(0.93, 0.99)) :] = 0
    return image.astype(np.uint8)


def _speckle(
    rng: np.random.Generator, amplitude: np.ndarray, y: np.ndarray, axial: float, lateral: float
) -> np.ndarray:
    """Envelope (H, W) of one look. The lateral blur grows from ``lateral`` at the skin to twice that at the bottom."""
    envelope = 0.0
    for _ in range(2):  # real and imaginary part
        part = rng.standard_normal(amplitude.shape, dtype=np.float32) * amplitude
        part = ndimage.gaussian_filter1d(part, axial, axis=0, truncate=3)
        near = ndimage.gaussian_filter1d(part, lateral, axis=1, truncate=3)
        far = ndimage.gaussian_filter1d(part, 2 * lateral, axis=1, truncate=3) * np.float32(1.4)
        envelope = envelope + ((1 - y) * near + y * far) ** 2
    return np.sqrt(envelope)


if __name__ == "__main__":
    from ultrarefiner_monai.data.samples import main

    main()
