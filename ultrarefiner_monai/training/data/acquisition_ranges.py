"""How far the augmentation ``machines`` goes: what other scanners, probes, settings and users make of the same breast."""

from __future__ import annotations

from dataclasses import dataclass

from ultrarefiner_monai.config import MachinesConfig


@dataclass(frozen=True)
class Ranges:
    """Pairs are (lowest, highest) and drawn evenly, those of factors evenly in their logarithm.

    ``*_share`` are shares of the images (0 switches that part off). Lengths are shares of the frame's side where nothing
    else is said; those in pixels are of a 224 frame and grow with the frame. The first three are options of a run
    (``MachinesConfig``); the others are fixed.
    """

    clean_share: float = MachinesConfig.clean_share
    marks_share: float = MachinesConfig.marks_share
    marks_at_lesion: float = MachinesConfig.marks_at_lesion
    # Calipers, text, rulers and logos burned into an image: at most so many.
    marks: int = 4
    # Geometry, one warp. rotate and shear in radians; elastic: largest displacement.
    flip_share: float = 0.5
    warp_share: float = 0.9
    rotate: float = 0.16
    shear: float = 0.08
    shift: float = 0.1
    zoom: tuple[float, float] = (0.6, 1.6)
    aspect: tuple[float, float] = (0.75, 1.33)
    elastic_share: float = 0.25
    elastic: float = 0.015
    # Crops: up to these parts of the picture's height (top: the skin line) and width are cut away.
    crop_share: float = 0.4
    crop_top: float = 0.15
    crop_side: float = 0.2
    crop_bottom: float = 0.25
    # A warp that leaves less of a lesion in the frame is drawn again.
    keep_lesion: float = 0.25
    # Grey map: gain, gamma, dynamic range of the log compression (above 1: more black), curve: how uneven.
    grey_share: float = 0.7
    gain: tuple[float, float] = (0.7, 1.4)
    gamma: tuple[float, float] = (0.65, 1.6)
    dynamic_range: tuple[float, float] = (0.8, 1.35)
    curve: float = 0.35
    # Gain over depth (time-gain curve) and from left to right: standard deviation of the logarithm at the knots.
    gain_share: float = 0.5
    depth_gain: float = 0.3
    lateral_gain: float = 0.12
    # Speckle: contrast and size of the grain, in pixels.
    speckle_share: float = 0.35
    speckle: tuple[float, float] = (0.08, 0.3)
    speckle_axial: tuple[float, float] = (1.0, 2.5)
    speckle_lateral: tuple[float, float] = (1.5, 5.0)
    # Blurred (standard deviation in pixels), sharpened (amount), or sampled more coarsely (smallest scale).
    resolution_share: float = 0.5
    blur_axial: float = 1.1
    blur_lateral: float = 1.9
    sharpen: float = 1.5
    coarsest: float = 0.45
    # Noise that grows with depth: standard deviation at the bottom.
    noise_share: float = 0.3
    noise: float = 0.1
    # Shadows, enhancement behind something, poor contact at the borders; shadow: what is left of the brightness.
    shadow_share: float = 0.4
    shadows: int = 3
    shadow: tuple[float, float] = (0.15, 0.75)
    # JPEG.
    compression_share: float = 0.15
    quality: tuple[float, float] = (15.0, 60.0)


def ranges(config: MachinesConfig) -> Ranges:
    """With a run's options."""
    return Ranges(**vars(config))
