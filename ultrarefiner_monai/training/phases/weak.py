"""Phase weak_encoder: an image encoder learns from two boxes around each lesion, and no mask.

A teacher (running mean of the encoder) is prompted with points between the boxes. Of the images on which its mask is sure the
student's features are compared place by place (``contrast.py``). Decoder and prompt encoder stand still. Masks are never learnt
from, and do not choose the epoch; where the data folder has some, the Dice that is shown is theirs.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.core.geometry import Letterbox, resize
from ultrarefiner_monai.core.types import InputError, Prompts
from ultrarefiner_monai.datasets.boxes import BoxPair, read_boxes
from ultrarefiner_monai.datasets.datalist import Item, Split, names_of
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.compact import LiteSamEncoder
from ultrarefiner_monai.models.sam.network import normalise
from ultrarefiner_monai.models.sam.sam3 import Sam3Encoder
from ultrarefiner_monai.training.data.loaders import plain_loader, training_loader
from ultrarefiner_monai.training.data.refining import VIEW, RefineDataset, RefineSample
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL
from ultrarefiner_monai.training.loop.steps import TrainingError
from ultrarefiner_monai.training.phases.contrast import (
    ProjectionHead,
    SamBox,
    box_masks,
    contrast,
    entropy,
    ring_points,
)
from ultrarefiner_monai.training.phases.losses import overlap, soft_dice_loss
from ultrarefiner_monai.training.phases.networks import save_refiner
from ultrarefiner_monai.training.phases.phase import Batch, Loaders
from ultrarefiner_monai.training.phases.refiner import RefinerPhase, refined_blind, valid_hw


class WeakNetwork(nn.Module):
    """The refiner whose image encoder learns (the student), its projection head, and the teacher."""

    def __init__(self, refiner: Refiner, width: int) -> None:
        super().__init__()
        self.refiner = refiner
        self.head = ProjectionHead(256, width)
        self.teacher = copy.deepcopy(refiner.sam.image_encoder).requires_grad_(False)  # type: ignore[arg-type]

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher moves towards the student: t = momentum t + (1 - momentum) s."""
        student = self.refiner.sam.image_encoder
        for own, other in zip(self.teacher.parameters(), student.parameters(), strict=True):
            own.lerp_(other, 1 - momentum)


class WeakPhase(RefinerPhase):
    """Phase weak_encoder."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        if self.system.refiner.roi:
            raise InputError("weak_encoder learns from embeddings of whole images: refiner.roi must be off")
        self.system, self.ppn = replace(self.system, ppn=None), None  # it read the encoder as it was
        self.refiner.requires_grad_(False)
        learning(self.refiner.sam.image_encoder, config.weak.last_blocks)  # type: ignore[arg-type]
        self.network = WeakNetwork(self.refiner, config.weak.width)
        self.first = copy.deepcopy(self.refiner.sam.image_encoder).eval().requires_grad_(False)  # type: ignore[operator, union-attr]
        self.boxes: dict[str, tuple[SamBox, SamBox]] = {}
        self._trusted = 1.0  # in the epoch before

    # --- what the loop asks for ---------------------------------------------------------------------------------------

    def loaders(self, split: Split, out: Path) -> Loaders:
        sam = self.config.system.sam
        assert sam is not None
        known = [*split.train, *split.select, *split.report]  # a table may hold all images of the data
        self.boxes = boxes_of(self.config.weak.boxes, known, sam.image_size)
        parts = []
        for items in (split.train, split.select):
            named = [(n, i) for n, i in zip(names_of(items), items, strict=True) if n in self.boxes]
            parts.append(([RefineSample(n, i.image, i.mask, view=i.view) for n, i in named], [i.set for _, i in named]))
        if not parts[0][0] or not parts[1][0]:
            raise InputError(
                f"{self.config.weak.boxes} has boxes for {len(parts[0][0])} training and {len(parts[1][0])} selection images; at "
                "least one of each is needed"
            )
        training = RefineDataset(parts[0][0], sam.image_size, self.config.seed)
        selection = RefineDataset(parts[1][0], sam.image_size, self.config.seed)
        return (
            training_loader(training, self.config.batch_size, self.config.seed, self.config.data.workers),
            plain_loader(selection, self.config.batch_size, parts[1][1]),
        )

    def start_epoch(self, epoch: int) -> None:
        if not self._trusted:
            raise TrainingError(
                f"in epoch {epoch - 1} the teacher was sure of no image (mean entropy above weak.most_entropy "
                f"{self.config.weak.most_entropy:g}): nothing was learnt; raise it, or start from weights that know such images"
            )
        self._trusted = 0.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        network = _as_weak(self.network)
        encoder = [p for p in network.refiner.parameters() if p.requires_grad]
        lr = self.config.optimiser.lr
        return [{"params": encoder, "lr": lr, "name": "encoder"}, {"params": list(network.head.parameters()), "lr": lr}]

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        both, options = _as_weak(network), self.config.weak
        still_norms(both)
        both.follow(options.momentum)
        image = normalise(batch[IMAGE].to(next(both.head.parameters()).device), both.refiner.sam.image_encoder)
        big, small = ([self.boxes[name][k] for name in batch[ID]] for k in (0, 1))
        with torch.no_grad():
            taught, first = both.teacher(image), self._first(image)
            prompts = self._prompts(big, small, image)
            pseudo = self._answer(both.refiner, taught, prompts, batch).refined_logits
        valid = covered(valid_hw(batch), pseudo, both.refiner.image_size)
        sure = entropy(pseudo, valid) <= options.most_entropy
        embedding = both.refiner.sam.image_encoder(image)
        places = self._contrast(both, embedding, taught, pseudo, sure, (big, small), valid)
        pulled = torch.stack(places).mean() if places else embedding.sum() * 0
        kept = F.mse_loss(embedding, first)
        shown = self._monitors(both.refiner, embedding.detach(), prompts, pseudo, batch)
        self._trusted += float(sure.float().sum())
        loss = options.contrast_weight * pulled + options.distillation_weight * kept
        loss = loss + shown["mask"] + options.iou_weight * shown["iou"]  # for the total that is shown: no gradient
        parts = {"contrast": pulled, "distillation": kept, **shown, "trusted": sure.float().mean()}
        return {"loss": loss, **{k: v.detach() for k, v in parts.items()}}

    @torch.no_grad()
    def figures(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """``select``: how well the mask of a point in the small box's middle lies between the boxes. ``point_dice`` is for show."""
        refiner = _as_weak(network).refiner
        image = batch[IMAGE].to(next(refiner.parameters()).device)
        big, small = ([self.boxes[name][k] for name in batch[ID]] for k in (0, 1))
        middle = torch.tensor([[[(x1 + x2) / 2, (y1 + y2) / 2]] for x1, y1, x2, y2 in small])
        prompts = Prompts(middle.to(image), torch.ones(len(small), 1, dtype=torch.long, device=image.device))
        output = self._answer(refiner, refiner.embed(image), prompts, batch)
        mask = (output.refined_logits > 0)[:, 0]
        inner, outer = (box_masks(b, mask.shape[-1], refiner.image_size).to(mask.device) for b in (small, big))
        held = (mask & inner).flatten(1).sum(dim=1) / inner.flatten(1).sum(dim=1).clamp(min=1)
        within = (mask & outer).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1)
        select = 2 * held * within / (held + within).clamp(min=1e-6)
        label = resize(batch[LABEL].to(image.device), *mask.shape[-2:]) >= 0.5
        dice = overlap(mask[:, None].float(), label.float())[label.flatten(1).any(dim=1)]
        return {"select": select, "in_small_box": held, "within_big_box": within, "point_dice": dice}

    def save(self, network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
        save_refiner(path, self.system, self.coarse, _as_weak(network).refiner, meta)

    def pictures(self, network: nn.Module, batch: Batch) -> None:  # type: ignore[override]
        return None

    # --- parts of a step ----------------------------------------------------------------------------------------------

    def _first(self, image: torch.Tensor) -> torch.Tensor:
        self.first = self.first.to(image.device)
        return self.first(image)

    def _prompts(self, big: list[SamBox], small: list[SamBox], like: torch.Tensor) -> Prompts:
        xy = ring_points(big, small, self.config.weak.points)
        return Prompts(xy.to(like), torch.ones(xy.shape[:2], dtype=torch.long, device=like.device))

    def _answer(self, refiner: Refiner, embedding: torch.Tensor, prompts: Prompts, batch: Batch) -> Any:
        """The refiner's output for points alone, in one pass."""
        seen = refiner.views(embedding, batch[VIEW])
        return refined_blind(refiner, seen, prompts, valid_hw(batch), passes=1)

    def _contrast(
        self,
        network: WeakNetwork,
        embedding: torch.Tensor,
        taught: torch.Tensor,
        pseudo: torch.Tensor,
        sure: torch.Tensor,
        boxes: tuple[list[SamBox], list[SamBox]],
        valid: torch.Tensor,
    ) -> list[torch.Tensor]:
        """InfoNCE of each image whose pseudo-mask is trusted."""
        options, grid = self.config.weak, embedding.shape[-1]
        student = network.head(embedding)
        with torch.no_grad():
            teacher = network.head(taught)
        side = network.refiner.image_size
        big, small = (box_masks(b, grid, side).to(embedding.device) for b in boxes)
        mask = F.adaptive_avg_pool2d((pseudo > 0).float(), grid)[:, 0] >= 0.5
        there = F.adaptive_avg_pool2d(valid.float(), grid)[:, 0] >= 0.5
        found = []
        for k in sure.nonzero()[:, 0].tolist():
            one = contrast(
                student[k],
                teacher[k],
                mask[k],
                small[k],
                big[k],
                there[k],
                options.anchors,
                options.negatives,
                options.temperature,
            )
            if one is not None:
                found.append(one)
        return found

    @torch.no_grad()
    def _monitors(
        self, refiner: Refiner, embedding: torch.Tensor, prompts: Prompts, pseudo: torch.Tensor, batch: Batch
    ) -> dict[str, torch.Tensor]:
        """How the student's masks differ from the teacher's (BCE + Dice), and its expected IoU from the real one (MSE)."""
        output = self._answer(refiner, embedding, prompts, batch)
        target, logits = (pseudo > 0).float(), output.refined_logits
        mask = F.binary_cross_entropy_with_logits(logits, target) + soft_dice_loss(torch.sigmoid(logits), target).mean()
        real = overlap((logits > 0).float(), target, "iou")
        weights = torch.softmax(output.iou_pred / refiner.config.refiner.selection_temperature, dim=1)
        return {"mask": mask, "iou": F.mse_loss((weights * output.iou_pred).sum(dim=1), real)}


# --- helpers ----------------------------------------------------------------------------------------------------------


def boxes_of(path: str, items: list[Item], side: int) -> dict[str, tuple[SamBox, SamBox]]:
    """name -> (big, small) in a sam frame of ``side`` pixels, of the items that the table has. Raises InputError as ``read_boxes``."""
    from PIL import Image

    if not path:
        raise InputError(
            "weak.boxes must name a CSV file of boxes: `ultrarefiner boxes --data DIR` makes one from masks"
        )
    sizes: dict[str, tuple[int, int]] = {}
    for name, item in zip(names_of(items), items, strict=True):
        with Image.open(item.image) as picture:
            sizes[name] = picture.height, picture.width
    return {n: _in_sam_frame(pair, Letterbox(*sizes[n], side)) for n, pair in read_boxes(Path(path), sizes).items()}


def _in_sam_frame(pair: BoxPair, letterbox: Letterbox) -> tuple[SamBox, SamBox]:
    # The box's outer edges: its pixels are included.
    edges = torch.tensor([pair.big, pair.small]) + torch.tensor([-0.5, -0.5, 0.5, 0.5])
    big, small = letterbox.boxes(edges).tolist()
    return (big[0], big[1], big[2], big[3]), (small[0], small[1], small[2], small[3])


def learning(encoder: nn.Module, last_blocks: int | None) -> None:
    """Only so many of the encoder's last blocks, and what follows them, receive gradients; None: all of it."""
    encoder.requires_grad_(last_blocks is None)
    if last_blocks is None:
        return
    if isinstance(encoder, LiteSamEncoder):
        blocks, after = (
            list(encoder.stem.blocks),
            [encoder.fine, encoder.middle, encoder.join, encoder.mixers, encoder.norm],
        )
    elif isinstance(encoder, Sam3Encoder):
        tower = encoder.backbone.tower
        blocks, after = list(tower.backbone.layers), [tower.neck, encoder.project]  # type: ignore
    else:
        blocks, after = list(encoder.blocks), [encoder.neck]  # type: ignore[arg-type]
    if last_blocks > len(blocks):
        raise InputError(f"weak.last_blocks: this image encoder has {len(blocks)} blocks, got {last_blocks}")
    for module in (*blocks[-last_blocks:], *after):
        module.requires_grad_(True)  # type: ignore[union-attr]


def still_norms(network: nn.Module) -> None:
    """Batch norms keep their statistics: those of a few images would change what the frozen decoder reads."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def covered(sizes: list[tuple[int, int]], like: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 1, M, M) bool: where there is image, of sizes in the sam frame, whose side is ``side``."""
    places = torch.arange(like.shape[-1], device=like.device) * (side / like.shape[-1])
    rows, columns = places[None, :, None], places[None, None, :]
    limits = torch.tensor(sizes, device=like.device)
    return ((rows < limits[:, :1, None]) & (columns < limits[:, 1:, None]))[:, None]


def _as_weak(network: nn.Module) -> WeakNetwork:
    assert isinstance(network, WeakNetwork), type(network)
    return network
