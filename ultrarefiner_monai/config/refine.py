"""What a refiner learns from and is asked for: coarse masks, clicks and losses of phases 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .lora import LoraConfig
from .reading import check_ranges, require

NESTED = "nested"  # refine.proposals: made by the run itself

TWELVE_KINDS: dict[str, float] = {
    "identity": 0.15,
    "over": 0.17,
    "giant": 0.10,
    "under": 0.17,
    "chunk": 0.12,
    "holes": 0.10,
    "bridge": 0.10,
    "islands": 0.17,
    "fragments": 0.10,
    "shift": 0.10,
    "empty": 0.04,
    "noise": 0.03,
}


@dataclass(frozen=True)
class CorruptionConfig:
    """How labels are turned into simulated coarse masks (the method, and figures of it, in docs/research/corruption.md).

    The defaults are what the shipped networks learnt from; change them when the errors of another coarse network are of
    another kind (``ultrarefiner corrupt`` draws what comes out).

    share_twelve: share of masks that get one of the twelve kinds, drawn by the weights in ``kinds``; the others are
    changed in the signed-distance domain until their Dice stands in one of ``bands`` (easy to hard), which are drawn by
    ``band_weights``. Lengths in pixels are those of a 224 frame and grow with the frame; ``correlation`` (of the random
    field) is in lesion radii. vanish_share: how many lesions smaller than ``vanish_radius`` are lost altogether in the
    signed-distance domain. empty_islands: share of lesion-free masks that get false-positive islands.
    """

    share_twelve: float = 0.25
    kinds: dict[str, float] = field(default_factory=lambda: dict(TWELVE_KINDS))
    bands: tuple[tuple[float, float], ...] = ((0.90, 0.99), (0.80, 0.90), (0.60, 0.80))
    band_weights: tuple[float, ...] = (0.25, 0.40, 0.35)
    soften_twelve: float = 0.5
    soften_sdf: float = 1.0
    temperature: tuple[float, float] = (2.0, 8.0)
    roughness_share: float = 0.5
    roughness: tuple[float, float] = (1.0, 5.0)
    correlation: tuple[float, float] = (0.15, 0.8)
    vanish_share: float = 0.1
    vanish_radius: float = 8.0
    empty_islands: float = 0.3

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "corruption",
            shares=("share_twelve", "soften_twelve", "soften_sdf", "roughness_share", "vanish_share", "empty_islands"),
            not_negative=("vanish_radius",),
        )
        unknown = sorted(set(self.kinds) - set(TWELVE_KINDS))
        require(not unknown, f"corruption.kinds: no kind {', '.join(unknown)}; known: {', '.join(TWELVE_KINDS)}")
        require(
            all(w >= 0 for w in self.kinds.values()) and sum(self.kinds.values()) > 0,
            "corruption.kinds: weights must not be negative and not all 0",
        )
        require(
            len(self.bands) >= 1 and all(len(b) == 2 and 0 < b[0] < b[1] <= 1 for b in self.bands),
            f"corruption.bands: pairs 0 < lowest < highest <= 1 of Dice, got {self.bands}",
        )
        require(
            len(self.band_weights) == len(self.bands) and min(self.band_weights) >= 0 and sum(self.band_weights) > 0,
            f"corruption.band_weights: one weight for each of the {len(self.bands)} bands, got {self.band_weights}",
        )
        for name in ("temperature", "roughness", "correlation"):
            low_high = getattr(self, name)
            require(
                len(low_high) == 2 and 0 < low_high[0] <= low_high[1],
                f"corruption.{name}: two positive numbers, lowest and highest, got {low_high}",
            )


@dataclass(frozen=True)
class RefineConfig:
    """Phase 2 (and the refiner's part of phase 3): what the refiner sees and what it is asked for.

    Each item's coarse mask is a recorded correction's proposal where there is one, else a corrupted label with
    probability ``corrupted_share``, else a real prediction from ``proposals`` (``ultrarefiner proposals`` makes them).
    """

    # Which parts learn. ``neck``, ``deep``: of the compact preset's CNN encoder, what follows the stem and the stem from
    # stride 16 on (deep needs neck); ``encoder``: the whole image encoder.
    train: tuple[Literal["prompt_encoder", "mask_decoder", "neck", "deep", "encoder"], ...] = (
        "prompt_encoder",
        "mask_decoder",
    )
    # Low-rank adapters in the image encoder, which stands still otherwise; null: none. What they learnt is merged into the
    # result, and written beside it (adapter.safetensors). With train: [] they alone learn, and the file is all that changed.
    lora: LoraConfig | None = None
    # Start of the SAM half: none, a SAM file, one of our checkpoints, or stem (the CNN stem of ``init``'s coarse network).
    # For sam.arch sam3: SAM 3's file (sam3.pt, or model.safetensors of facebook/sam3).
    sam_init: str = "none"
    # For sam.arch sam3, whose own decoder is another thing: a SAM file that prompt encoder and mask decoder start from.
    decoder_init: str = "none"
    corrupted_share: float = 0.7
    # A folder ({fold} in its name stands for the fold held out), or several with commas: each time one of an image's
    # predictions is drawn. Or nested: `train all` and `cv` make them first, with nested_parts coarse networks that each
    # leave a part of the training images out (cross-fitting, as in stacking: Wolpert 1992).
    proposals: str = ""
    nested_parts: int = 2
    # A server's work folder: what its users corrected is learnt from too, always with the proposal that they saw.
    corrections: str = ""
    # Fixed copies of each image: the image itself, then augmented ones. Their embeddings are computed once and kept.
    variants: int = 1
    cache: Literal["ram", "disk", "off"] = "ram"
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    # From easy to hard coarse masks over the first half of the run (Bengio et al., Curriculum learning, ICML 2009). For a
    # refiner that starts from nothing and diverges, or copies its mask prompt; not for one that goes on from weights.
    curriculum: bool = False
    # Share of the lesion images that are refined with clicks, up to max_clicks each, placed on the largest error of what
    # stands then (iterative sampling: RITM, Sofiiuk et al. 2022; SAM, Kirillov et al. 2023).
    click_share: float = 0.5
    max_clicks: int = 8
    # The clicks of an image are placed in so many rounds, each on the result of the rounds before.
    click_rounds: int = 3
    # Of the clicks, the share that says the wrong thing, as users' do; of the images with clicks, the share with a roughly
    # drawn box (SAM jitters its boxes likewise), half of those with the box alone.
    click_mistakes: float = 0.05
    box_share: float = 0.15
    # Share of those whose coarse mask is made to overlook the lesion, half of them with a false alarm elsewhere.
    missed_share: float = 0.25
    # Phase 2: the share of those refined without clicks. So the refiner learns to find a lesion by itself.
    overlooked_share: float = 0.0
    # Loss: BCE + Dice + focal_weight Focal + penalty_weight change + iou_weight IoU-MSE. Focal (Lin et al., ICCV 2017), Dice
    # and the MSE of the predicted IoU are SAM's (Kirillov et al. 2023). The change penalty is what a refiner pays for
    # changing what was good: quality, for a coarse network that is good on most images (by the coarse mask's Dice, from .6
    # on); agreement, for one that is right in most places (where coarse mask and label agree; penalty_weight .5); none, when
    # the refiner is to find what the coarse network misses.
    focal_weight: float = 0.5
    iou_weight: float = 0.1
    penalty: Literal["quality", "agreement", "none"] = "quality"
    penalty_weight: float = 0.1
    # The first of the two passes with clicks counts so much beside the second: every round of an interaction is learnt
    # from, as SAM does.
    first_pass_weight: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "refine",
            shares=(
                "corrupted_share",
                "click_share",
                "click_mistakes",
                "box_share",
                "missed_share",
                "overlooked_share",
            ),
            not_negative=("focal_weight", "iou_weight", "penalty_weight", "first_pass_weight"),
        )
        counts = self.variants, self.max_clicks, self.click_rounds
        require(min(counts) >= 1, "refine.variants, refine.max_clicks and refine.click_rounds must be at least 1")
        require(self.nested_parts >= 2, f"refine.nested_parts must be at least 2, got {self.nested_parts}")
        over = {"neck", "encoder"} & set(self.train)
        require("deep" not in self.train or bool(over), "refine.train: deep needs neck, which follows it")
        require(
            ("encoder" not in self.train and self.lora is None) or self.cache == "off",
            "refine.cache must be off when refine.train names the encoder, or with refine.lora: its output changes with every "
            "step",
        )
        require(
            self.lora is None or not {"encoder", "neck", "deep"} & set(self.train),
            "refine.lora adapts an image encoder that stands still: refine.train must not name encoder, neck or deep",
        )


@dataclass(frozen=True)
class PointsConfig:
    """Phase ppn: mask_weight (Dice + Focal of both passes) + place_weight SmoothL1 of the places + label_weight BCE of the labels.

    Places and labels are compared with points drawn from the label, matched one to one (Hungarian, as DETR does with boxes,
    Carion et al., ECCV 2020): ``inside`` of them in the lesion's depth, the others just beside its border, within ``margin``
    (a share of the frame's side). On an image without a lesion the labels alone are learnt: background, all of them.
    """

    inside: int = 4
    margin: float = 0.06
    mask_weight: float = 1.0
    place_weight: float = 5.0
    label_weight: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "points",
            at_least_one=("inside",),
            positive=("margin",),
            not_negative=("mask_weight", "place_weight", "label_weight"),
        )


@dataclass(frozen=True)
class JointConfig:
    """Phase 3: coarse_weight (phase 1's loss) + refined_weight (BCE + Dice at the sam frame) + the weight anchor.

    All but the two weights protects the coarse network, which has to stay good by itself: clicks and the safety net start
    from it. A fall of its Dice below where joint training began is said loudly.
    """

    coarse_weight: float = 0.3
    refined_weight: float = 0.7
    # The refined loss's gradient reaches the coarse network scaled by this; its own loss's gradient is not scaled.
    coarse_grad_scale: float = 0.1
    # anchor * sum over the coarse network's weights of (w - w_0)^2 (L2-SP, Li et al., ICML 2018): more where it forgets.
    anchor: float = 0.01
    # Learning rate of the coarse network as a factor of optimiser.lr.
    coarse_lr_factor: float = 1.0
    # For the first N epochs the coarse network, or the refiner (all of it, or all but its heads), stands still (gradual
    # unfreezing: ULMFiT, Howard and Ruder, ACL 2018). The refiner first, when phase 3 starts from a SAM that was not
    # fine-tuned and the coarse network has to adapt to it; the coarse network first, when the refiner is new.
    freeze_coarse_epochs: int = 0
    freeze_refiner_epochs: int = 0
    freeze_refiner: Literal["all", "all_but_heads"] = "all"

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "joint",
            not_negative=(
                "coarse_weight",
                "refined_weight",
                "coarse_grad_scale",
                "anchor",
                "coarse_lr_factor",
                "freeze_coarse_epochs",
                "freeze_refiner_epochs",
            ),
        )
