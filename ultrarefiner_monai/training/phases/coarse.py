"""Phase 1: the coarse network learns to outline lesions by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultrarefiner_monai.config import CoarseLossConfig, TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Split
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_strictly, read_checkpoint, save_system
from ultrarefiner_monai.pipeline.coarse import with_presence
from ultrarefiner_monai.training.data.loaders import coarse_loaders
from ultrarefiner_monai.training.data.mixing import cut_and_mix
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL
from ultrarefiner_monai.training.phases.losses import CoarseLoss, teaching_loss
from ultrarefiner_monai.training.phases.phase import Batch, Loaders, Phase
from ultrarefiner_monai.training.phases.selection import selection_figures


class CoarsePhase(Phase):
    """Phase 1: the coarse network alone."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.network = build_coarse(config.system.coarse)
        initialise(self.network, config.init)
        self.loss = coarse_loss(config.loss)
        self.teachers = [load_teacher(path, config.system.coarse.image_size) for path in config.loss.teachers]

    def loaders(self, split: Split, out: Path) -> Loaders:
        return coarse_loaders(self.config, split)

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
            loss = loss + teaching_loss(coarse_logits, presence_logits, *self._taught(image))
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
