"""Learning an image encoder from boxes alone."""

from __future__ import annotations

from dataclasses import dataclass

from .reading import check_ranges, require


@dataclass(frozen=True)
class WeakConfig:
    """Phase weak_encoder: an image encoder learns from two boxes around each lesion, a big and a small one, without masks.

    A teacher, the running mean of the encoder, is prompted with points between the boxes; where its mask is sure, features of the
    lesion are pulled together and pushed away from those that the boxes rule out (InfoNCE, van den Oord et al. 2018; the mean
    teacher, Tarvainen and Valpola, NeurIPS 2017).
    """

    # The CSV file of boxes (`ultrarefiner boxes` makes one from masks).
    boxes: str = ""
    # Foreground points, drawn between the boxes, that the teacher is prompted with.
    points: int = 10
    # A mask is trusted whose entropy (nats, mean over the image) is no more than this.
    most_entropy: float = 0.2
    # The teacher keeps this share of itself in each step.
    momentum: float = 0.999
    # Width of the space in which features are compared, and InfoNCE's temperature.
    width: int = 64
    temperature: float = 0.1
    # Places that are compared in each image: of the lesion, and of each kind that is none.
    anchors: int = 256
    negatives: int = 512
    # total = mask + contrast_weight contrast + iou_weight IoU + distillation_weight distillation; mask and IoU only show how
    # it goes, they have no gradient.
    contrast_weight: float = 1.0
    iou_weight: float = 0.5
    distillation_weight: float = 0.1
    # Only so many of the encoder's last blocks learn, with what follows them; null: all of it.
    last_blocks: int | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "weak",
            positive=("most_entropy", "temperature"),
            not_negative=("contrast_weight", "iou_weight", "distillation_weight"),
            at_least_one=("points", "width", "anchors", "negatives", "last_blocks"),
        )
        require(0 <= self.momentum < 1, f"weak.momentum must be in [0, 1), got {self.momentum}")
