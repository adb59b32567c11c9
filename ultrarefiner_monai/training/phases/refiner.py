"""Phase 2: the refiner learns to mend coarse masks, by itself and with a user's clicks.

Every item is played as it is served: without prompts (one pass, prompts derived from the coarse mask) or with clicks and
perhaps a box (two passes). The coarse mask goes through the coarse frame on its way, as a real one does.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ultrarefiner_monai.config import RefineConfig, TrainConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Prompts, RefinerOutput
from ultrarefiner_monai.datasets.datalist import Split
from ultrarefiner_monai.models.checkpoints import Checkpoint
from ultrarefiner_monai.models.lora import inject
from ultrarefiner_monai.models.prompts.moments import ValidHW
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.network import encode
from ultrarefiner_monai.pipeline.refine import refine
from ultrarefiner_monai.training.data.features import to_embedding
from ultrarefiner_monai.training.data.loaders import refiner_loaders
from ultrarefiner_monai.training.data.predictions import predicted_prob
from ultrarefiner_monai.training.data.refining import FEATURES, PROPOSAL, VALID, VIEW
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL
from ultrarefiner_monai.training.phases.clicked import dice_after, loss_with_clicks, missed
from ultrarefiner_monai.training.phases.losses import RefinerLoss, change_penalty, iou_loss, overlap
from ultrarefiner_monai.training.phases.networks import (
    as_refiner,
    build_refiner,
    refiner_groups,
    save_refiner,
    set_trainable,
    start_system,
    with_points,
)
from ultrarefiner_monai.training.phases.phase import Batch, Loaders, Phase
from ultrarefiner_monai.training.phases.selection import selection_figures


class RefinerPhase(Phase):
    """Phase 2. ``network`` is the Refiner; the coarse network stands beside it, frozen, and goes into the checkpoint."""

    coarse_size: int = 0  # the side of the coarse network's image in a batch; 0: it is not needed

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.system, self.coarse, stored = start_system(config)
        self.refiner = build_refiner(config, self.system, self.coarse, stored)
        self.system, self.ppn = with_points(config, self.system, stored)
        self.network: nn.Module = self.refiner
        self.loss = RefinerLoss(config.refine.focal_weight)
        if config.refine.lora is not None:
            inject(self.refiner.sam.image_encoder, config.refine.lora)
        set_trainable(self.network, config.refine.train)
        self.extend(stored)

    def extend(self, stored: Checkpoint) -> None:
        """What a phase that builds on this one adds to its networks. stored: ``init``, which is read once."""
        return

    # --- what the loop asks for ---------------------------------------------------------------------------------------

    def loaders(self, split: Split, out: Path) -> Loaders:
        proposed = partial(predicted_prob, self.coarse, self.system)
        return refiner_loaders(self.config, split, out, self.refiner.sam.image_encoder, proposed, self.coarse_size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return refiner_groups(self.network, self.config)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        # Drawn from torch's generator, which the engine seeds per iteration: a resumed run plays the same games.
        rng = np.random.default_rng(int(torch.randint(2**31 - 1, (1,))))
        refiner = as_refiner(network)
        embedding = embed(refiner, batch)
        options = self.config.refine
        return play(refiner, embedding, in_sam_frame(batch, embedding.device), batch, options, self.loss, rng)

    @torch.no_grad()
    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        refiner = as_refiner(network)
        embedding = embed(refiner, batch)
        return refiner_figures(refiner, embedding, in_sam_frame(batch, embedding.device), batch)

    def pictures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        refiner = as_refiner(network)
        return refiner_pictures(refiner, embed(refiner, batch), batch[PROPOSAL], batch)

    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        save_refiner(path, self.system, self.coarse, as_refiner(network), meta, self.config.refine.lora, self.ppn)


# --- a step -----------------------------------------------------------------------------------------------------------


def embed(refiner: Refiner, batch: Batch) -> torch.Tensor:
    """The image embedding of a batch, from kept features or from the image; with what its views add."""
    device = next(refiner.parameters()).device
    if FEATURES in batch:
        found = to_embedding(refiner.sam.image_encoder, [f.to(device).float() for f in batch[FEATURES]]).float()
    else:
        found = encode(refiner.sam, batch[IMAGE].to(device)).float()
    return refiner.views(found, batch[VIEW])


def in_sam_frame(batch: Batch, device: torch.device) -> torch.Tensor:
    """What stands for the coarse network's result: (B, 1, S, S) in [0, 1]."""
    side = batch[LABEL].shape[-1]
    return resize(batch[PROPOSAL].to(device), side, side)


def valid_hw(batch: Batch, index: torch.Tensor | None = None) -> list[tuple[int, int]]:
    """(rows, columns) that the image covers, of all items or of some."""
    rows = batch[VALID] if index is None else batch[VALID][index.cpu()]
    return [(h, w) for h, w in rows.tolist()]  # a GPU is waited for once


def refined_blind(
    refiner: Refiner,
    embedding: torch.Tensor,
    prompts: Prompts,
    valid: ValidHW,
    passes: int = 2,
    tokens: torch.Tensor | None = None,
) -> RefinerOutput:
    """The refiner's output for prompts alone: of the coarse network there is an empty mask. Otherwise as ``pipeline.refine``."""
    side = refiner.image_size
    empty = embedding.new_zeros(len(embedding), 1, side, side)
    return refine(refiner, refiner.config, embedding, empty, prompts, valid_hw=valid, passes=passes, tokens=tokens)


def play(
    refiner: Refiner,
    embedding: torch.Tensor,
    coarse_prob: torch.Tensor,
    batch: Batch,
    options: RefineConfig,
    criterion: RefinerLoss,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Refine some items without prompts and some with clicks; the losses of both. batch: LABEL and VALID."""
    device = embedding.device
    side = 4 * embedding.shape[-1]
    target = resize(batch[LABEL].to(device), side, side)
    truth = target >= 0.5
    present = truth.flatten(1).any(dim=1)
    clicked = present & torch.as_tensor(rng.random(len(target)) < options.click_share, device=device)
    zero = embedding.sum() * 0
    out = {"mask": zero, "iou": zero, "change": zero, "clicks": zero}
    alone = (~clicked).nonzero()[:, 0]
    if len(alone):
        coarse = coarse_prob[alone]
        if options.overlooked_share:
            coarse = missed(coarse, target[alone], options.overlooked_share, rng)
        result = refiner(embedding[alone], coarse, None, valid_hw=valid_hw(batch, alone))
        small = resize(coarse, side, side)
        final = final_logits(refiner, small, result.refined_logits)
        share = len(alone) / len(target)
        out["mask"] = share * criterion(final, target[alone])
        out["iou"] = share * iou_loss(result.mask_logits, result.iou_pred, target[alone])
        out["change"] = share * change_penalty(options.penalty, torch.sigmoid(final), small, target[alone])
    given = clicked.nonzero()[:, 0]
    if len(given):
        frame = (embedding[given], coarse_prob[given], valid_hw(batch, given))
        share = len(given) / len(target)
        loss, second = loss_with_clicks(refiner, frame, target[given], criterion, options, rng)
        out["clicks"] = share * loss
        out["iou"] = out["iou"] + share * iou_loss(second.mask_logits, second.iou_pred, target[given])
    loss = out["mask"] + out["clicks"] + options.iou_weight * out["iou"] + options.penalty_weight * out["change"]
    return {"loss": loss, **{k: v.detach() for k, v in out.items()}}


def final_logits(refiner: Refiner, coarse_prob: torch.Tensor, refined_logits: torch.Tensor) -> torch.Tensor:
    """The refined logits, or those of the gated probability where there is a gate; all (B, 1, M, M)."""
    if refiner.config.gate.mode == "off":
        return refined_logits
    prob = refiner.final_prob(coarse_prob, torch.sigmoid(refined_logits))
    return torch.logit(prob.clamp(1e-4, 1 - 1e-4))


# --- figures ----------------------------------------------------------------------------------------------------------


def refiner_figures(
    refiner: Refiner, embedding: torch.Tensor, coarse_prob: torch.Tensor, batch: Batch, clicks: tuple[int, ...] = (1, 3)
) -> dict[str, torch.Tensor]:
    """Dice at M x M before and after refining, without and with a careful user's clicks; ``select`` is their mean for an
    image with a lesion, and whether it stayed unmarked for one without."""
    side, valid = 4 * embedding.shape[-1], valid_hw(batch)
    label = (resize(batch[LABEL].to(embedding.device), side, side) >= 0.5).float()
    lesion = label.flatten(1).amax(dim=1) > 0
    small = resize(coarse_prob, side, side)
    alone = refiner(embedding, coarse_prob, None, valid_hw=valid)
    prob = torch.sigmoid(final_logits(refiner, small, alone.refined_logits))
    own = selection_figures(prob >= 0.5, label > 0.5, "refined")
    select = [own.pop("select")]
    out = {"coarse_dice": overlap((small >= 0.5).float(), label)[lesion], **own}
    frame = (embedding, coarse_prob, valid)
    for count in clicks:
        dice = torch.where(lesion, dice_after(refiner, frame, prob, label > 0.5, count), select[0])
        select.append(dice)
        out[f"dice_{count}_click{'s' if count > 1 else ''}"] = dice[lesion]
    return {"select": torch.stack(select).mean(dim=0), **out}


@torch.no_grad()
def refiner_pictures(
    refiner: Refiner, embedding: torch.Tensor, coarse_prob: torch.Tensor, batch: Batch
) -> dict[str, torch.Tensor]:
    """What is drawn: image, label, and the masks before and after refining; (B, 1, S, S)."""
    coarse_prob = coarse_prob.to(embedding.device)
    refined = refiner(embedding, coarse_prob, None, valid_hw=valid_hw(batch)).refined_prob
    final = refiner.final_prob(coarse_prob, refined)
    masks = {"coarse": (coarse_prob >= 0.5).float(), "refined": (final >= 0.5).float()}
    return {
        "image": batch[IMAGE].to(embedding.device),
        "label": (batch[LABEL] >= 0.5).float().to(embedding.device),
        **masks,
    }
