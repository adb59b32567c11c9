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

from ultrarefiner_monai.datasets.phantom_lesions import add_lesion
from ultrarefiner_monai.datasets.phantom_tissue import Tissue, background

LesionKind = Literal["random", "none", "benign", "malignant"]
KINDS: tuple[str, ...] = ("random", "none", "benign", "malignant")


@dataclass(frozen=True)
class Phantom:
    """image: (H, W) uint8. mask: (H, W) uint8, 0 or 1, all zero without a lesion. description: a few words."""

    image: np.ndarray
    mask: np.ndarray
    description: str


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
    tissue, notes = background(rng, y, x)
    mask = np.zeros((height, width), bool)
    if kind != "none":
        note = add_lesion(rng, tissue, mask, y, x, malignant=kind == "malignant")
        notes.insert(0, note)
        if kind == "benign" and rng.random() < 0.1:
            add_lesion(rng, tissue, mask, y, x, malignant=False, scale=0.6)
            notes.insert(1, "a second lesion")
    image = _scan(rng, tissue, y)
    return Phantom(image, mask.astype(np.uint8), ", ".join([kind if kind != "none" else "normal", *notes]))


# --- scanner ----------------------------------------------------------------------------------------------------------


def _scan(rng: np.random.Generator, tissue: Tissue, y: np.ndarray) -> np.ndarray:
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
