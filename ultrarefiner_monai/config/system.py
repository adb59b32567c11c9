"""The networks and everything else that changes their output; it travels inside each checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ultrarefiner_monai.core.views import canonical_view

from .reading import check_ranges, require
from .tower import TowerConfig


@dataclass(frozen=True)
class CoarseConfig:
    """The coarse network: (B, 1, image_size, image_size) in [0, 1] -> coarse_logits (B, num_classes, same size)."""

    arch: Literal["r50_vit_b16", "compact"] = "r50_vit_b16"
    image_size: int = 224
    num_classes: int = 2  # background and lesion, as in the published network's weights; no other number is possible
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
    """The SAM half. ``compact`` keeps SAM's prompt encoder and mask decoder over a small image encoder, ``sam3`` over SAM 3's
    vision tower (``models/sam/sam3.py``; 1008 px, weights of the user's own)."""

    arch: Literal["vit_b", "vit_l", "vit_h", "compact", "sam3"] = "vit_b"
    image_size: int = 1024
    # What follows is read for ``compact`` only; the vit_* sizes are SAM's own. encoder: a CNN that can start from ImageNet
    # weights (``models/sam/compact.py``; the shipped one), or a small ViT with windowed attention as in SAM, of the sizes
    # below; it needs far more data, or a teacher (MobileSAM, Zhang et al. 2023).
    encoder: Literal["vit", "lite0", "lite2"] = "vit"
    embed_dim: int = 192
    depth: int = 6
    num_heads: int = 6
    window_size: int = 7
    global_attn_indexes: tuple[int, ...] = (2, 5)
    # ``sam3`` only; null: the published sizes.
    tower: TowerConfig | None = None

    def __post_init__(self) -> None:
        of = f" for sam.arch {self.arch}; 1008 is SAM 3's own" if self.arch == "sam3" else ""
        require(
            self.image_size % self.patch == 0 and self.image_size > 0,
            f"sam.image_size must be a multiple of {self.patch}{of}, got {self.image_size}",
        )
        require(self.tower is None or self.arch == "sam3", "sam.tower is for sam.arch sam3")
        require(
            self.encoder == "vit" or self.image_size % 32 == 0,
            f"sam.image_size must be a multiple of 32 for sam.encoder {self.encoder}",
        )

    @property
    def patch(self) -> int:
        """Pixels of the sam frame by one of the image embedding, along each axis."""
        return 14 if self.arch == "sam3" else 16

    @property
    def mask_size(self) -> int:
        """M, the side of the mask decoder's masks."""
        return 4 * (self.image_size // self.patch)


@dataclass(frozen=True)
class PromptConfig:
    """How prompts are derived from coarse_prob (``models/prompts/derive.py``).

    All of SAM's kinds of prompts (Kirillov et al., Segment anything, ICCV 2023) made from a coarse mask, as SAMRefiner does
    (Lin et al., ICLR 2025), but differentiably, so that phase 3 can train both networks. A refiner has to be served with
    the style that it was trained with; the defaults suit one that is trained here.
    """

    # Probabilities pushed towards 0 and 1 first. For a coarse network that is never sure, whose boxes come out too large.
    sharpen: bool = False
    # A positive point at the centroid, moved into the mask where that lies outside it. Off: box and mask alone.
    point: bool = True
    # moments: mean and box_factor standard deviations of the mask along each axis; 2 is exact for a filled ellipse, more
    # leaves a margin. What is below box_floor does not count, or a faint background would inflate it. minmax: the bounding
    # box at one half, as MedSAM was trained with (Ma et al. 2024), for its weights without phase 3: it has no gradient.
    box: Literal["moments", "minmax", "none"] = "moments"
    box_factor: float = 2.5
    box_floor: float = 0.3
    # A negative point at the background's centroid within the box, or at the box's corner that is farthest from the
    # positive one: for lesions that fill their box. none: for a SAM that takes it badly.
    negative: Literal["centroid", "corner", "none"] = "centroid"
    # direct: the probability as logits. gaussian: blurred first (sigma in pixels of a mask prompt of 256), for a SAM that
    # was not fine-tuned, which follows a sharp mask blindly (as SAMRefiner's Gaussian masks). distance: the signed distance
    # to the outline by distance_temperature, for coarse masks of 0 and 1.
    mask: Literal["direct", "gaussian", "distance", "none"] = "direct"
    gaussian_sigma: float = 4.0
    distance_temperature: float = 5.0
    # Besides as points, the user's clicks are drawn into the mask prompt as discs of this radius, a share of the frame's
    # side (RITM, Sofiiuk et al. 2022, codes clicks so): a decoder that is trained on little learns them far sooner. 0: no
    # discs, for weights of SAM, MedSAM or UltraSam, which have never seen them.
    click_disc: float = 0.0
    # The user's clicks mend the coarse mask (``clicks.honour_clicks``) before it becomes the refiner's mask prompt. Off only
    # for checkpoints that were trained without.
    mend: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "prompts", positive=("box_factor", "gaussian_sigma", "distance_temperature"))
        require(0 <= self.box_floor < 1, f"prompts.box_floor must be in [0, 1), got {self.box_floor}")
        require(0 <= self.click_disc <= 0.2, f"prompts.click_disc must be in [0, 0.2], got {self.click_disc}")


@dataclass(frozen=True)
class GateConfig:
    """How far the automatic result follows the refiner: final_prob = coarse_prob + g (refined_prob - coarse_prob).

    ``off``: refined_prob as it is, for a refiner that is better everywhere. ``confidence``: g = g_min + (g_max - g_min)
    (1 - |2 coarse_prob - 1|^gamma), so that the refiner changes what the coarse network is unsure of; for a SAM that was
    not fine-tuned. ``learned``: a small CNN says g for each pixel, as a gated fusion (Arevalo et al., Gated multimodal
    units, 2017); it has to be trained in phase 2 or 3. ``product``: both, where the learned one goes too far.

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
    """When the coarse mask is returned instead of the refined one: the refiner's answer is implausible as a correction.

    Not in use where the user clicks. The calibration switches it off where it costs more than it saves.
    """

    # The two have an IoU below min_iou, the area ratio (refined by coarse) leaves its range, or there are more components.
    enabled: bool = True
    min_iou: float = 0.5
    area_ratio: tuple[float, float] = (0.3, 3.0)
    max_components: int = 5
    # The refined mask counts only within so many pixels of the coarse outline, as boundary refinement does (SegFix, Yuan et
    # al., ECCV 2020): for a coarse network whose errors lie at the border alone. 0: everywhere.
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

    # SAM's three masks become one, by the softmax of the predicted IoUs divided by this; lower takes the best one alone, as
    # SAM itself does, but then the choice has no gradient.
    selection_temperature: float = 0.1
    # The refiner sees a square around the coarse lesion, roi_expand times its extent, enlarged to its whole frame (zoom-in,
    # as RITM's and f-BRS's, Sofiiuk et al., CVPR 2020). For lesions of a few pixels; the encoder then runs for each coarse
    # mask anew, so nothing can be kept of an image, and a lesion that the coarse network misses is not seen.
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
    # Off only for lesions with real holes: a ring is never what a lesion looks like in ultrasound.
    fill_holes: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "post", shares=("min_peak", "peak_ratio", "min_presence"))
        require(0 < self.threshold < 1, "post.threshold must be between 0 and 1")
        require(0 <= self.min_area < 1, "post.min_area must be in [0, 1)")


@dataclass(frozen=True)
class PpnConfig:
    """The point proposal network (``models/ppn.py``): how many points it proposes, and its size."""

    points: int = 7
    width: int = 128
    blocks: int = 3

    def __post_init__(self) -> None:
        check_ranges(self, "ppn", at_least_one=("points", "width", "blocks"))
        require(self.width % 8 == 0, f"ppn.width must be a multiple of 8, got {self.width}")


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
    # Test-time augmentation of the coarse network: the mirror image, and copies this many times as large, are averaged in
    # (as nnU-Net mirrors, Isensee et al. 2021; scales as in DeepLab, Chen et al. 2017). Each costs a pass; scales help where
    # lesions are larger in the frame than those of the training images.
    flip_tta: bool = True
    tta_scales: tuple[float, ...] = ()
    # Points that propose themselves; null: none.
    ppn: PpnConfig | None = None
    # How the probe was held (radial, anti-radial, transverse, longitudinal, …): a learned vector of each is added to the image
    # embedding (``models/views.py``). An image of no or another view has nothing added. None: off.
    views: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.ppn is None or self.sam is not None, "ppn proposes points to a SAM: sam must say which")
        require(
            self.ppn is None or not self.refiner.roi,
            "ppn reads the embedding of the whole image: refiner.roi must be off",
        )
        require(all(0.4 <= s < 1 for s in self.tta_scales), "tta_scales must be in [0.4, 1)")
        for name in self.views:
            known = canonical_view(name)
            require(bool(name) and name == known, f"views: {name!r} is not written as it is here: {known!r}")
        require(len(set(self.views)) == len(self.views), f"views: a name stands there twice: {self.views}")
        require(
            not self.views or (self.sam is not None and not self.refiner.roi),
            "views are added to the embedding of a whole image: sam must say of which network, and refiner.roi must be off",
        )

    def networks(self) -> str:
        """Which networks answer, in words, such as ``compact CNN and ViT of TransUNet's design, 224 px; …``."""
        coarse = {"r50_vit_b16": "TransUNet R50-ViT-B_16", "compact": "compact CNN and ViT of TransUNet's design"}
        said = f"{coarse[self.coarse.arch]}, {self.coarse.image_size} px"
        if self.sam is None:
            return f"{said}; no refiner"
        own = f"SAM's prompt encoder and mask decoder over a small {'ViT' if self.sam.encoder == 'vit' else 'CNN'}"
        three = "SAM's prompt encoder and mask decoder over SAM 3's vision tower"
        encoders = {"vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H", "compact": own, "sam3": three}
        return f"{said}; {encoders[self.sam.arch]}, {self.sam.image_size} px"
