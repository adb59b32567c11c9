"""What augmentation makes of images: other scanners, probes, settings and users (``data.augment: machines``)."""

from __future__ import annotations

from dataclasses import dataclass

from .reading import check_ranges, require


@dataclass(frozen=True)
class MachinesConfig:
    """Augmentation ``machines``: what other scanners, probes, settings and users make of the same breast.

    Pairs are (lowest, highest) and drawn evenly, those of factors evenly in their logarithm. ``*_share`` are shares of
    the images (0 switches that part off). Lengths are shares of the frame's side where nothing else is said; those in
    pixels are of a 224 frame and grow with the frame.
    """

    # Images whose grey values stay as they are; they are moved, zoomed and cropped like all others.
    clean_share: float = 0.15
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
    # Calipers, text, rulers, logos; at_lesion: share of the calipers that stand at a lesion's ends, where there is one.
    marks_share: float = 0.5
    marks: int = 4
    marks_at_lesion: float = 0.3

    def __post_init__(self) -> None:
        shares = [name for name in vars(self) if name.endswith("_share")]
        amounts = ("rotate", "shear", "elastic", "curve", "depth_gain", "lateral_gain")
        more = ("blur_axial", "blur_lateral", "sharpen", "noise")
        check_ranges(
            self,
            "data.machines",
            shares=(*shares, "shift", "keep_lesion", "marks_at_lesion"),
            not_negative=(*amounts, *more),
            positive=("coarsest",),
            at_least_one=("shadows", "marks"),
        )
        for name in ("crop_top", "crop_side", "crop_bottom"):
            value = getattr(self, name)
            require(0 <= value <= 0.45, f"data.machines.{name} must be in [0, 0.45], got {value}")
        require(self.coarsest <= 1, f"data.machines.coarsest must be at most 1, got {self.coarsest}")
        for name, pair in vars(self).items():
            if isinstance(pair, tuple):
                good = len(pair) == 2 and 0 < pair[0] <= pair[1]
                require(good, f"data.machines.{name}: two positive numbers, lowest and highest, got {pair}")
        require(self.quality[1] <= 95, f"data.machines.quality: at most 95, got {self.quality}")
