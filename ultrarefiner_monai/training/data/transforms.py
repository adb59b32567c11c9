"""The one preprocessing, for training and for serving, and the augmentation of images.

``to_square`` is the letterbox that the server applies as well; the dictionary transforms only hold keys. Augmentation is made of
MONAI's random transforms, each drawing from its own generator.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    AsDiscreted,
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCoarseDropoutd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandGridDistortiond,
    RandScaleIntensityd,
    ThresholdIntensityd,
    ToTensord,
)

from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.training.data.acquisition import machine_steps
from ultrarefiner_monai.training.data.acquisition_ranges import Ranges
from ultrarefiner_monai.training.data.echogenicity import RandEchogenicityd

IMAGE, LABEL, ID = "image", "label", "id"


def to_square(image: np.ndarray, size: int) -> torch.Tensor:
    """(H, W) float32 in [0, 1], image frame -> (1, size, size) in [0, 1], letterboxed."""
    tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    return Letterbox(image.shape[0], image.shape[1], size).apply(tensor)[0]


class LoadPaird(MapTransform):
    """{"image": path, "label": path} -> image (H, W) float32 in [0, 1], label (H, W) float32 of 0 and 1.

    Arrays in place of paths (phantoms) pass through. Raises InputError when a mask's size is not its image's.
    """

    def __init__(self) -> None:
        super().__init__([IMAGE, LABEL])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        if isinstance(out[IMAGE], (str, Path)):
            out[IMAGE] = read_image_file(out[IMAGE]).frame(0)
        if isinstance(out[LABEL], (str, Path)):
            out[LABEL] = read_mask(out[LABEL])[0].astype(np.float32)
        if out[IMAGE].shape != out[LABEL].shape:
            raise InputError(
                f"{data[LABEL]} is {out[LABEL].shape[::-1]} pixels, its image {data[IMAGE]} is {out[IMAGE].shape[::-1]}"
            )
        return out


class LetterboxPaird(MapTransform):
    """Image and label (H, W) -> (1, size, size) each; the label is thresholded at one half again."""

    def __init__(self, size: int) -> None:
        super().__init__([IMAGE, LABEL])
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        out[IMAGE] = to_square(out[IMAGE], self.size)
        out[LABEL] = (to_square(out[LABEL], self.size) >= 0.5).float()
        return out


def preparation(size: int) -> Compose:
    """The deterministic part: what training caches and what serving computes."""
    return Compose([LoadPaird(), LetterboxPaird(size)])


@dataclass(frozen=True)
class Strength:
    """How far the augmentation goes. Angles in radians, lengths in pixels of a 224 frame, the rest in shares."""

    rotate: float
    shear: float
    translate: float
    scale: float
    distort: float
    gamma: tuple[float, float]
    gain: float
    blur: float
    noise: float
    holes: float


STRENGTHS = {
    "standard": Strength(0.26, 0.1, 22, 0.25, 0.0, (0.6, 1.6), 0.25, 1.2, 0.04, 0.0),
    # For long runs on few images, which otherwise learn them by heart.
    "strong": Strength(0.35, 0.15, 30, 0.35, 0.3, (0.5, 2.0), 0.35, 1.8, 0.06, 0.3),
}


MACHINES = "machines"


def augmentation(
    name: str = "standard",
    size: int = 224,
    soft_label: bool = False,
    echogenicity: float = 0.0,
    machines: Ranges | None = None,
) -> Compose:
    """Changes that a breast-ultrasound image may go through and stay one: no vertical flip (depth has a meaning).

    soft_label: the label's interpolated edges stay, and it may have several channels (a proposal beside the label).
    echogenicity: the probability that a lesion becomes as bright as another kind would be.
    ``strong`` adds grid distortion, an uneven gain as of a badly set time-gain curve, and dark patches as of shadows.
    ``machines`` is made for other scanners and settings (``acquisition``); its parameters are in ``machines``.
    """
    if name not in (*STRENGTHS, MACHINES):
        raise ValueError(f"augmentation must be one of {', '.join((*STRENGTHS, MACHINES))}, got {name!r}")
    steps: list[Callable] = []
    if echogenicity:
        steps.append(RandEchogenicityd(IMAGE, LABEL, prob=echogenicity))
    if name == MACHINES:
        steps += machine_steps(machines or Ranges(), IMAGE, LABEL)
    else:
        steps += _steps(STRENGTHS[name], size)
    if not soft_label:
        # Interpolated edges: phase 1's losses take labels of 0 and 1 and would cut every fraction down to 0.
        steps.append(AsDiscreted([LABEL], threshold=0.5))
    steps.append(ToTensord([IMAGE, LABEL], track_meta=False))
    return Compose(steps)


def _steps(s: Strength, size: int) -> list[Callable]:
    both, bilinear = [IMAGE, LABEL], ("bilinear", "bilinear")
    shift = s.translate * size / 224
    steps: list[Callable] = [
        RandFlipd(both, prob=0.5, spatial_axis=1),
        RandAffined(
            both,
            prob=0.8,
            rotate_range=s.rotate,
            shear_range=(s.shear, s.shear),
            translate_range=(shift, shift),
            scale_range=(s.scale, s.scale),
            mode=bilinear,
            padding_mode="zeros",
        ),
    ]
    if s.distort:
        steps += [
            RandGridDistortiond(
                both, num_cells=4, prob=s.distort, distort_limit=0.15, mode=bilinear, padding_mode="zeros"
            ),
            RandBiasFieldd([IMAGE], degree=2, coeff_range=(0.0, 0.2), prob=0.3),
        ]
    steps += [
        RandAdjustContrastd([IMAGE], prob=0.5, gamma=s.gamma),
        RandScaleIntensityd([IMAGE], prob=0.5, factors=s.gain),
        RandGaussianSmoothd([IMAGE], prob=0.15, sigma_x=(0.3, s.blur), sigma_y=(0.3, s.blur)),
        RandGaussianNoised([IMAGE], prob=0.2, std=s.noise),
    ]
    if s.holes:
        patch = size // 6
        steps.append(
            RandCoarseDropoutd(
                [IMAGE],
                holes=1,
                max_holes=3,
                spatial_size=patch // 2,
                max_spatial_size=patch,
                fill_value=0,
                prob=s.holes,
            )
        )
    steps += [
        ThresholdIntensityd([IMAGE], threshold=0.0, above=True, cval=0.0),
        ThresholdIntensityd([IMAGE], threshold=1.0, above=False, cval=1.0),
    ]
    return steps
