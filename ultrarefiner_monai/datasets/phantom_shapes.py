"""What phantoms are made of: smooth random textures and star-shaped regions. Lengths are shares of the image's height."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def _axis_weights(n: int, cells: int) -> np.ndarray:
    """(n, cells + 3): smooth interpolation weights of a coarse grid, rows of unit length so that variance stays 1."""
    position = np.linspace(0, cells, n, dtype=np.float32)[:, None] - (np.arange(cells + 3, dtype=np.float32) - 1)[None]
    weights = np.exp(-0.5 * (position / 0.6) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells_y: float, cells_x: float) -> np.ndarray:
    """Smooth Gaussian random field (H, W), mean 0, variance 1; ``cells`` features per image height along each axis."""
    height, width = shape
    ny, nx = max(1, round(cells_y)), max(1, round(cells_x * width / height))
    grid = rng.standard_normal((ny + 3, nx + 3), dtype=np.float32)
    return _axis_weights(height, ny) @ grid @ _axis_weights(width, nx).T


def ridges(
    rng: np.random.Generator, shape: tuple[int, int], cells_y: float, cells_x: float, sharp: float
) -> np.ndarray:
    """(H, W) in [0, 1]: thin curved lines, the zero crossings of a smooth field, fading in and out along the way."""
    lines = np.exp(-((smooth_field(rng, shape, cells_y, cells_x) * sharp) ** 2))
    return lines * np.clip(0.45 + 0.5 * smooth_field(rng, shape, 5, 4), 0, 1)


def streaks(rng: np.random.Generator, shape: tuple[int, int], cells_y: float, cells_x: float) -> np.ndarray:
    """(H, W), mean about 0, skewed to bright: fibres across the beam reflect, those along it do not."""
    texture = smooth_field(rng, shape, cells_y, cells_x)
    return np.clip(texture, -0.8, None) * (0.6 + 0.5 * np.clip(texture, 0, 2)) - 0.35


def smooth_step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Smooth step from 0 (negative distance) to 1, ``softness`` wide."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


@dataclass(frozen=True)
class Region:
    """A star-shaped region: an ellipse whose radius is modulated by harmonics of the angle."""

    cx: float
    cy: float
    rx: float
    ry: float
    angle: float
    harmonics: tuple[tuple[int, float, float], ...] = ()
    spicules: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator, centre_xy: tuple[float, float], radius: float, flat: float) -> Region:
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
