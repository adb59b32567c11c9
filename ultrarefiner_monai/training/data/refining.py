"""What phases 2 and 3 train on: an image (or its kept features), its label and a real proposal, in the sam frame.

Random augmentation would make every kept embedding worthless, so an image has a fixed number of *variants*: the image
itself and augmented copies, each a function of (seed, image, variant) alone. Which one is seen depends on the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset

from ultrarefiner_monai.config import CorruptionConfig
from ultrarefiner_monai.core.geometry import Letterbox, resize
from ultrarefiner_monai.core.threads import in_threads
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.training.data.corruptions import Corruptor
from ultrarefiner_monai.training.data.loading import SharedEpoch, drawn
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL

FEATURES, PROPOSAL, VALID, VIEW = "features", "proposal", "valid_hw", "view"
COARSE_IMAGE = "coarse_image"
_COARSE_MASKS = 1  # names the draws of coarse masks among those of a run

# key, image (1, 1, S, S) in [0, 1] maker -> what the frozen part of the encoder gives for it, (C, h, w) each
Embed = Callable[[str, Callable[[], torch.Tensor]], list[torch.Tensor]]
# image (1, S, S) in [0, 1]; label and proposals (1 + n, S, S) uint8, 0 to 255; the coarse network's image, float16, or None
Made = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class ProposalKind(Enum):
    """Where a coarse mask comes from that the refiner learns to mend."""

    PREDICTION = "prediction"  # of a coarse network that has not seen the image
    CORRECTION = "correction"  # what was offered to a user, who saved something else
    CORRUPTED = "corrupted"  # the label, spoilt


@dataclass(frozen=True)
class RefineSample:
    """One image: paths, or arrays (H, W) (phantoms). proposals: what coarse networks said of it, each (H, W) or (c, c) in
    the coarse frame's inner part, float in [0, 1]. kind: of these proposals. group: what it is balanced with
    (``balanced_weights``). view: how the probe was held, "" where it is not known."""

    id: str
    image: Path | np.ndarray
    label: Path | np.ndarray
    proposals: tuple[np.ndarray, ...] = ()
    frame: int = 0
    kind: ProposalKind = ProposalKind.PREDICTION
    group: str | None = None
    view: str = ""

    def key(self) -> str:
        """Stands for the pixels: path, size and time of a file, or the array."""
        digest = hashlib.sha256(f"{self.id} {self.frame}".encode())
        if isinstance(self.image, np.ndarray):
            digest.update(np.ascontiguousarray(self.image).data)
        else:
            stat = self.image.stat()
            digest.update(f"{self.image} {stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()[:32]


class CoarseMasks:
    """What stands for a coarse network's result in training: corrupted labels, and real predictions where there are some."""

    def __init__(self, config: CorruptionConfig, size: int, share: float = 1.0, easy_epochs: int = 0) -> None:
        """size: c, side of the coarse frame. share: of the corrupted labels, where there is a real prediction.
        easy_epochs: in which the corruption rises from easy to hard."""
        self.corruptor = Corruptor(config, 0)
        self.size, self.share, self.easy_epochs = size, share, easy_epochs

    def draw(self, kind: ProposalKind, count: int, rng: np.random.Generator) -> ProposalKind:
        """What an image with ``count`` proposals of a kind gets this time. A correction is always used."""
        if not count:
            return ProposalKind.CORRUPTED
        if kind is ProposalKind.CORRECTION or rng.random() >= self.share:
            return kind
        return ProposalKind.CORRUPTED

    def __call__(
        self, label: torch.Tensor, proposals: torch.Tensor, kind: ProposalKind, epoch: int, rng: np.random.Generator
    ) -> torch.Tensor:
        """label (1, S, S) and proposals (n, S, S) in [0, 1], n may be 0 -> coarse_prob (1, c, c) in [0, 1]."""
        if self.draw(kind, len(proposals), rng) is not ProposalKind.CORRUPTED:
            which = int(rng.integers(len(proposals)))
            return resize(proposals[None, which : which + 1], self.size, self.size)[0]
        self.corruptor.set_seed(int(rng.integers(2**31)))
        mask = (resize(label[None], self.size, self.size) >= 0.5).float()
        difficulty = min(1.0, (epoch - 1) / self.easy_epochs) if self.easy_epochs else None
        return self.corruptor(mask, difficulty).corrupted_prob[0]


class RefineDataset(Dataset):
    """RefineSamples -> dictionaries: label (1, S, S) in [0, 1] with soft edges, valid_hw (2,), id, view, features or image, and
    proposal: with ``coarse_masks`` what that gives, (1, c, c), anew in each epoch; else the first proposal (1, S, S), zeros
    where there is none.

    embed: keeps what the frozen encoder gives; None: the image itself (1, S, S) is handed over. coarse_size: besides, the
    image as the coarse network sees it, (1, c, c) (0: left out). with_image: the image beside kept features, to draw on.
    """

    repeats = True  # as ``SeededDataset``

    def __init__(
        self,
        samples: Sequence[RefineSample],
        size: int,
        seed: int,
        augment: Compose | None = None,
        variants: int = 1,
        embed: Embed | None = None,
        coarse_size: int = 0,
        with_image: bool = False,
        coarse_masks: CoarseMasks | None = None,
    ) -> None:
        self.with_image, self.coarse_masks = with_image, coarse_masks
        self.coarse_size = coarse_size
        self.samples, self.size, self.seed = list(samples), size, seed
        self.augment, self.variants, self.embed = augment, variants if augment is not None else 1, embed
        self._epoch = SharedEpoch()
        self._kept: dict[int, tuple[np.ndarray, Letterbox]] = {}
        # Only beside kept features: without them every epoch may see other variants, which would fill the memory.
        self._masks: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor | None]] = {}

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def prepare_all(self) -> None:
        """Read every image now: worker processes that are started later share what is kept."""
        in_threads(self._load, range(len(self.samples)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        again, index = divmod(index, len(self.samples))
        sample, variant = self.samples[index], self._variant(index, again)
        letterbox = self._load(index)[1]
        # A mirrored or shifted copy has its padding elsewhere: all of it counts as image.
        valid = letterbox.inner_hw if variant == 0 else (self.size, self.size)
        out: dict[str, Any] = {ID: sample.id, VALID: torch.tensor(valid), VIEW: sample.view}
        if self.embed is None:
            out[IMAGE], masks, small = self._make(index, variant)
        else:
            key = f"{sample.key()}-{self.seed:x}-{variant:x}-{self.size:x}"
            out[FEATURES] = self.embed(key, lambda: self._remember(index, variant)[0][None])
            # Kept: making them anew costs as much as a step.
            if (index, variant) not in self._masks:
                self._remember(index, variant)
            masks, small = self._masks[index, variant]
            if self.with_image:
                out[IMAGE] = self._make(index, variant)[0]
        if small is not None:
            out[COARSE_IMAGE] = small.float()
        out[LABEL] = masks[:1].float() / 255
        out[PROPOSAL] = self._proposal(index, again, out[LABEL], masks[1:])
        return out

    def _proposal(self, index: int, again: int, label: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
        if self.coarse_masks is None:
            return proposals[:1].float() / 255 if len(proposals) else torch.zeros_like(label)
        epoch = self._epoch.get()
        rng = np.random.default_rng([self.seed, epoch, index, _COARSE_MASKS, again])
        return self.coarse_masks(label, proposals.float() / 255, self.samples[index].kind, epoch, rng)

    def _variant(self, index: int, again: int = 0) -> int:
        if self.variants == 1:
            return 0
        return drawn(self.seed, self._epoch.get(), index, again) % self.variants

    def _remember(self, index: int, variant: int) -> Made:
        made = self._make(index, variant)
        self._masks[index, variant] = made[1], made[2]
        return made

    def _make(self, index: int, variant: int) -> Made:
        planes, letterbox = self._load(index)
        stack = torch.from_numpy(planes.astype(np.float32) / 255)[None]
        square = letterbox.apply(stack)[0]
        image, pair = square[:1], square[1:]
        if variant and self.augment is not None:
            draw = np.random.SeedSequence([self.seed, index, variant]).generate_state(1)[0]
            self.augment.set_random_state(seed=int(draw))
            moved = self.augment({IMAGE: image, LABEL: pair})
            image, pair = torch.as_tensor(moved[IMAGE]), torch.as_tensor(moved[LABEL])
        small = None
        if self.coarse_size:
            # The image itself as in serving, from its own pixels; a copy from the sam frame it was made in.
            if variant == 0:
                small = Letterbox(letterbox.height, letterbox.width, self.coarse_size).apply(stack[:, :1])[0].half()
            else:
                small = resize(image[None], self.coarse_size, self.coarse_size)[0].half()
        return image.contiguous(), (pair.clamp(0, 1) * 255).round().to(torch.uint8), small

    def _load(self, index: int) -> tuple[np.ndarray, Letterbox]:
        """Pixels, label and proposals (2 + n, H, W) at the image's own size, uint8 0 to 255."""
        if index not in self._kept:
            sample = self.samples[index]
            image, label = _pixels(sample), _label(sample)
            if image.shape != label.shape:
                raise InputError(f"{sample.id}: its label is {label.shape[::-1]} pixels, its image {image.shape[::-1]}")
            own = (torch.from_numpy(p.astype(np.float32))[None, None] for p in sample.proposals)
            proposals = [resize(p, *image.shape)[0, 0].numpy() for p in own]
            planes = np.stack([_bytes(plane) for plane in (image, label.astype(np.float32), *proposals)])
            self._kept[index] = planes, Letterbox(image.shape[0], image.shape[1], self.size)
        return self._kept[index]


def _bytes(plane: np.ndarray) -> np.ndarray:
    return (plane * 255).round().astype(np.uint8)


def _pixels(sample: RefineSample) -> np.ndarray:
    return sample.image if isinstance(sample.image, np.ndarray) else read_image_file(sample.image).frame(sample.frame)


def _label(sample: RefineSample) -> np.ndarray:
    if isinstance(sample.label, np.ndarray):
        return sample.label > 0
    frames = read_mask(sample.label)
    return frames[min(sample.frame, len(frames) - 1)] > 0
