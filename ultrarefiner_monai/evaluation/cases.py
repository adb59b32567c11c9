"""One evaluated image, and what the tables say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.interaction.robot import LEVELS, Game
from ultrarefiner_monai.masks.metrics import Scores, cell
from ultrarefiner_monai.pipeline.proposal import Proposal


@dataclass
class Case:
    """One evaluated image. coarse_mask: (H, W) where a refiner answered, else None. game: where the robot played.
    columns: what its rows say of its origin: ``set`` where there are several, ``device`` where any is known."""

    item: Item
    scores: Scores
    coarse: Scores
    proposal: Proposal
    coarse_mask: np.ndarray | None = None
    game: Game | None = None
    columns: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        p = self.proposal
        return {
            "id": self.item.id,
            **{name: getattr(self.item, name) for name in self.columns},
            "class": self.item.category,
            "lesion": int(self.item.has_lesion),
            **_figures(self.scores),
            **{f"coarse_{name}": value for name, value in _figures(self.coarse).items()},
            "iou_pred": cell(p.iou_pred),
            "uncertainty": cell(p.uncertainty),
            "presence": cell(p.presence),
            "safety_rule": p.safety_rule or "",
            "seconds": cell(p.timings.get("total", 0.0)),
        }

    def robot_row(self, game: Game) -> dict[str, Any]:
        """clicks: ``x y +`` and ``x y -``, in the order they were made."""
        needed = {f"noc_{100 * level:.0f}": game.clicks_to(level) for level in LEVELS}
        return {
            "id": self.item.id,
            **{name: getattr(self.item, name) for name in self.columns},
            "class": self.item.category,
            **{name: "" if count is None else count for name, count in needed.items()},
            **{f"dice_{k}": cell(dice) for k, dice in enumerate(game.dice)},
            "clicks": "; ".join(f"{x} {y} {'+' if positive else '-'}" for x, y, positive in game.clicks),
        }


def _figures(scores: Scores) -> dict[str, str]:
    return {k: cell(v) for k, v in scores.to_dict().items()}
