"""SAM 3's vision tower (Carion et al., SAM 3: Segment anything with concepts, 2025) as the image encoder.

The code is the ``transformers`` package's (extra ``[sam3]``), the weights are the user's: Meta gives them under the SAM
licence to those who ask, and nothing of them is shipped. Of the tower's feature pyramid one level is used, the embedding
at stride 14 (72 x 72 for 1008 px); prompt encoder and mask decoder are SAM's, at that size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultrarefiner_monai.config import SamConfig, TowerConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.sam.state import read_tensors
from ultrarefiner_monai.models.strict import misfits, some

PATCH = SamConfig(arch="sam3", image_size=1008).patch
_CHANNELS = 256
_STRIDE = 2  # of the pyramid's levels (strides 3.5, 7, 14, 28), the one at the stride of the patches
_ROOTS = (
    "detector_model.vision_encoder.",
    "vision_encoder.",
    "detector.backbone.",
    "backbone.",
)
# Names in Meta's file -> names in transformers' tower.
_RENAMED = (
    (r"^vision_backbone\.trunk\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^vision_backbone\.trunk\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^vision_backbone\.trunk\.ln_pre\.", "backbone.layer_norm."),
    (r"^vision_backbone\.trunk\.blocks\.(\d+)\.norm([12])\.", r"backbone.layers.\1.layer_norm\2."),
    (r"^vision_backbone\.trunk\.blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.attention.o_proj."),
    (r"^vision_backbone\.trunk\.blocks\.(\d+)\.mlp\.", r"backbone.layers.\1.mlp."),
    (r"^vision_backbone\.convs\.(\d+)\.conv_1x1\.", r"neck.fpn_layers.\1.proj1."),
    (r"^vision_backbone\.convs\.(\d+)\.conv_3x3\.", r"neck.fpn_layers.\1.proj2."),
)
_QKV = re.compile(r"^vision_backbone\.trunk\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")
_LEVEL = re.compile(r"^neck\.fpn_layers\.(\d+)\.")


class Sam3Encoder(nn.Module):
    """A SAM 3 backbone as SAM's image encoder: image (B, 3, S, S), each channel (x - .5) / .5 -> (B, 256, S / 14, S / 14).

    backbone: has ``forward_image``, as SAM 3's own and ``Sam3Tower``; what it gives is a tensor, or a dictionary with
    ``vision_features`` or ``image_embeddings``, of maps (B, C, E, E) or tokens (B, E E, C). channels: C; another number than
    256 is projected by a 1 x 1 convolution, which has to be learnt.
    """

    # (255 x - mean) / std, as SAM's ``normalise`` puts it: (x - .5) / .5.
    pixel_mean = pixel_std = (127.5, 127.5, 127.5)

    def __init__(self, backbone: nn.Module, image_size: int, channels: int = _CHANNELS) -> None:
        super().__init__()
        self.backbone, self.img_size, self.channels = backbone, image_size, channels
        self.project = nn.Identity() if channels == _CHANNELS else nn.Conv2d(channels, _CHANNELS, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image: (B, 3, S, S), S exactly ``img_size``. Raises ValueError for another size and for features that are no
        square map of ``channels`` channels."""
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, self.img_size, self.img_size):
            raise ValueError(f"SAM 3 expects image (B, 3, {self.img_size}, {self.img_size}), got {tuple(image.shape)}")
        features = _features(self.backbone.forward_image(image))  # type: ignore[operator]
        side = self.img_size // PATCH
        if features.ndim == 3 and features.shape[1] == side * side:
            features = features.transpose(1, 2).unflatten(2, (side, side))
        if tuple(features.shape[1:]) != (self.channels, side, side):
            raise ValueError(
                f"SAM 3's backbone gave features {tuple(features.shape)}; expected (B, {self.channels}, {side}, {side}) or "
                f"(B, {side * side}, {self.channels})"
            )
        return self.project(features)


def _features(found: Any) -> torch.Tensor:
    if isinstance(found, Mapping):
        names = [n for n in ("vision_features", "image_embeddings") if n in found]
        if not names:
            raise ValueError(
                f"SAM 3's backbone gave {', '.join(map(str, found))}; expected vision_features or image_embeddings"
            )
        found = found[names[0]]
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"SAM 3's backbone gave {type(found).__name__}; expected a tensor or a dictionary of tensors")
    return found


class Sam3Tower(nn.Module):
    """``transformers``' SAM 3 vision tower, with random weights, of the sizes of ``config``."""

    def __init__(self, config: TowerConfig, image_size: int) -> None:
        super().__init__()
        model, vision, vit = _transformers()
        side = image_size // PATCH
        trunk = vit(
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=image_size,
            patch_size=PATCH,
            window_size=config.window,
            global_attn_indexes=list(config.global_blocks),
            pretrain_image_size=config.position_side * PATCH,
        )
        # The other levels would cost four times as much as they are read: the decoder wants one.
        self.tower = model(
            vision(
                backbone_config=trunk,
                fpn_hidden_size=config.channels,
                backbone_feature_sizes=[[side, side]],
                scale_factors=[1.0],
            )
        )

    def forward_image(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """image (B, 3, S, S) -> ``vision_features`` (B, channels, S / 14, S / 14)."""
        return {"vision_features": self.tower(image).fpn_hidden_states[0]}


def build_sam3_encoder(config: SamConfig) -> Sam3Encoder:
    """The encoder with random weights. Raises InputError where ``transformers`` is missing or too old."""
    tower = config.tower or TowerConfig()
    return Sam3Encoder(Sam3Tower(tower, config.image_size), config.image_size, tower.channels)


def load_tower(encoder: nn.Module, path: str | Path) -> None:
    """Load a SAM 3 file into the encoder's tower, strictly: ``sam3.pt``, or ``model.safetensors`` of Hugging Face's facebook/sam3
    (or the folder that holds it). Raises InputError for a file that is missing, none of these, or of other sizes."""
    assert isinstance(encoder, Sam3Encoder) and isinstance(encoder.backbone, Sam3Tower)
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"refine.sam_init: there are no SAM 3 weights at {path}; they are Meta's to give: ask for facebook/sam3 at "
            "huggingface.co and name sam3.pt or model.safetensors here"
        )
    state = tower_state(read_tensors(path), str(path))
    faults = misfits(encoder.backbone.tower.state_dict(), state)
    if faults:
        raise InputError(f"{path} has a vision tower of other sizes than system.sam.tower; " + "; ".join(faults))
    encoder.backbone.tower.load_state_dict(state)


def tower_state(state: Mapping[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Of a SAM 3 checkpoint's tensors those of the vision tower, under the names that ``Sam3Tower`` has; float32.

    Two layouts are understood: Meta's own (``detector.backbone.vision_backbone.trunk.*``, queries, keys and values in one
    matrix, a position for a class token) and that of transformers (``vision_encoder.backbone.*``).
    """
    plain = {k.removeprefix("sam3_model."): v for k, v in state.items()}
    for root in _ROOTS:
        inside = {k.removeprefix(root): v for k, v in plain.items() if k.startswith(root)}
        if any(k.startswith(("vision_backbone.trunk.", "backbone.layers.")) for k in inside):
            break
    else:
        inside = dict(plain)  # a tower by itself
    out: dict[str, torch.Tensor] = {}
    for name, value in inside.items():
        out |= _renamed(name, value)
    if not any(k.startswith("backbone.layers.") for k in out):
        raise InputError(
            f"{source} holds no vision tower of SAM 3: expected names such as detector.backbone.vision_backbone.trunk.blocks.0.* "
            f"(sam3.pt) or vision_encoder.backbone.layers.0.* (transformers), got {some(sorted(state))}"
        )
    levels = {int(found[1]) for k in out if (found := _LEVEL.match(k))}
    used = 0 if levels == {0} else _STRIDE
    kept = {}
    for name, value in out.items():
        level = _LEVEL.match(name)
        if level is None:
            kept[name] = value
        elif int(level[1]) == used:
            kept[_LEVEL.sub("neck.fpn_layers.0.", name)] = value
    return {k: v.float() if v.is_floating_point() else v for k, v in kept.items()}


def _renamed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor by its name in the tower; nothing where it is no part of it."""
    if fused := _QKV.match(name):
        parts = zip("qkv", value.chunk(3))
        return {f"backbone.layers.{fused[1]}.attention.{p}_proj.{fused[2]}": v.clone() for p, v in parts}
    for pattern, new in _RENAMED:
        if re.match(pattern, name):
            if name.endswith("pos_embed") and round((value.shape[1] - 1) ** 0.5) ** 2 == value.shape[1] - 1:
                value = value[:, 1:].clone()  # the class token's
            return {re.sub(pattern, new, name): value}
    return {name: value} if name.startswith(("backbone.", "neck.")) else {}


def _transformers() -> tuple[Any, Any, Any]:
    try:
        from transformers import Sam3VisionConfig, Sam3VisionModel, Sam3ViTConfig
    except ImportError as error:
        raise InputError(
            "sam.arch sam3 needs the transformers package with SAM 3 (5.0 or newer): pip install 'ultrarefiner_monai[sam3]' "
            f"({error})"
        ) from error
    return Sam3VisionModel, Sam3VisionConfig, Sam3ViTConfig
