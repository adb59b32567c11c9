"""The compact preset's image encoder: a mobile CNN under SAM's prompt encoder and mask decoder.

It has ``ImageEncoderViT``'s interface, (B, 3, S, S) normalised -> (B, 256, S/16, S/16). The pretrained stem
(EfficientNet-lite, Tan and Le 2019) gives ``features``; the ``neck`` folds the fine ones into the stride-16 grid (space to
depth: nothing of a thin boundary is averaged away) and mixes. While the stem is frozen its features are the same at every
step: a training keeps them and runs the neck alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from ultrarefiner_monai.models.coarse.compact import STEM_CHANNELS
from ultrarefiner_monai.models.depthwise import quicken_depthwise

WIDTH = 256  # SAM's embedding
# What the fine stages are reduced to before the neck mixes them: strides 4, 8.
_FINE, _MIDDLE = 96, 160


class Mixer(nn.Module):
    """A residual 3 x 3 convolution over the grid, normalised per place: (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.gelu(self.conv(self.norm(x))))


class LiteSamEncoder(nn.Module):
    """SAM's image encoder, about 5 M parameters."""

    def __init__(self, stem: str, image_size: int, depth: int = 2) -> None:
        super().__init__()
        import timm  # slow to import, and only this preset needs it

        self.img_size = image_size
        self.stem_name = stem
        # Stride 2 is left out: it costs most and says least.
        self.stem = quicken_depthwise(
            timm.create_model(f"tf_efficientnet_{stem}", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
        )
        _, c4, c8, c16, c32 = STEM_CHANNELS[stem]
        self.fine = nn.Conv2d(16 * c4, _FINE, 1)
        self.middle = nn.Conv2d(4 * c8, _MIDDLE, 1)
        self.join = nn.Conv2d(_FINE + _MIDDLE + c16 + c32, WIDTH, 1)
        self.mixers = nn.Sequential(*(Mixer(WIDTH) for _ in range(depth)))
        self.norm = LayerNorm2d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neck(self.features(x))

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, S, S), SAM's normalisation -> the stem's features at strides 4, 8, 16, 32."""
        fine = self.shallow(x)
        return [*fine, *self.deep(fine[-1])]

    def shallow(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, S, S), SAM's normalisation -> the stem's features at strides 4 and 8."""
        # SAM's constants differ from the stem's ([-1, 1] per channel) by a shift and a scale that its first batch norm
        # would have to unlearn; its own input is restored from one channel, for the image is gray.
        gray = (x[:, :1] * 58.395 + 123.675) / 127.5 - 1
        x = self.stem.bn1(self.stem.conv_stem(gray.expand(-1, 3, -1, -1)))
        s4 = self.stem.blocks[:2](x)
        return [s4, self.stem.blocks[2](s4)]

    def deep(self, s8: torch.Tensor) -> list[torch.Tensor]:
        """The stem's features at stride 8 -> those at strides 16 and 32."""
        s16 = self.stem.blocks[3:5](s8)
        return [s16, self.stem.blocks[5:](s16)]

    @property
    def shallow_modules(self) -> list[nn.Module]:
        """What ``shallow`` runs."""
        return [self.stem.conv_stem, self.stem.bn1, self.stem.blocks[:3]]

    @property
    def deep_modules(self) -> nn.Module:
        """What ``deep`` runs: most of the stem's parameters and less than half of its time."""
        return self.stem.blocks[3:]

    def neck(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """What ``features`` or ``shallow`` gave -> image_embedding (B, 256, S/16, S/16)."""
        s4, s8, s16, s32 = features if len(features) == 4 else (*features, *self.deep(features[-1]))
        s32 = F.interpolate(s32, size=s16.shape[-2:], mode="bilinear", align_corners=False)
        parts = [self.fine(F.pixel_unshuffle(s4, 4)), self.middle(F.pixel_unshuffle(s8, 2)), s16, s32]
        return self.norm(self.mixers(self.join(torch.cat(parts, dim=1))))

    def copy_stem(self, coarse: nn.Module) -> None:
        """Take over the stem of a trained coarse network of the same kind (``CompactCoarse``)."""
        state = {k: v for k, v in coarse.stem.state_dict().items() if k in self.stem.state_dict()}  # type: ignore[union-attr]
        self.stem.load_state_dict(state, strict=True)
