"""A training run: data, what is corrupted, what is learnt, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .machines import MachinesConfig
from .reading import check_ranges, require
from .system import SystemConfig


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimiser and learning-rate schedule, stepped per iteration."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    pretrained_lr_factor: float = 1.0
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    poly_power: float = 0.9
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "optimiser",
            shares=("pretrained_lr_factor",),
            not_negative=("weight_decay", "warmup_epochs"),
            positive=("lr", "clip_norm"),
            at_least_one=("accumulate",),
        )


@dataclass(frozen=True)
class CoarseLossConfig:
    """ce_weight CE + (1 - ce_weight) Dice + presence_weight BCE of the presence logit.

    presence_smoothing: the presence logit's targets are this far from 0 and 1, so that it cannot wipe out a whole lesion
    that it does not see. normal_weight: what an image without a lesion counts for; with 1 a network that has seen few
    lesions of a kind is sure that there is nothing, with less it keeps a doubt that the calibration can weigh.
    """

    ce_weight: float = 0.5
    presence_weight: float = 0.1
    presence_smoothing: float = 0.0
    normal_weight: float = 1.0
    # Phase 1: checkpoints whose mean prediction is learnt beside the labels, and what it counts for beside them.
    teachers: tuple[str, ...] = ()
    teacher_weight: float = 1.0

    def __post_init__(self) -> None:
        weights = ("presence_weight", "normal_weight", "teacher_weight")
        check_ranges(self, "loss", shares=("ce_weight",), not_negative=weights)
        require(0 <= self.presence_smoothing < 0.5, "loss.presence_smoothing must be in [0, 0.5)")


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
    """How labels are turned into simulated coarse masks (system.md section 5, docs/corruption.md).

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
class DataConfig:
    """What a run is trained on, beside the fold given on the command line."""

    select_share: float = 0.15
    # Draws the selection images; null: the run's seed does. Runs of several seeds that go on from one another, or are
    # compared or averaged, need the same.
    select_seed: int | None = None
    # Share of lesion-free images among the training images; null: as many as there are.
    normal_share: float | None = None
    phantoms: int = 0
    augment: Literal["none", "standard", "strong", "machines"] = "standard"
    # Share of the lesions that are made darker or brighter than they are, to iso- and hyperechoic; they are rare.
    echogenicity: float = 0.0
    # Phase 1: share of the batches whose images swap rectangles with each other (CutMix), labels with them.
    cutmix: float = 0.0
    workers: int = 0
    # How far small sets, and in each its rare scanners, are shown more often: a share of an epoch goes with
    # n^(1 - balance). 0: every image equally often, 1: every set, and in it every scanner.
    balance: float = 0.0
    # augment: machines.
    machines: MachinesConfig = field(default_factory=MachinesConfig)
    # Lesion-free crops of lesion images among the training images, as a share of the lesion images.
    tissue: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "data", not_negative=("phantoms", "workers", "tissue"))
        require(0 < self.select_share < 1, "data.select_share must be between 0 and 1")
        require(self.normal_share is None or 0 <= self.normal_share < 1, "data.normal_share must be in [0, 1)")
        require(0 <= self.echogenicity <= 1, "data.echogenicity must be in [0, 1]")
        require(
            not self.echogenicity or self.augment != "none",
            "data.echogenicity needs data.augment: standard, strong or machines",
        )
        require(0 <= self.cutmix <= 1, "data.cutmix must be in [0, 1]")
        require(0 <= self.balance <= 1, "data.balance must be in [0, 1]")


@dataclass(frozen=True)
class RefineConfig:
    """Phase 2 (and the refiner's part of phase 3): what the refiner sees and what it is asked for; system.md 3 and 4.

    Each item's coarse mask is a recorded correction's proposal where there is one, else a corrupted label with
    probability ``corrupted_share``, else a real prediction from ``proposals`` (``ultrarefiner proposals`` makes them).
    """

    # Which parts learn. ``neck``, ``deep``: of the compact preset's CNN encoder, what follows the stem and the stem from
    # stride 16 on (deep needs neck); ``encoder``: the whole image encoder.
    train: tuple[Literal["prompt_encoder", "mask_decoder", "neck", "deep", "encoder"], ...] = (
        "prompt_encoder",
        "mask_decoder",
    )
    # Start of the SAM half: none, a SAM file, one of our checkpoints, or stem (the CNN stem of ``init``'s coarse network).
    sam_init: str = "none"
    corrupted_share: float = 0.7
    # A folder ({fold} in its name stands for the fold held out), or several with commas: each time one of an image's
    # predictions is drawn. Or nested: `train all` and `cv` make them first, with nested_parts coarse networks that each
    # leave a part of the training images out.
    proposals: str = ""
    nested_parts: int = 2
    corrections: str = ""
    # Fixed copies of each image: the image itself, then augmented ones. Their embeddings are computed once and kept.
    variants: int = 1
    cache: Literal["ram", "disk", "off"] = "ram"
    cache_gb: float = 8.0
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    # From easy to hard coarse masks over the first half of the run.
    curriculum: bool = False
    # Share of the lesion images that are refined with clicks, and how those are given.
    click_share: float = 0.5
    max_clicks: int = 8
    # The clicks of an image are placed in so many rounds, each on the result of the rounds before.
    click_rounds: int = 3
    click_mistakes: float = 0.05
    box_share: float = 0.15
    # Share of those whose coarse mask is made to overlook the lesion, half of them with a false alarm elsewhere.
    missed_share: float = 0.25
    # Phase 2: the share of those refined without clicks. So the refiner learns to find a lesion by itself.
    overlooked_share: float = 0.0
    # Loss: BCE + Dice + focal_weight Focal + penalty_weight change + iou_weight IoU-MSE.
    focal_weight: float = 0.5
    iou_weight: float = 0.1
    penalty: Literal["quality", "agreement", "none"] = "quality"
    penalty_weight: float = 0.1
    # The first of the two passes with clicks counts so much beside the second.
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
        require(bool(self.train), "refine.train must name at least one part")
        over = {"neck", "encoder"} & set(self.train)
        require("deep" not in self.train or bool(over), "refine.train: deep needs neck, which follows it")
        require(
            "encoder" not in self.train or self.cache == "off",
            "refine.cache must be off when refine.train names the encoder: its output changes with every step",
        )


@dataclass(frozen=True)
class JointConfig:
    """Phase 3: coarse_weight (phase 1's loss) + refined_weight (BCE + Dice at the sam frame) + the weight anchor."""

    coarse_weight: float = 0.3
    refined_weight: float = 0.7
    # The refined loss's gradient reaches the coarse network scaled by this; its own loss's gradient is not scaled.
    coarse_grad_scale: float = 0.1
    # anchor * sum over the coarse network's weights of (w - w_0)^2.
    anchor: float = 0.01
    # Learning rate of the coarse network as a factor of optimiser.lr.
    coarse_lr_factor: float = 1.0
    # For the first N epochs the coarse network, or the refiner (all of it, or all but its heads), stands still.
    freeze_coarse_epochs: int = 0
    freeze_refiner_epochs: int = 0
    freeze_refiner: Literal["all", "all_but_heads"] = "all"
    # Said loudly when the coarse Dice on the selection images falls by more than this below where it began.
    warn_drop: float = 0.02

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
                "warn_drop",
                "freeze_coarse_epochs",
                "freeze_refiner_epochs",
            ),
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    phase: Literal["phase1_coarse", "phase2_refiner", "phase3_joint"] = "phase1_coarse"
    system: SystemConfig = field(default_factory=SystemConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: CoarseLossConfig = field(default_factory=CoarseLossConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    epochs: int = 150
    batch_size: int = 24
    # none, imagenet (the compact preset's stem), or a path: R50+ViT-B_16.npz, a TransUNet .pth, one of our checkpoints.
    init: str = "none"
    # Exponential moving average of the weights, moved by this share each step, validated and kept; null: none.
    ema: float | None = None
    early_stop: int | None = None
    # Which epoch leaves the run: the best by the selection images, or the last. A schedule that ends at 0 with averaged
    # weights is best kept to its end when the selection images are few.
    keep: Literal["best", "last"] = "best"
    # auto: bf16 on a GPU, off on a CPU.
    amp: Literal["off", "bf16", "fp16", "auto"] = "off"
    seed: int = 0
    # Where figures and overlays go besides history.csv and the run's own overlays/. mlflow_uri: where MLflow keeps them;
    # empty: mlflow.db (SQLite) in the folder that holds the run's folder, runs/mlflow.db for a run in runs/NAME.
    tracking: Literal["none", "tensorboard", "mlflow", "both"] = "tensorboard"
    mlflow_uri: str = ""
    # Pictures of this many selection images, each so many epochs; 0: none.
    overlays: int = 4
    overlay_every: int = 5
    # The selection images are looked at, and the state is kept, every so many epochs and after the last one.
    validate_every: int = 1
    # Whether the run's end chooses the post-processing on the selection images. Without it the result has the start's: for
    # networks that are only a step on the way.
    calibrate: bool = True

    @property
    def select_seed(self) -> int:
        """What draws the selection images."""
        return self.seed if self.data.select_seed is None else self.data.select_seed

    def __post_init__(self) -> None:
        check_ranges(
            self,
            not_negative=("overlays",),
            at_least_one=("epochs", "overlay_every", "validate_every", "batch_size", "early_stop"),
        )
        require(self.ema is None or 0 < self.ema < 1, "ema must be between 0 and 1, or null")
        require(
            self.init != "imagenet" or self.system.coarse.arch == "compact",
            "init: imagenet is for system.coarse.arch: compact; r50_vit_b16 starts from the path of its .npz",
        )
        require(
            self.phase == "phase1_coarse" or self.system.sam is not None,
            f"{self.phase} trains a refiner: system.sam must say which",
        )
