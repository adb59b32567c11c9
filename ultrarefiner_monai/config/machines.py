"""What augmentation makes of images: other scanners, probes, settings and users (``data.augment: machines``)."""

from __future__ import annotations

from dataclasses import dataclass

from .reading import check_ranges


@dataclass(frozen=True)
class MachinesConfig:
    """Augmentation ``machines``: what other scanners, probes, settings and users make of the same breast.

    For images of hospitals that are not among the data (as BigAug does for MRI: Zhang et al., Generalizing deep learning
    for medical image segmentation to unseen domains via deep stacked transformation, IEEE TMI 2020). How far each change
    goes is fixed in ``training/data/acquisition_ranges.py``.
    """

    # Images whose grey values stay as they are; they are moved, zoomed and cropped like all others.
    clean_share: float = 0.15
    # Images with calipers, text, rulers or logos; of the calipers, the share that stands at a lesion's ends.
    marks_share: float = 0.5
    marks_at_lesion: float = 0.3

    def __post_init__(self) -> None:
        check_ranges(self, "data.machines", shares=tuple(vars(self)))
