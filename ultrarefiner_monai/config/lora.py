"""Low-rank adapters of a frozen image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .reading import check_ranges, require


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (Hu et al., ICLR 2022): each target's W x becomes W x + (alpha / rank) B A x, of which A and B alone learn.

    rank: rows of A. dropout: of x on its way to A. targets: which layers (``models/lora.py`` says what they are in each image
    encoder). The defaults are a light setting; 16, 32, .05 is the other one that is published for SAM's encoders.
    """

    rank: int = 4
    alpha: float = 4.0
    dropout: float = 0.0
    targets: tuple[Literal["qkv", "proj", "mlp"], ...] = ("qkv", "proj", "mlp")

    def __post_init__(self) -> None:
        check_ranges(self, "lora", positive=("alpha",), at_least_one=("rank",))
        require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        require(bool(self.targets), "lora.targets must name at least one of qkv, proj, mlp")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / self.rank
