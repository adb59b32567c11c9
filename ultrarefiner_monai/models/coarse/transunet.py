"""TransUNet R50-ViT-B_16 (Chen et al. 2021, arXiv:2102.04306): ResNet-50 stem, ViT on its features, U-shaped decoder.

Module names follow the public implementation, so that its ``.pth`` files load key by key (``transunet_weights``). The
stem is that of Google's "hybrid" ViT (big_transfer): weight-standardised convolutions, GroupNorm, post-activation
residual units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ultrarefiner_monai.config import CoarseConfig

_BLOCKS = ((64, 256, 3), (256, 512, 4), (512, 1024, 9))  # channels in, channels out, units of the three ResNet blocks
_SKIP_CHANNELS = (512, 256, 64, 0)  # what each decoder block is given besides the level below; the last one has no skip


class StdConv2d(nn.Conv2d):
    """Convolution whose kernels are standardised (biased variance, eps 1e-5) at each use (arXiv:1903.10520)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        variance, mean = torch.var_mean(w, dim=(1, 2, 3), keepdim=True, unbiased=False)
        w = (w - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ResidualUnit(nn.Module):
    """Bottleneck, post-activation. Registered in the order of the public state dictionary."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        c_mid = c_out // 4
        self.gn1 = nn.GroupNorm(32, c_mid, eps=1e-6)
        self.conv1 = StdConv2d(c_in, c_mid, 1, bias=False)
        self.gn2 = nn.GroupNorm(32, c_mid, eps=1e-6)
        self.conv2 = StdConv2d(c_mid, c_mid, 3, stride=stride, padding=1, bias=False)
        self.gn3 = nn.GroupNorm(32, c_out, eps=1e-6)
        self.conv3 = StdConv2d(c_mid, c_out, 1, bias=False)
        self.projects = stride != 1 or c_in != c_out
        if self.projects:
            self.downsample = StdConv2d(c_in, c_out, 1, stride=stride, bias=False)
            # One group per channel and torch's own eps, unlike the other norms: so it was trained.
            self.gn_proj = nn.GroupNorm(c_out, c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.gn_proj(self.downsample(x)) if self.projects else x
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        return F.relu(residual + self.gn3(self.conv3(y)))


class HybridStem(nn.Module):
    """(B, 3, S, S) -> (B, 1024, S/16, S/16) and the skips [512 @ S/8, 256 @ S/4, 64 @ S/2]."""

    def __init__(self) -> None:
        super().__init__()
        self.root = nn.Sequential()
        self.root.add_module("conv", StdConv2d(3, 64, 7, stride=2, padding=3, bias=False))
        self.root.add_module("gn", nn.GroupNorm(32, 64, eps=1e-6))
        self.root.add_module("relu", nn.ReLU())
        self.body = nn.Sequential()
        for number, (c_in, c_out, units) in enumerate(_BLOCKS, start=1):
            block = nn.Sequential()
            for unit in range(1, units + 1):
                stride = 2 if unit == 1 and number > 1 else 1
                block.add_module(f"unit{unit}", ResidualUnit(c_in if unit == 1 else c_out, c_out, stride))
            self.body.add_module(f"block{number}", block)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        side = x.shape[-1]
        root = self.root(x)
        # No padding: 112 -> 55. The network goes on with 55; only the skip is padded to 56 with zeros, right and below.
        x = F.max_pool2d(root, kernel_size=3, stride=2)
        skips = [root]
        for level, block in enumerate(self.body):
            x = block(x)
            if level < len(self.body) - 1:
                want = side // (4 * 2**level)
                skips.append(F.pad(x, (0, want - x.shape[-1], 0, want - x.shape[-2])))
        return x, skips[::-1]


class Embeddings(nn.Module):
    """Image -> tokens with positions, and the stem's skips."""

    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        grid = config.image_size // 16
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid * grid, config.hidden_size))
        self.hybrid_model = HybridStem()
        self.patch_embeddings = nn.Conv2d(_BLOCKS[-1][1], config.hidden_size, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features, skips = self.hybrid_model(x)
        tokens = self.patch_embeddings(features).flatten(2).transpose(1, 2)
        return self.dropout(tokens + self.position_embeddings), skips


class SelfAttention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class EncoderLayer(nn.Module):
    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.ffn = FeedForward(config.hidden_size, config.mlp_dim)
        self.attn = SelfAttention(config.hidden_size, config.num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Encoder(nn.Module):
    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.encoder_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = layer(x)
        return self.encoder_norm(x)


class Transformer(nn.Module):
    """(B, 3, S, S) -> tokens (B, (S/16)^2, hidden_size) and skips."""

    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens, skips = self.embeddings(x)
        return self.encoder(tokens), skips


def _conv_bn_relu(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class DecoderBlock(nn.Module):
    def __init__(self, c_in: int, c_skip: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(c_in + c_skip, c_out)
        self.conv2 = _conv_bn_relu(c_out, c_out)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """Tokens and skips -> (B, decoder_channels[-1], S, S)."""

    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        self.conv_more = _conv_bn_relu(config.hidden_size, 512)
        ins = (512, *config.decoder_channels[:-1])
        self.blocks = nn.ModuleList(
            DecoderBlock(c_in, c_skip, c_out)
            for c_in, c_skip, c_out in zip(ins, _SKIP_CHANNELS, config.decoder_channels)
        )

    def forward(self, tokens: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        grid = int(tokens.shape[1] ** 0.5)
        x = self.conv_more(tokens.transpose(1, 2).unflatten(2, (grid, grid)))
        for block, skip in zip(self.blocks, [*skips, None]):
            x = block(x, skip)
        return x


class TransUNet(nn.Module):
    """coarse network: image (B, 1, S, S) in [0, 1], coarse frame -> coarse_logits (B, 2, S, S)."""

    def __init__(self, config: CoarseConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.heads = config.num_heads
        self.transformer = Transformer(config)
        self.decoder = Decoder(config)
        self.segmentation_head = nn.Sequential(nn.Conv2d(config.decoder_channels[-1], config.num_classes, 3, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        side = self.image_size
        if image.ndim != 4 or tuple(image.shape[1:]) != (1, side, side):
            raise ValueError(f"TransUNet expects image (B, 1, {side}, {side}), got {tuple(image.shape)}")
        tokens, skips = self.transformer(image.expand(-1, 3, -1, -1))
        return self.segmentation_head(self.decoder(tokens, skips))


def build_transunet(
    arch: str = "r50_vit_b16", image_size: int = 224, num_classes: int = 2, config: CoarseConfig | None = None
) -> TransUNet:
    """The network with random weights. ``config`` gives all sizes and takes the place of the other arguments."""
    config = config or CoarseConfig(image_size=image_size, num_classes=num_classes)
    for name in {arch, config.arch}:
        if name != "r50_vit_b16":
            raise ValueError(f"build_transunet knows the architecture r50_vit_b16, got {name!r}")
    if len(config.decoder_channels) != len(_SKIP_CHANNELS):
        raise ValueError(f"coarse.decoder_channels needs {len(_SKIP_CHANNELS)} numbers, got {config.decoder_channels}")
    return TransUNet(config)
