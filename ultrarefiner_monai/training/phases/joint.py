"""Phase 3: both networks together. The refined mask's gradient reaches the coarse network through points, box and mask.

What protects the coarse network: that gradient is scaled, its weights are anchored to where they
began, either side may stand still for the first epochs, and a fall of the coarse Dice is said loudly.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.training.data.refining import COARSE_IMAGE
from ultrarefiner_monai.training.data.transforms import LABEL
from ultrarefiner_monai.training.loop.epoch_means import Means
from ultrarefiner_monai.training.phases.clicked import loss_with_clicks
from ultrarefiner_monai.training.phases.coarse import coarse_loss, coarse_step
from ultrarefiner_monai.training.phases.losses import RefinerLoss, iou_loss
from ultrarefiner_monai.training.phases.networks import refiner_groups, refiner_parts, save_refiner, set_trainable
from ultrarefiner_monai.training.phases.phase import Batch
from ultrarefiner_monai.training.phases.refiner import (
    RefinerPhase,
    embed,
    final_logits,
    refiner_figures,
    refiner_pictures,
    valid_hw,
)

log = logging.getLogger(__name__)
WARN_DROP = 0.02  # of the coarse Dice on the selection images: said loudly


class JointNetwork(nn.Module):
    """Coarse network and refiner, trained as one."""

    def __init__(self, coarse: nn.Module, refiner: Refiner) -> None:
        super().__init__()
        self.coarse, self.refiner = coarse, refiner


class JointPhase(RefinerPhase):
    """Phase 3. ``before``: the figures of the selection images at the start, for the report."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        joint = config.joint
        if joint.refined_weight == 0 and joint.coarse_weight == 0:
            raise InputError("joint: coarse_weight and refined_weight are both 0, there is nothing to learn")
        self.coarse.requires_grad_(True)
        self.network = JointNetwork(self.coarse, self.refiner)
        self.coarse_size = self.system.coarse.image_size
        self.coarse_loss = coarse_loss(config.loss)
        self.refined_loss = RefinerLoss(focal_weight=0.0)
        self.start = {k: v.detach().clone() for k, v in self.coarse.named_parameters()}
        self.before: dict[str, float] = {}

    # --- what the loop asks for ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, selection: DataLoader) -> None:
        """Measure where both stand before the first step. Called once, with the start weights in place."""
        self.network.eval()
        device = next(self.network.parameters()).device
        self.start = {k: v.to(device) for k, v in self.start.items()}  # for the anchor, copied once
        means = Means(device)
        for batch in selection:
            means.add(self.figures(self.network, batch))
        self.before = means.compute()
        log.info("before joint training: %s", {k: round(v, 4) for k, v in self.before.items()})

    def start_epoch(self, epoch: int) -> None:
        joint = self.config.joint
        self.coarse.requires_grad_(epoch > joint.freeze_coarse_epochs)
        set_trainable(self.refiner, self.config.refine.train)
        if epoch <= joint.freeze_refiner_epochs:
            for name, parameters in refiner_parts(self.refiner).items():
                heads = joint.freeze_refiner == "all_but_heads" and name == "mask_decoder"
                for parameter in parameters:
                    parameter.requires_grad_(False)
                if heads:
                    decoder = self.refiner.sam.mask_decoder
                    for head in (decoder.output_hypernetworks_mlps, decoder.iou_prediction_head):
                        head.requires_grad_(True)
        if not any(p.requires_grad for p in self.network.parameters()):
            raise InputError(
                f"joint: in epoch {epoch} both networks are frozen (freeze_coarse_epochs, freeze_refiner_epochs)"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        lr, joint = self.config.optimiser.lr, self.config.joint
        coarse = {"params": list(self.coarse.parameters()), "lr": lr * joint.coarse_lr_factor, "name": "coarse"}
        return [coarse, *refiner_groups(self.refiner, self.config)]

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31 - 1, (1,))))
        assert isinstance(network, JointNetwork)
        refiner, joint, options = network.refiner, self.config.joint, self.config.refine
        embedding = embed(refiner, batch)
        coarse_loss, coarse_prob = self._coarse(network.coarse, batch)
        side = batch[LABEL].shape[-1]
        label = (batch[LABEL].to(embedding.device) >= 0.5).float()
        prob = resize(_scaled_gradient(coarse_prob, joint.coarse_grad_scale), side, side)
        result = refiner(embedding, prob, None, valid_hw=valid_hw(batch))
        small = resize(prob, *result.refined_logits.shape[-2:])
        final = final_logits(refiner, small, result.refined_logits)
        refined_loss = self.refined_loss(resize(final, side, side), label)
        iou = iou_loss(result.mask_logits, result.iou_pred, resize(label, *final.shape[-2:]))
        clicks = self._clicks(refiner, embedding, prob.detach(), batch, label, rng)
        anchor = self._anchor(network.coarse)
        loss = joint.coarse_weight * coarse_loss + joint.refined_weight * (refined_loss + clicks)
        loss = loss + options.iou_weight * iou + joint.anchor * anchor
        parts = {"coarse": coarse_loss, "refined": refined_loss, "clicks": clicks, "iou": iou, "anchor": anchor}
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}}

    @torch.no_grad()
    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        assert isinstance(network, JointNetwork)
        return refiner_figures(
            network.refiner, embed(network.refiner, batch), _coarse_prob(network.coarse, batch), batch
        )

    def pictures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        assert isinstance(network, JointNetwork)
        return refiner_pictures(
            network.refiner, embed(network.refiner, batch), _coarse_prob(network.coarse, batch), batch
        )

    def judge(self, epoch: int, figures: dict[str, float]) -> None:
        """After each epoch's validation: warn when the coarse network got worse."""
        drop = self.before.get("coarse_dice", float("nan")) - figures["coarse_dice"]
        if drop > WARN_DROP:
            log.warning(
                "epoch %d: the coarse Dice on the selection images is %.4f, %.4f below where joint training began (%.4f); "
                "lower joint.coarse_lr_factor or joint.coarse_grad_scale, or raise joint.anchor",
                epoch,
                figures["coarse_dice"],
                drop,
                self.before["coarse_dice"],
            )

    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        assert isinstance(network, JointNetwork)
        about = {**meta, "before": self.before}
        # The coarse network learnt too: an adapter alone would not be what was learnt.
        save_refiner(
            path, self.system, network.coarse, network.refiner, about, self.config.refine.lora, self.ppn, False
        )

    # --- parts of a step ----------------------------------------------------------------------------------------------

    def _coarse(self, coarse: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Phase 1's loss and coarse_prob (B, 1, c, c) in [0, 1], with its graph."""
        device = next(coarse.parameters()).device
        image, size = batch[COARSE_IMAGE].to(device), self.coarse_size
        label = (resize(batch[LABEL].to(device), size, size) >= 0.5).float()
        coarse_logits, loss, _ = coarse_step(coarse, image, label, self.coarse_loss)
        return loss, coarse_logits.softmax(dim=1)[:, 1:2]

    def _clicks(
        self,
        refiner: Refiner,
        embedding: torch.Tensor,
        coarse_prob: torch.Tensor,
        batch: Batch,
        label: torch.Tensor,
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """The loss of some lesion images with clicks, so that joint training does not unlearn them; refiner only."""
        present = label.flatten(1).amax(dim=1) > 0
        chosen = present & torch.as_tensor(rng.random(len(label)) < self.config.refine.click_share, device=label.device)
        index = chosen.nonzero()[:, 0]
        if not len(index):
            return embedding.sum() * 0
        side = 4 * embedding.shape[-1]
        target = resize(batch[LABEL].to(embedding.device)[index], side, side)
        frame = (embedding[index], coarse_prob[index], valid_hw(batch, index))
        loss, _ = loss_with_clicks(refiner, frame, target, self.loss, self.config.refine, rng)
        return loss * len(index) / len(label)

    def _anchor(self, coarse: nn.Module) -> torch.Tensor:
        """Sum over the coarse network's weights of (w - w_0)^2."""
        terms = [(p - self.start[k].to(p.device)).square().sum() for k, p in coarse.named_parameters()]
        return torch.stack(terms).sum()


def _coarse_prob(coarse: nn.Module, batch: Batch) -> torch.Tensor:
    """The coarse network's prediction of a batch, (B, 1, S, S) in [0, 1], sam frame."""
    side = batch[LABEL].shape[-1]
    image = batch[COARSE_IMAGE].to(next(coarse.parameters()).device)
    return resize(coarse(image).float().softmax(dim=1)[:, 1:2], side, side)


def _scaled_gradient(x: torch.Tensor, scale: float) -> torch.Tensor:
    """x, with its gradient multiplied by ``scale``."""
    return x * scale + x.detach() * (1 - scale)
