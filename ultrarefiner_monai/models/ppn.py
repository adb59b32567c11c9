"""The point proposal network (PPN): from the image embedding to points, inside the lesion and beside it, that prompt SAM.

For each of N points a map over the embedding's grid says where it lies: its place is the map's mean (a soft argmax, as in
integral pose regression, Sun et al., ECCV 2018), its label is read off the features there. The mask's loss reaches the places
through SAM's positional code, and the labels through a mixture of SAM's foreground and background tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import nn

from ultrarefiner_monai.config import PpnConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.prompts.moments import ValidHW

_CHANNELS, _GROUPS = 256, 8


@dataclass(frozen=True)
class ProposedPoints:
    """xy: (B, N, 2) in [0, 1], shares of the sam frame's width and height. logits: (B, N), above 0 for foreground."""

    xy: torch.Tensor
    logits: torch.Tensor

    @property
    def prob(self) -> torch.Tensor:
        """(B, N) in [0, 1]: that a point lies in the lesion."""
        return torch.sigmoid(self.logits)

    def pixels(self, side: int) -> torch.Tensor:
        """(B, N, 2) xy in pixels of a sam frame of ``side`` pixels, where (0, 0) is the centre of the first one."""
        return self.xy * side - 0.5


class PointNetwork(nn.Module):
    """image_embedding (B, 256, E, E) -> ProposedPoints; about 1 M parameters with the defaults."""

    def __init__(self, config: PpnConfig, grid: int, cell: int = 16) -> None:
        """grid: E. cell: pixels of the sam frame under one place of the embedding, along each axis. Raises InputError where more
        points are asked for than the grid has places."""
        super().__init__()
        self.cell = cell
        if config.points > grid * grid:
            raise InputError(
                f"ppn.points: {config.points} points are asked for, and the image embedding has {grid} x {grid} places"
            )
        self.config = config
        width = config.width
        self.enter = nn.Sequential(nn.Conv2d(_CHANNELS, width, 1), nn.GroupNorm(_GROUPS, width), nn.GELU())
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(config.blocks)))
        self.maps = nn.Conv2d(width, config.points, 1)
        self.label = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        # What a point is for differs from point to point: some learn to lie inside, some beside.
        self.role = nn.Parameter(torch.zeros(config.points))

    def forward(self, image_embedding: torch.Tensor, valid_hw: ValidHW = None) -> ProposedPoints:
        """image_embedding: (B, 256, E, E). valid_hw: (rows, columns) of the sam frame that each image covers, None: all of
        it; no point lies in the padding."""
        features = self.blocks(self.enter(image_embedding))
        b, _, height, width = features.shape
        maps = self.maps(features).float()
        limits = _limits(
            valid_hw, b, height, width, maps, self.cell
        )  # (B, 2), columns and rows of the grid, may be fractions
        centres = [torch.arange(n, device=maps.device, dtype=maps.dtype) for n in (width, height)]
        outside = (centres[0][None, None, :] >= limits[:, None, :1]) | (
            centres[1][None, :, None] >= limits[:, 1:, None]
        )
        weights = maps.masked_fill(outside[:, None], -torch.inf).flatten(2).softmax(dim=2)  # (B, N, E E)
        places = torch.stack(
            [
                (weights.view(b, -1, height, width).sum(dim=2) * (centres[0] + 0.5)).sum(dim=2),
                (weights.view(b, -1, height, width).sum(dim=3) * (centres[1] + 0.5)).sum(dim=2),
            ],
            dim=2,
        )
        places = torch.minimum(places, limits[:, None])
        seen = torch.einsum("bnp,bcp->bnc", weights.to(features.dtype), features.flatten(2))
        logits = self.label(seen)[..., 0].float() + self.role
        return ProposedPoints(places / places.new_tensor([width, height]), logits)


class _Block(nn.Module):
    """A residual pair of 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(_GROUPS, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x + self.body(x))


def _limits(valid_hw: ValidHW, batch: int, height: int, width: int, like: torch.Tensor, cell: int) -> torch.Tensor:
    """(B, 2): columns and rows of the grid, of ``cell`` pixels each, that the image covers."""
    if valid_hw is None:
        return like.new_tensor([width, height]).expand(batch, 2)
    return torch.as_tensor(valid_hw).reshape(-1, 2).flip(1).to(like).expand(batch, 2) / cell


def soft_tokens(sam: Sam, points: ProposedPoints) -> torch.Tensor:
    """(B, N + 1, 256): what SAM's prompt encoder gives for the points, each with a mixture of its foreground and background
    tokens by its probability; and the padding token that stands for "no box". For labels of 0 and 1 it is the same tokens."""
    encoder = sam.prompt_encoder
    side = float(sam.image_encoder.img_size)
    with torch.autocast(points.xy.device.type, enabled=False):
        places = encoder.pe_layer.forward_with_coords(points.pixels(int(side)) + 0.5, encoder.input_image_size)
        background, foreground = (encoder.point_embeddings[k].weight for k in (0, 1))
        prob = points.prob[..., None]
        tokens = places + prob * foreground + (1 - prob) * background
        return torch.cat([tokens, encoder.not_a_point_embed.weight.expand(len(tokens), 1, -1)], dim=1)
