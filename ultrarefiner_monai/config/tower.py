"""The sizes of SAM 3's vision tower."""

from __future__ import annotations

from dataclasses import dataclass

from .reading import check_ranges, require


@dataclass(frozen=True)
class TowerConfig:
    """The sizes of SAM 3's vision tower; the defaults are the published ones, which SAM 3's weights need.

    window: side of an attention window in patches of 14 px; global_blocks: which blocks attend to the whole image instead.
    channels: of the embedding. position_side: side, in patches, of the table of positions, which is tiled over the image.
    """

    width: int = 1024
    depth: int = 32
    heads: int = 16
    mlp_width: int = 4736
    window: int = 24
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    channels: int = 256
    position_side: int = 24

    def __post_init__(self) -> None:
        names = ("width", "depth", "heads", "mlp_width", "window", "position_side")
        check_ranges(self, "sam.tower", at_least_one=names)
        require(self.width % (4 * self.heads) == 0, "sam.tower.width must be divisible by 4 * sam.tower.heads")
        inside = all(0 <= k < self.depth for k in self.global_blocks)
        require(
            inside, f"sam.tower.global_blocks must be below sam.tower.depth ({self.depth}), got {self.global_blocks}"
        )
        require(self.channels >= 2 and self.channels % 2 == 0, "sam.tower.channels must be even")
