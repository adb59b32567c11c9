"""What a phase is: its networks, its loss for a batch, its figures for a batch, and what it writes as its result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ultrarefiner_monai.config import CoarseLossConfig, TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_strictly, read_checkpoint, save_system
from ultrarefiner_monai.pipeline.coarse import with_presence
from ultrarefiner_monai.training.data.mixing import cut_and_mix
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL
from ultrarefiner_monai.training.phases.losses import CoarseLoss, teaching_loss

Batch = dict[str, Any]


class Phase(Protocol):
    """One training phase. ``network`` holds everything that is trained or averaged."""

    network: nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Scalars by name; ``loss`` is the one to minimise."""

    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """(n,) tensors by name, per image; ``select`` is what the best epoch has most of."""

    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None: ...

    # What a phase may have besides, and the loop uses where it is there:
    #   start_epoch(epoch: int) -> None: before epoch 1, 2, …; may set requires_grad (parts that train nothing stay in
    #     eval mode). Every group is in the optimiser from the start.
    #   begin(selection): before the first step, with the start weights in place.
    #   judge(epoch, figures): after each epoch's validation.
    #   pictures(network, batch) -> dict[str, torch.Tensor]: image, label and masks, all (B, 1, S, S) of one S, to draw.


class CoarsePhase:
    """Phase 1: the coarse network alone."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.network = build_coarse(config.system.coarse)
        initialise(self.network, config.init)
        self.loss = coarse_loss(config.loss)
        self.teachers = [load_teacher(path, config.system.coarse.image_size) for path in config.loss.teachers]

    def parameter_groups(self) -> list[dict[str, Any]]:
        lr, factor = self.config.optimiser.lr, self.config.optimiser.pretrained_lr_factor
        own = getattr(self.network, "pretrained_parameters", None)
        pretrained = {id(p) for p in own()} if own is not None and factor != 1 else set()
        rest = [p for p in self.network.parameters() if id(p) not in pretrained]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": lr}]
        if pretrained:
            stem = [p for p in self.network.parameters() if id(p) in pretrained]
            groups.append({"params": stem, "lr": lr * factor})
        return groups

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        image, label = cut_and_mix(batch[IMAGE], batch[LABEL], self.config.data.cutmix)
        coarse_logits, loss, presence_logits = coarse_step(network, image, label, self.loss)
        if self.teachers:
            taught = teaching_loss(coarse_logits, presence_logits, *self._taught(image))
            loss = loss + self.config.loss.teacher_weight * taught
        with torch.no_grad():
            figures = selection_figures(coarse_logits[:, 1:2] >= coarse_logits[:, :1], label > 0.5, "coarse")
        # The mean of none is NaN, which the loop leaves out: a batch may hold no lesion.
        return {"loss": loss, **{k: figures[k].mean() for k in ("coarse_dice", "coarse_iou")}}

    @torch.no_grad()
    def _taught(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The teachers' mean for image (B, 1, S, S): coarse_prob (B, 1, S, S), P(there is a lesion) (B,) or None."""
        seen = [with_presence(teacher.to(image.device), image) for teacher in self.teachers]
        prob = torch.stack([logits.float().softmax(dim=1)[:, 1:] for logits, _ in seen]).mean(dim=0)
        presence = [torch.sigmoid(logits.float()) for _, logits in seen if logits is not None]
        return prob, torch.stack(presence).mean(dim=0) if presence else None

    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        coarse_logits, loss, _ = coarse_step(network, batch[IMAGE], batch[LABEL], self.loss)
        coarse_mask = coarse_logits.softmax(dim=1)[:, 1:2] >= 0.5
        figures = selection_figures(coarse_mask, batch[LABEL] > 0.5, "coarse")
        return {**figures, "loss": loss.expand(len(coarse_mask))}

    def pictures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        coarse_logits = network(batch[IMAGE])
        coarse_mask = (coarse_logits[:, 1:2] >= coarse_logits[:, :1]).float()
        return {"image": batch[IMAGE], "label": batch[LABEL], "coarse": coarse_mask}

    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        network = copy.deepcopy(network)
        save_system(path, self.config.system, network, None, meta, half=False)


def coarse_loss(config: CoarseLossConfig) -> CoarseLoss:
    """Phase 1's loss as configured."""
    return CoarseLoss(
        config.ce_weight, config.presence_weight, config.presence_smoothing, normal_weight=config.normal_weight
    )


def coarse_step(
    network: nn.Module, image: torch.Tensor, label: torch.Tensor, loss: CoarseLoss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(coarse_logits (B, 2, S, S), phase 1's loss, presence_logits (B,) where the network has them)."""
    coarse_logits, presence_logits = with_presence(network, image)
    # In mixed precision the losses stay exact.
    coarse_logits, presence_logits = coarse_logits.float(), None if presence_logits is None else presence_logits.float()
    return coarse_logits, loss(coarse_logits, label, presence_logits), presence_logits


def load_teacher(path: str, image_size: int) -> nn.Module:
    """The coarse network of one of our checkpoints, which learns no more. InputError where it sees another image size."""
    stored = read_checkpoint(path)
    if stored.config.coarse.image_size != image_size:
        own = stored.config.coarse.image_size
        raise InputError(f"loss.teachers: {path} sees images of {own} px, system.coarse.image_size is {image_size}")
    network = build_coarse(stored.config.coarse)
    load_strictly(network, stored.part("coarse"), f"loss.teachers: {path}")
    return network.float().eval().requires_grad_(False)


def selection_figures(mask: torch.Tensor, label: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Figures of (B, 1, S, S) masks against labels, both bool.

    ``select`` is the Dice of an image with a lesion, and 1 or 0 for one without: whether it stayed (nearly) unmarked. A
    checkpoint chosen by it neither misses lesions nor invents them. Dice, IoU, precision, recall and accuracy are of the
    images with a lesion.
    """
    mask, label = mask.flatten(1).float(), label.flatten(1).float()
    lesion = label.sum(dim=1) > 0
    overlap, marked, wanted = (mask * label).sum(dim=1), mask.sum(dim=1), label.sum(dim=1)
    dice = 2 * overlap / (marked + wanted).clamp(min=1)
    clean = (mask.mean(dim=1) <= NORMAL_LIMIT).float()
    return {
        "select": torch.where(lesion, dice, clean),
        f"{name}_dice": dice[lesion],
        f"{name}_iou": (overlap / (marked + wanted - overlap).clamp(min=1))[lesion],
        f"{name}_precision": (overlap / marked.clamp(min=1))[lesion],
        f"{name}_recall": (overlap / wanted.clamp(min=1))[lesion],
        f"{name}_accuracy": (mask == label).float().mean(dim=1)[lesion],
        "normal_marked": 1 - clean[~lesion],
    }


def initialise(network: nn.Module, init: str) -> None:
    """Start weights by name or path (``TrainConfig.init``)."""
    if init == "none":
        return
    if init == "imagenet":
        from ultrarefiner_monai.models.coarse.compact import CompactCoarse, load_stem

        assert isinstance(network, CompactCoarse)
        load_stem(network)
        return
    path = Path(init)
    if not path.is_file():
        raise InputError(f"init: expected none, imagenet or the path of a weights file, got {init!r}")
    if path.suffix == ".npz":
        from ultrarefiner_monai.models.coarse.transunet_weights import load_npz

        load_npz(network, path)
    elif path.suffix == ".safetensors":
        from ultrarefiner_monai.models.coarse.compact import CompactCoarse, fit_positions

        state = read_checkpoint(path).part("coarse")
        state = fit_positions(network, state) if isinstance(network, CompactCoarse) else state
        load_strictly(network, state, str(path))
    else:
        from ultrarefiner_monai.models.coarse.transunet_weights import load_pth

        load_pth(network, path)


def build_phase(config: TrainConfig) -> Phase:
    """The phase that a configuration names."""
    from ultrarefiner_monai.training.phases.joint import JointPhase
    from ultrarefiner_monai.training.phases.refiner import RefinerPhase

    kinds: dict[str, Callable[[TrainConfig], Phase]] = {
        "phase1_coarse": CoarsePhase,
        "phase2_refiner": RefinerPhase,
        "phase3_joint": JointPhase,
    }
    return kinds[config.phase](config)
