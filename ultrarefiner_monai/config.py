"""Typed configuration: YAML -> frozen dataclasses. Unknown keys are refused by name, impossible values by option.

``SystemConfig`` describes the networks and everything else that changes their output; it travels inside each checkpoint.
``TrainConfig`` describes a training run, ``ServeConfig`` a server.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the option."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class CoarseConfig:
    """The coarse network: (B, 1, image_size, image_size) in [0, 1] -> coarse_logits (B, num_classes, same size)."""

    arch: Literal["r50_vit_b16", "compact"] = "r50_vit_b16"
    image_size: int = 224
    num_classes: int = 2
    # Only the sizes that differ from the published network; ``tiny`` networks of the tests use them too.
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    decoder_channels: tuple[int, ...] = (256, 128, 64, 16)
    # ``compact`` only. stem: which EfficientNet-lite. presence: whether P(image holds a lesion) is part of the result
    # (``shift``: the lesion logit is lowered by log P) or only helps the training (``auxiliary``).
    stem: Literal["lite0", "lite2"] = "lite0"
    presence: Literal["shift", "auxiliary"] = "shift"

    def __post_init__(self) -> None:
        _require(self.image_size % 16 == 0 and self.image_size > 0, "coarse.image_size must be a multiple of 16")
        _require(self.num_classes == 2, "coarse.num_classes must be 2 (background, lesion)")
        _require(self.hidden_size % self.num_heads == 0, "coarse.hidden_size must be divisible by coarse.num_heads")


@dataclass(frozen=True)
class SamConfig:
    """The SAM half. ``compact`` keeps SAM's prompt encoder and mask decoder over a small image encoder."""

    arch: Literal["vit_b", "vit_l", "vit_h", "compact"] = "vit_b"
    image_size: int = 1024
    # The rest is read for ``compact`` only; the vit_* sizes are SAM's own. encoder: a small ViT of the sizes below, or a
    # CNN that can start from ImageNet weights (``models/lite.py``).
    encoder: Literal["vit", "lite0", "lite2"] = "vit"
    embed_dim: int = 192
    depth: int = 6
    num_heads: int = 6
    window_size: int = 7
    global_attn_indexes: tuple[int, ...] = (2, 5)

    def __post_init__(self) -> None:
        _require(self.image_size % 16 == 0 and self.image_size > 0, "sam.image_size must be a multiple of 16")
        _require(
            self.encoder == "vit" or self.image_size % 32 == 0,
            f"sam.image_size must be a multiple of 32 for sam.encoder {self.encoder}",
        )


@dataclass(frozen=True)
class PromptConfig:
    """How prompts are derived from coarse_prob (system.md section 3)."""

    sharpen: bool = False
    point: bool = True
    box: Literal["moments", "minmax", "none"] = "moments"
    box_factor: float = 2.5
    box_floor: float = 0.3
    negative: Literal["centroid", "corner", "none"] = "centroid"
    mask: Literal["direct", "gaussian", "distance", "none"] = "direct"
    gaussian_sigma: float = 4.0
    distance_temperature: float = 5.0
    # Besides as points, the user's clicks are drawn into the mask prompt as discs of this radius, a share of the frame's
    # side (RITM, Sofiiuk et al. 2022, codes clicks so): a decoder that is trained on little learns them far sooner. 0: not.
    click_disc: float = 0.0
    # The user's clicks mend the coarse mask (``clicks.honour_clicks``) before it becomes the refiner's mask prompt.
    mend: bool = True

    def __post_init__(self) -> None:
        _require(self.box_factor > 0, f"prompts.box_factor must be positive, got {self.box_factor}")
        _require(0 <= self.box_floor < 1, f"prompts.box_floor must be in [0, 1), got {self.box_floor}")
        _require(self.gaussian_sigma > 0, "prompts.gaussian_sigma must be positive")
        _require(0 <= self.click_disc <= 0.2, f"prompts.click_disc must be in [0, 0.2], got {self.click_disc}")
        _require(self.distance_temperature > 0, "prompts.distance_temperature must be positive")


@dataclass(frozen=True)
class GateConfig:
    """final_prob = coarse_prob + g (refined_prob - coarse_prob); system.md section 6. ``off``: refined_prob as it is."""

    mode: Literal["off", "confidence", "learned", "product"] = "off"
    g_min: float = 0.0
    g_max: float = 0.8
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _require(0 <= self.g_min <= self.g_max <= 1, "gate: 0 <= g_min <= g_max <= 1 is required")
        _require(self.gamma > 0, "gate.gamma must be positive")


@dataclass(frozen=True)
class SafetyConfig:
    """When the coarse mask is returned instead of the refined one."""

    enabled: bool = True
    min_iou: float = 0.5
    area_ratio: tuple[float, float] = (0.3, 3.0)
    max_components: int = 5
    band_fusion_px: int = 0

    def __post_init__(self) -> None:
        _require(len(self.area_ratio) == 2, "safety.area_ratio takes two numbers: lowest, highest")
        _require(0 < self.area_ratio[0] < self.area_ratio[1], "safety.area_ratio must rise and be positive")
        _require(0 <= self.min_iou <= 1, "safety.min_iou must be in [0, 1]")
        _require(self.max_components >= 1, "safety.max_components must be at least 1")
        _require(self.band_fusion_px >= 0, "safety.band_fusion_px must not be negative")


@dataclass(frozen=True)
class RefinerConfig:
    """How SAM is used on top of the coarse mask."""

    selection_temperature: float = 0.1
    roi: bool = False
    roi_expand: float = 1.5

    def __post_init__(self) -> None:
        _require(self.selection_temperature > 0, "refiner.selection_temperature must be positive")
        _require(self.roi_expand >= 1, "refiner.roi_expand must be at least 1")


@dataclass(frozen=True)
class PostConfig:
    """From final_prob to the mask that is returned when the user gave no prompt.

    min_area: connected components smaller than this share of the image are dropped. min_peak: so are components in
    which the probability nowhere reaches this value; that keeps normal images free of marks.
    """

    threshold: float = 0.5
    min_area: float = 0.0005
    min_peak: float = 0.5
    fill_holes: bool = True

    def __post_init__(self) -> None:
        _require(0 < self.threshold < 1, "post.threshold must be between 0 and 1")
        _require(0 <= self.min_area < 1, "post.min_area must be in [0, 1)")
        _require(0 <= self.min_peak <= 1, "post.min_peak must be in [0, 1]")


@dataclass(frozen=True)
class SystemConfig:
    """All that decides what comes out for a given image: it is stored in the checkpoint beside the weights."""

    coarse: CoarseConfig = field(default_factory=CoarseConfig)
    sam: SamConfig | None = None
    prompts: PromptConfig = field(default_factory=PromptConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    post: PostConfig = field(default_factory=PostConfig)
    # Test-time augmentation of the coarse network: the mirror image, and copies this many times as large, are averaged in.
    flip_tta: bool = True
    tta_scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require(all(0.4 <= s < 1 for s in self.tta_scales), "tta_scales must be in [0.4, 1)")


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
        _require(self.lr > 0, f"optimiser.lr must be positive, got {self.lr}")
        _require(self.weight_decay >= 0, "optimiser.weight_decay must not be negative")
        _require(0 <= self.pretrained_lr_factor <= 1, "optimiser.pretrained_lr_factor must be in [0, 1]")
        _require(self.warmup_epochs >= 0, "optimiser.warmup_epochs must not be negative")
        _require(self.clip_norm is None or self.clip_norm > 0, "optimiser.clip_norm must be positive or null")
        _require(self.accumulate >= 1, "optimiser.accumulate must be at least 1")


@dataclass(frozen=True)
class CoarseLossConfig:
    """ce_weight CE + (1 - ce_weight) Dice + presence_weight BCE of the presence logit.

    presence_smoothing: the presence logit's targets are this far from 0 and 1, so that it cannot wipe out a whole lesion
    that it does not see.
    """

    ce_weight: float = 0.5
    presence_weight: float = 0.1
    presence_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.ce_weight <= 1, "loss.ce_weight must be in [0, 1]")
        _require(self.presence_weight >= 0, "loss.presence_weight must not be negative")
        _require(0 <= self.presence_smoothing < 0.5, "loss.presence_smoothing must be in [0, 0.5)")


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
        for name in ("share_twelve", "soften_twelve", "soften_sdf", "roughness_share", "vanish_share", "empty_islands"):
            _require(0 <= getattr(self, name) <= 1, f"corruption.{name} must be in [0, 1], got {getattr(self, name)}")
        unknown = sorted(set(self.kinds) - set(TWELVE_KINDS))
        _require(not unknown, f"corruption.kinds: no kind {', '.join(unknown)}; known: {', '.join(TWELVE_KINDS)}")
        _require(
            all(w >= 0 for w in self.kinds.values()) and sum(self.kinds.values()) > 0,
            "corruption.kinds: weights must not be negative and not all 0",
        )
        _require(
            len(self.bands) >= 1 and all(len(b) == 2 and 0 < b[0] < b[1] <= 1 for b in self.bands),
            f"corruption.bands: pairs 0 < lowest < highest <= 1 of Dice, got {self.bands}",
        )
        _require(
            len(self.band_weights) == len(self.bands) and min(self.band_weights) >= 0 and sum(self.band_weights) > 0,
            f"corruption.band_weights: one weight for each of the {len(self.bands)} bands, got {self.band_weights}",
        )
        for name in ("temperature", "roughness", "correlation"):
            low_high = getattr(self, name)
            _require(
                len(low_high) == 2 and 0 < low_high[0] <= low_high[1],
                f"corruption.{name}: two positive numbers, lowest and highest, got {low_high}",
            )
        _require(self.vanish_radius >= 0, "corruption.vanish_radius must not be negative")


@dataclass(frozen=True)
class DataConfig:
    """What a run is trained on, beside the fold given on the command line."""

    select_share: float = 0.15
    # Share of lesion-free images among the training images; null: as many as there are.
    normal_share: float | None = None
    phantoms: int = 0
    augment: Literal["none", "standard", "strong"] = "standard"
    workers: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.select_share < 1, "data.select_share must be between 0 and 1")
        _require(self.normal_share is None or 0 <= self.normal_share < 1, "data.normal_share must be in [0, 1)")
        _require(self.phantoms >= 0, "data.phantoms must not be negative")
        _require(self.workers >= 0, "data.workers must not be negative")


@dataclass(frozen=True)
class RefineConfig:
    """Phase 2 (and the refiner's part of phase 3): what the refiner sees and what it is asked for; system.md 3 and 4.

    Each item's coarse mask is a recorded correction's proposal where there is one, else a corrupted label with
    probability ``corrupted_share``, else a real prediction from ``proposals`` (``ultrarefiner proposals`` makes them).
    """

    # Which parts learn. ``neck``: of the compact preset's CNN encoder; ``encoder``: the whole image encoder.
    train: tuple[Literal["prompt_encoder", "mask_decoder", "neck", "encoder"], ...] = ("prompt_encoder", "mask_decoder")
    # Start of the SAM half: none, a SAM file, one of our checkpoints, or stem (the CNN stem of ``init``'s coarse network).
    sam_init: str = "none"
    corrupted_share: float = 0.7
    proposals: str = ""  # a folder; {fold} in its name stands for the fold held out
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
    click_mistakes: float = 0.05
    box_share: float = 0.15
    # Share of those whose coarse mask is made to overlook the lesion, half of them with a false alarm elsewhere.
    missed_share: float = 0.25
    # Loss: BCE + Dice + focal_weight Focal + penalty_weight change + iou_weight IoU-MSE.
    focal_weight: float = 0.5
    iou_weight: float = 0.1
    penalty: Literal["quality", "agreement", "none"] = "quality"
    penalty_weight: float = 0.1
    # The first of the two passes with clicks counts so much beside the second.
    first_pass_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("corrupted_share", "click_share", "click_mistakes", "box_share", "missed_share"):
            _require(0 <= getattr(self, name) <= 1, f"refine.{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("focal_weight", "iou_weight", "penalty_weight", "first_pass_weight"):
            _require(getattr(self, name) >= 0, f"refine.{name} must not be negative")
        _require(
            self.variants >= 1 and self.max_clicks >= 1, "refine.variants and refine.max_clicks must be at least 1"
        )
        _require(bool(self.train), "refine.train must name at least one part")
        _require(
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
        for name in ("coarse_weight", "refined_weight", "coarse_grad_scale", "anchor", "coarse_lr_factor", "warn_drop"):
            _require(getattr(self, name) >= 0, f"joint.{name} must not be negative, got {getattr(self, name)}")
        for name in ("freeze_coarse_epochs", "freeze_refiner_epochs"):
            _require(getattr(self, name) >= 0, f"joint.{name} must not be negative, got {getattr(self, name)}")


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
    amp: Literal["off", "bf16", "fp16"] = "off"
    seed: int = 0
    # Where figures and overlays go besides history.csv and the run's own overlays/. mlflow_uri: where MLflow keeps them;
    # empty: mlflow.db (SQLite) in the folder that holds the run's folder, runs/mlflow.db for a run in runs/NAME.
    tracking: Literal["none", "tensorboard", "mlflow", "both"] = "tensorboard"
    mlflow_uri: str = ""
    # Pictures of this many selection images, each so many epochs; 0: none.
    overlays: int = 4
    overlay_every: int = 5

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs must be at least 1")
        _require(self.overlays >= 0, "overlays must not be negative")
        _require(self.overlay_every >= 1, "overlay_every must be at least 1")
        _require(self.batch_size >= 1, "batch_size must be at least 1")
        _require(self.ema is None or 0 < self.ema < 1, "ema must be between 0 and 1, or null")
        _require(self.early_stop is None or self.early_stop >= 1, "early_stop must be at least 1 epoch, or null")
        _require(
            self.init != "imagenet" or self.system.coarse.arch == "compact",
            "init: imagenet is for system.coarse.arch: compact; r50_vit_b16 starts from the path of its .npz",
        )
        _require(
            self.phase == "phase1_coarse" or self.system.sam is not None,
            f"{self.phase} trains a refiner: system.sam must say which",
        )


# --- YAML -> dataclass ------------------------------------------------------------------------------------------------


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Build the dataclass ``cls`` from plain values; unknown keys and wrong types are refused with their full name."""
    where = path or cls.__name__
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of options, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        names = ", ".join(f"{path}.{key}" if path else key for key in unknown)
        raise ConfigError(f"unknown option {names}; known here: {', '.join(sorted(known))}")
    kwargs = {k: _convert(hints[k], v, f"{path}.{k}" if path else k) for k, v in values.items()}
    return cls(**kwargs)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        return _convert(rest[0], value, path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            raise ConfigError(f"{path}: expected one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        return {str(k): _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values (YAML and JSON safe) from which ``from_dict`` builds the same dataclass again."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}


def load_yaml(cls: type[T], path: str | Path, overrides: dict[str, Any] | None = None) -> T:
    """Read a YAML file into ``cls``. ``overrides``: dotted names -> values, as given on the command line."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    for name, value in (overrides or {}).items():
        set_option(values, name, value)
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def set_option(values: dict[str, Any], name: str, value: Any) -> None:
    """Set ``a.b.c`` in nested plain values, making the levels on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{name}: {parent} is a value, not a group of options")
        values = child
    values[last] = value


# --- serving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PacsConfig:
    """The DICOMweb store that is served (``--studies https://HOST/dicom-web``), see docs/pacs.md.

    Who asks: ``user`` with a password (basic), or a token (bearer). Passwords and tokens stand in a file that is named
    here, or in the environment (ULTRAREFINER_PACS_PASSWORD, ULTRAREFINER_PACS_TOKEN); never in this configuration.
    """

    # Which series are studies: one of these modalities, and these further QIDO filters (StudyDate=20240101-).
    modality: tuple[str, ...] = ("US",)
    filter: tuple[str, ...] = ()
    # How often the list and new results of others are looked for when nobody asks.
    poll_seconds: int = 30
    user: str = ""
    password_file: str = ""
    token_file: str = ""
    # Certificates (PEM) that sign the store's own, in place of the public ones.
    ca_file: str = ""
    timeout_seconds: int = 30
    # Tries after the first one, with growing pauses between.
    retries: int = 3
    # Images kept in the work folder; the ones used longest ago go first and are fetched again when they are opened.
    mirror_mb: int = 20_000
    # store: each final label goes to the store as a DICOM SEG (else on demand). sr: its measurements go with it.
    store: bool = False
    sr: bool = False

    def __post_init__(self) -> None:
        _require(bool(self.modality) and all(self.modality), "pacs.modality must name one or more, such as US")
        for entry in self.filter:
            _require("=" in entry.strip("="), f"pacs.filter: expected NAME=VALUE, got {entry!r}")
        for name in ("poll_seconds", "timeout_seconds", "mirror_mb"):
            _require(getattr(self, name) >= 1, f"pacs.{name} must be at least 1, got {getattr(self, name)}")
        _require(self.retries >= 0, f"pacs.retries must not be negative, got {self.retries}")
        _require(not (self.user and self.token_file), "pacs.user and pacs.token_file: give one of them, not both")


@dataclass(frozen=True)
class ServeConfig:
    """How the app serves one studies folder (``apps/ultrarefiner/config.yaml``; ``--conf NAME VALUE`` overrides)."""

    # A name ("compact", or one that `ultrarefiner weights list` knows) or the path of a checkpoint of ours.
    weights: str = "compact"
    # A SAM / MedSAM / UltraSam file (name or path) for the refiner; empty: what the checkpoint itself holds.
    refiner_weights: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Empty: `.ultrarefiner` inside the studies folder. Needed when the studies are read-only.
    work_dir: str = ""
    ram_cache_mb: int = 1024
    disk_cache_mb: int = 4096
    max_upload_mb: int = 512
    # Rows x columns x frames of one file; bigger ones are refused before they fill the memory.
    max_pixels: int = 400_000_000
    extensions: tuple[str, ...] = (
        ".nii.gz",
        ".nii",
        ".nrrd",
        ".dcm",
        ".png",
        ".jpg",
        ".jpeg",
        ".tif",
        ".tiff",
        ".bmp",
    )
    # Web pages of other origins that may call the server; none by default. MONAI_LABEL_CORS_ORIGINS has the last word.
    cors_origins: tuple[str, ...] = ()
    # Requests that compute at the same time, and CPU threads of each (0: all that the process may use).
    workers: int = 4
    threads: int = 0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    pacs: PacsConfig = field(default_factory=PacsConfig)

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_pixels", "workers"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("ram_cache_mb", "disk_cache_mb", "threads"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require(bool(self.weights), "weights must name the checkpoint to serve")
        _require(
            bool(self.extensions) and all(e.startswith(".") and "/" not in e for e in self.extensions),
            f"extensions must be like .png, got {', '.join(self.extensions)}",
        )


# Options that MONAI Label itself reads from --conf; they are none of ours and are left alone.
_MONAILABEL_CONF = ("server_mode",)


def serve_config(path: str | Path, conf: dict[str, str] | None = None) -> ServeConfig:
    """``config.yaml`` with MONAI Label's ``--conf NAME VALUE`` strings on top. Lists are written a,b,c; ``pacs.user``.

    Raises ConfigError for a name or a value that is none, with the names that are known.
    """
    hints = typing.get_type_hints(ServeConfig)
    del hints["pacs"]
    hints |= {f"pacs.{name}": hint for name, hint in typing.get_type_hints(PacsConfig).items()}
    overrides: dict[str, Any] = {}
    for name, text in (conf or {}).items():
        if name in _MONAILABEL_CONF:
            continue
        if name not in hints:
            raise ConfigError(f"--conf {name}: there is no such option; known: {', '.join(sorted(hints))}")
        overrides[name] = _from_text(hints[name], str(text), f"--conf {name}")
    return load_yaml(ServeConfig, path, overrides)


def _from_text(hint: Any, text: str, where: str) -> Any:
    if hint is int:
        try:
            return int(text.replace("_", ""))
        except ValueError as error:
            raise ConfigError(f"{where}: expected a whole number, got {text!r}") from error
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{where}: expected true or false, got {text!r}")
        return text.lower() == "true"
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
