"""View conditioning: a learned vector of how the probe was held is added to the image embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_CHANNELS = 256


class ViewEmbedding(nn.Module):
    """image_embedding + the vector of its view. The vectors start at zero: before training nothing changes."""

    def __init__(self, names: Sequence[str]) -> None:
        """names: the views that there are, as ``core.views.canonical_view`` writes them; none: the embedding passes through."""
        super().__init__()
        self.names = tuple(names)
        self.table = nn.Parameter(torch.zeros(len(self.names), _CHANNELS)) if self.names else None

    def forward(self, image_embedding: torch.Tensor, views: Sequence[str]) -> torch.Tensor:
        """image_embedding (B, 256, E, E); views: B names, to an unknown or empty one nothing is added -> the same shape."""
        if self.table is None:
            return image_embedding
        if len(views) != len(image_embedding):
            raise ValueError(f"expected {len(image_embedding)} views, one for each image, got {len(views)}")
        rows = torch.tensor([self.names.index(v) if v in self.names else -1 for v in views], device=self.table.device)
        # Through a product, so that every process of a distributed training has the table in its graph.
        chosen = (rows[:, None] == torch.arange(len(self.names), device=rows.device)).to(self.table.dtype)
        return image_embedding + (chosen @ self.table)[:, :, None, None]
