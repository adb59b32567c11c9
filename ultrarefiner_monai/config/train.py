"""A training run: its data, networks and losses, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .machines import MachinesConfig
from .reading import check_ranges, require
from .refine import JointConfig, PointsConfig, RefineConfig
from .system import SystemConfig
from .weak import WeakConfig


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
    # Gradients of so many batches are added up before each step: a large batch on a machine with little memory.
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
    # Phase 1: checkpoints whose mean prediction is learnt beside the labels (Hinton et al., Distilling the knowledge in a
    # neural network, 2015): what several networks know together, in one that serves.
    teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        weights = ("presence_weight", "normal_weight")
        check_ranges(self, "loss", shares=("ce_weight",), not_negative=weights)
        require(0 <= self.presence_smoothing < 0.5, "loss.presence_smoothing must be in [0, 0.5)")


@dataclass(frozen=True)
class DataConfig:
    """What a run is trained on, beside the fold given on the command line."""

    select_share: float = 0.15
    # Draws the selection images; null: the run's seed does. Runs of several seeds that go on from one another, or are
    # compared or averaged, need the same.
    select_seed: int | None = None
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
        require(0 <= self.echogenicity <= 1, "data.echogenicity must be in [0, 1]")
        require(
            not self.echogenicity or self.augment != "none",
            "data.echogenicity needs data.augment: standard, strong or machines",
        )
        require(0 <= self.cutmix <= 1, "data.cutmix must be in [0, 1]")
        require(0 <= self.balance <= 1, "data.balance must be in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    phase: Literal["phase1_coarse", "phase2_refiner", "phase3_joint", "ppn", "weak_encoder"] = "phase1_coarse"
    system: SystemConfig = field(default_factory=SystemConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: CoarseLossConfig = field(default_factory=CoarseLossConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    weak: WeakConfig = field(default_factory=WeakConfig)
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
    # Every fifth epoch and after the last one, pictures of this many selection images; 0: none (they show patients).
    overlays: int = 4
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
            at_least_one=("epochs", "validate_every", "batch_size", "early_stop"),
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
        require(
            self.phase != "weak_encoder" or self.refine.lora is None,
            "refine.lora: phase weak_encoder trains the image encoder itself; weak.last_blocks says how much of it",
        )
        sam = self.system.sam
        require(
            self.refine.decoder_init == "none" or (sam is not None and sam.arch == "sam3"),
            "refine.decoder_init is for sam.arch sam3; refine.sam_init brings the whole of another SAM",
        )
        require(
            sam is None or sam.tower is None or sam.tower.channels == 256 or self.refine.cache == "off",
            "refine.cache must be off with a sam.tower of other channels than 256: the projection of its embedding learns",
        )
        if self.phase == "ppn":
            require(self.system.ppn is not None, "phase ppn trains a point proposal network: system.ppn must say which")
            require(
                set(self.refine.train) <= {"mask_decoder"},
                "refine.train: phase ppn trains the point proposal network, and the mask_decoder where it is named; got "
                + ", ".join(self.refine.train),
            )
            require(
                self.system.ppn is None or self.points.inside <= self.system.ppn.points,
                f"points.inside: {self.points.inside} points inside the lesion, of {self.system.ppn and self.system.ppn.points} in all",
            )
        else:
            require(
                self.phase in ("phase1_coarse", "weak_encoder")
                or bool(self.refine.train)
                or self.refine.lora is not None,
                "refine.train must name at least one part",
            )
