"""Features of the frozen part of an image encoder, computed once and kept: over a ViT-B a step costs a fiftieth then.

What is frozen is the whole encoder (kept: the image embedding), or the compact preset's CNN stem under a neck that
learns (kept: the stem's features), or that stem's shallow half (kept: its fine features). Keys name the weights of the
frozen part and the preprocessing, so that nothing kept outlives a change of either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.models.sam.compact import LiteSamEncoder
from ultrarefiner_monai.models.sam.network import normalise

Frozen = tuple[list[nn.Module], Callable[[torch.Tensor], Sequence[torch.Tensor]]]


def frozen_part(encoder: nn.Module, train: Sequence[str]) -> Frozen:
    """The modules of the image encoder that stand still, given which parts learn, and what runs them: a normalised image
    (B, 3, S, S) -> what is kept of it."""
    if isinstance(encoder, LiteSamEncoder):
        if "deep" in train:
            return encoder.shallow_modules, encoder.shallow
        if "neck" in train:
            return [encoder.stem], encoder.features
    return [encoder], lambda x: [encoder(x)]


def to_embedding(encoder: nn.Module, features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Kept features -> image_embedding (B, 256, E, E); an embedding that was kept whole passes through."""
    return features[0] if len(features) == 1 else encoder.neck(features)  # type: ignore[operator]


class FeatureKeeper:
    """(key, image maker) -> features (C, h, w) each, from the cache or computed. The encoder must not change meanwhile."""

    def __init__(
        self, encoder: nn.Module, train: Sequence[str], cache_bytes: int, folder: Path | None = None, recipe: str = ""
    ) -> None:
        """recipe: names all that decides which copies of an image are made, beside what is in the keys."""
        self.encoder = encoder
        self.frozen, self.run = frozen_part(encoder, train)
        digest = hashlib.sha256(recipe.encode())
        for name, value in (pair for module in self.frozen for pair in module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.version = digest.hexdigest()[:16]
        self.cache = EmbeddingCache(cache_bytes if folder is None else 0, folder, 2**50 if folder is not None else 0)

    def __call__(self, key: str, make: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        """make: -> image (1, 1, S, S) in [0, 1], sam frame."""
        kept = self.cache.get_or_compute(f"{key}-{self.version}", lambda: self._compute(make()))
        return [torch.tensor(kept[name]) for name in sorted(kept)]

    @torch.inference_mode()
    def _compute(self, image: torch.Tensor) -> dict:
        for module in self.frozen:
            module.eval()
        image = image.to(next(self.frozen[0].parameters()).device)
        features = self.run(normalise(image, self.encoder))
        return {f"f{k}": f[0].float().cpu().numpy() for k, f in enumerate(features)}
