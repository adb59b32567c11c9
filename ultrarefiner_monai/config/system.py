"""The networks and everything else that changes their output; it travels inside each checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from .reading import check_ranges, require


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
        require(self.image_size % 16 == 0 and self.image_size > 0, "coarse.image_size must be a multiple of 16")
        require(self.num_classes == 2, "coarse.num_classes must be 2 (background, lesion)")
        require(self.hidden_size % self.num_heads == 0, "coarse.hidden_size must be divisible by coarse.num_heads")


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
        require(self.image_size % 16 == 0 and self.image_size > 0, "sam.image_size must be a multiple of 16")
        require(
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
        check_ranges(self, "prompts", positive=("box_factor", "gaussian_sigma", "distance_temperature"))
        require(0 <= self.box_floor < 1, f"prompts.box_floor must be in [0, 1), got {self.box_floor}")
        require(0 <= self.click_disc <= 0.2, f"prompts.click_disc must be in [0, 0.2], got {self.click_disc}")


@dataclass(frozen=True)
class GateConfig:
    """final_prob = coarse_prob + g (refined_prob - coarse_prob); system.md section 6. ``off``: refined_prob as it is.

    The calibration at a run's end weakens it where the refiner harms: the same share everywhere (``confidence`` with
    g_min = g_max), or g_min and g_max times that share. Nothing of this applies where the user clicks.
    """

    mode: Literal["off", "confidence", "learned", "product"] = "off"
    g_min: float = 0.0
    g_max: float = 0.8
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, "gate", positive=("gamma",))
        require(0 <= self.g_min <= self.g_max <= 1, "gate: 0 <= g_min <= g_max <= 1 is required")

    @property
    def closed(self) -> bool:
        """g is 0 everywhere: the automatic result is the coarse network's alone."""
        return self.mode != "off" and self.g_max == 0

    def times(self, share: float) -> GateConfig:
        """The gate whose g is ``share`` (0 to 1) times this one's."""
        if share == 1:
            return self
        if self.mode == "off":
            return replace(self, mode="confidence", g_min=share, g_max=share)
        return replace(self, g_min=share * self.g_min, g_max=share * self.g_max)

    def reopened(self) -> GateConfig:
        """The gate without what a calibration chose for other weights: a constant or closed one gives way to the default."""
        if self.mode == "confidence" and self.g_min == self.g_max:
            return GateConfig(gamma=self.gamma)
        return replace(self, g_min=GateConfig.g_min, g_max=GateConfig.g_max) if self.closed else self


@dataclass(frozen=True)
class SafetyConfig:
    """When the coarse mask is returned instead of the refined one."""

    enabled: bool = True
    min_iou: float = 0.5
    area_ratio: tuple[float, float] = (0.3, 3.0)
    max_components: int = 5
    band_fusion_px: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self, "safety", shares=("min_iou",), not_negative=("band_fusion_px",), at_least_one=("max_components",)
        )
        require(len(self.area_ratio) == 2, "safety.area_ratio takes two numbers: lowest, highest")
        require(0 < self.area_ratio[0] < self.area_ratio[1], "safety.area_ratio must rise and be positive")


@dataclass(frozen=True)
class RefinerConfig:
    """How SAM is used on top of the coarse mask."""

    selection_temperature: float = 0.1
    roi: bool = False
    roi_expand: float = 1.5
    # The automatic result as if a user had clicked into the middle of each coarse component, in two passes: what a refiner
    # that was trained with clicks does best. The end of a run tries it on the selection images.
    self_click: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "refiner", positive=("selection_temperature",), at_least_one=("roi_expand",))


@dataclass(frozen=True)
class PostConfig:
    """From final_prob to the mask that is returned when the user gave no prompt.

    min_area: connected components smaller than this share of the image are dropped. min_peak: so are components in
    which the probability nowhere reaches this value; that keeps normal images free of marks. peak_ratio: findings of the
    coarse network that nowhere reach this share of its surest one fade (``coarse.settle``), for the refiner too: a second
    lesion has to be nearly as sure as the first. min_presence: nothing is marked where the coarse network holds it less
    likely than this that there is a lesion at all; only networks with a presence logit say so.
    """

    threshold: float = 0.5
    min_area: float = 0.0005
    min_peak: float = 0.5
    peak_ratio: float = 0.0
    min_presence: float = 0.0
    fill_holes: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "post", shares=("min_peak", "peak_ratio", "min_presence"))
        require(0 < self.threshold < 1, "post.threshold must be between 0 and 1")
        require(0 <= self.min_area < 1, "post.min_area must be in [0, 1)")


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
        require(all(0.4 <= s < 1 for s in self.tta_scales), "tta_scales must be in [0.4, 1)")
