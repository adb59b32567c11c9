"""Phase ppn: points that propose themselves. Image embedding -> points -> SAM's prompt encoder -> mask decoder.

What learns: the point proposal network, the mask decoder (``refine.train``), and adapters in the image encoder
(``refine.lora``). The coarse network takes no part: its mask is empty here, as it is when the points alone are served.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceFocalLoss
from torch import nn

from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import InputError, Prompts, RefinerOutput
from ultrarefiner_monai.models.checkpoints import Checkpoint, build_points, load_strictly
from ultrarefiner_monai.models.ppn import PointNetwork, ProposedPoints, soft_tokens
from ultrarefiner_monai.models.prompts.moments import ValidHW
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL
from ultrarefiner_monai.training.phases.losses import iou_loss
from ultrarefiner_monai.training.phases.networks import refiner_groups, save_refiner
from ultrarefiner_monai.training.phases.phase import Batch
from ultrarefiner_monai.training.phases.points import point_losses, target_points
from ultrarefiner_monai.training.phases.refiner import RefinerPhase, embed, refined_blind, valid_hw
from ultrarefiner_monai.training.phases.selection import selection_figures

log = logging.getLogger(__name__)


class PpnNetwork(nn.Module):
    """Refiner and point proposal network, trained as one."""

    def __init__(self, refiner: Refiner, points: PointNetwork) -> None:
        super().__init__()
        self.refiner, self.points = refiner, points


class PpnPhase(RefinerPhase):
    """Phase ppn. It begins with a whole system (``init``), and with its point proposal network where that is of one size."""

    def extend(self, stored: Checkpoint) -> None:
        config = self.config
        if stored.config.sam is None and config.refine.sam_init == "none":
            raise InputError(
                f"ppn proposes points to a trained refiner: init must be the .safetensors of a whole system, {config.init} holds "
                "a coarse network alone"
            )
        # All but the network is init's: with refine.train: [] every other answer stays as it is, to the bit.
        self.system = replace(stored.config if config.refine.sam_init == "none" else self.system, ppn=config.system.ppn)
        if config.system.views and config.system.views != self.system.views:
            log.warning(
                "the views are those of %s (%s): ppn adds none", config.init, ", ".join(self.system.views) or "none"
            )
        self.refiner = Refiner(self.refiner.sam, self.system)
        load_strictly(self.refiner.gate, stored.part("gate"), f"{config.init} (gate)")
        load_strictly(self.refiner.views, stored.part("views"), f"{config.init} (views)")
        self.refiner.views.requires_grad_(bool(config.refine.train))
        self.refiner.gate.requires_grad_(False)  # of the automatic result, which has a coarse mask
        self.calibrates = bool(config.refine.train) or config.refine.lora is not None
        points = build_points(self.system)
        if stored.config.ppn == self.system.ppn:
            load_strictly(points, stored.part("ppn"), f"{config.init} (ppn)")
        elif stored.config.ppn is not None:
            log.warning("init: %s has a point proposal network of another size: it begins anew", config.init)
        assert isinstance(points, PointNetwork)
        self.network = PpnNetwork(self.refiner, points)
        self.mask_loss = DiceFocalLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, batch=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        network = _as_ppn(self.network)
        learns = [p for p in network.refiner.parameters() if p.requires_grad]
        groups = refiner_groups(network.refiner, self.config) if learns else []
        return [{"params": list(network.points.parameters()), "lr": self.config.optimiser.lr, "name": "ppn"}, *groups]

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        both, options = _as_ppn(network), self.config.points
        embedding = embed(both.refiner, batch)
        side = 4 * embedding.shape[-1]
        label = resize(batch[LABEL].to(embedding.device), side, side)
        points = both.points(embedding, valid_hw(batch))
        output = answered(both.refiner, embedding, points, valid_hw(batch), soft=True)
        assert output.first_logits is not None
        mask = (self.mask_loss(output.refined_logits, label) + self.mask_loss(output.first_logits, label)) / 2
        iou = iou_loss(output.mask_logits, output.iou_pred, label)
        masks, full = (label[:, 0] >= 0.5).cpu().numpy(), both.refiner.image_size
        count = both.points.config.points
        shown = [(-(-h * side // full), -(-w * side // full)) for h, w in valid_hw(batch)]
        targets = [
            target_points(m, options.inside, count, options.margin, valid)
            for m, valid in zip(masks, shown, strict=True)
        ]
        place, kind = point_losses(points, targets, side)
        loss = options.mask_weight * mask + options.place_weight * place + options.label_weight * kind
        loss = loss + self.config.refine.iou_weight * iou
        parts = {"mask": mask, "place": place, "label": kind, "iou": iou}
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}}

    @torch.no_grad()
    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """As it is served, but for rounding and post-processing: each point has a label, and without one inside there is no lesion."""
        both = _as_ppn(network)
        embedding = embed(both.refiner, batch)
        side = 4 * embedding.shape[-1]
        label = resize(batch[LABEL].to(embedding.device), side, side) >= 0.5
        points = both.points(embedding, valid_hw(batch))
        prob = answered(both.refiner, embedding, points, valid_hw(batch), soft=False).refined_logits.sigmoid()
        found = (points.logits > 0).any(dim=1)
        out = selection_figures((prob >= 0.5) & found[:, None, None, None], label, "points")
        lesion = label.flatten(1).any(dim=1)
        return {**out, "points_inside": share_inside(points, label)[lesion & found]}

    @torch.no_grad()
    def pictures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        both = _as_ppn(network)
        embedding = embed(both.refiner, batch)
        points = both.points(embedding, valid_hw(batch))
        prob = answered(both.refiner, embedding, points, valid_hw(batch), soft=False).refined_prob
        return {
            "image": batch[IMAGE].to(embedding.device),
            "label": (batch[LABEL] >= 0.5).float().to(embedding.device),
            "points": (prob >= 0.5).float(),
        }

    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        both = _as_ppn(network)
        # The points are part of what was learnt: the adapter alone would not be it.
        save_refiner(path, self.system, self.coarse, both.refiner, meta, self.config.refine.lora, both.points, False)


def answered(
    refiner: Refiner, embedding: torch.Tensor, points: ProposedPoints, valid: ValidHW, soft: bool
) -> RefinerOutput:
    """The refiner's output for proposed points and no coarse mask. soft: with a gradient to the points; else as it is served,
    each point with the label that is likelier."""
    places = points.pixels(refiner.image_size).detach()
    hard = Prompts(points_xy=places, point_labels=(points.logits.detach() > 0).long())
    tokens = soft_tokens(refiner.sam, points) if soft else None
    return refined_blind(refiner, embedding, hard, valid, tokens=tokens)


def share_inside(points: ProposedPoints, label: torch.Tensor) -> torch.Tensor:
    """(B,): of the points that claim to lie in the lesion the share that does; 0 where none claims it. label: (B, 1, M, M) bool."""
    side = label.shape[-1]
    x, y = (points.xy * side).long().clamp(0, side - 1).unbind(dim=2)
    rows = torch.arange(len(label), device=label.device)[:, None]
    claimed = points.logits > 0
    right = label[:, 0][rows, y, x] & claimed
    return right.sum(dim=1) / claimed.sum(dim=1).clamp(min=1)


def _as_ppn(network: nn.Module) -> PpnNetwork:
    assert isinstance(network, PpnNetwork), type(network)
    return network
