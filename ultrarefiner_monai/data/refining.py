"""What phases 2 and 3 train on: an image (or its kept features), its label and a real proposal, in the sam frame.

Random augmentation would make every kept embedding worthless, so an image has a fixed number of *variants*: the image
itself and augmented copies, each a function of (seed, image, variant) alone. Which one is seen depends on the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset

from ultrarefiner_monai.data.loading import SharedEpoch
from ultrarefiner_monai.data.readers import read_mask, read_study
from ultrarefiner_monai.data.transforms import ID, IMAGE, LABEL
from ultrarefiner_monai.geometry import Letterbox, resize
from ultrarefiner_monai.types import InputError

FEATURES, PROPOSAL, HAS_PROPOSAL, VALID = "features", "proposal", "has_proposal", "valid_hw"
COARSE_IMAGE = "coarse_image"

# key, image (1, 1, S, S) in [0, 1] maker -> what the frozen part of the encoder gives for it, (C, h, w) each
Embed = Callable[[str, Callable[[], torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True)
class RefineSample:
    """One image: paths, or arrays (H, W) (phantoms). proposal: coarse_prob (H, W) or (c, c) in the coarse frame's inner
    part, float in [0, 1], or None. is_correction: the proposal is one that a user corrected, so it is always used."""

    id: str
    image: Path | np.ndarray
    label: Path | np.ndarray
    proposal: np.ndarray | None = None
    frame: int = 0
    is_correction: bool = False

    def key(self) -> str:
        """Stands for the pixels: path, size and time of a file, or the array."""
        digest = hashlib.sha256(f"{self.id} {self.frame}".encode())
        if isinstance(self.image, np.ndarray):
            digest.update(np.ascontiguousarray(self.image).data)
        else:
            stat = self.image.stat()
            digest.update(f"{self.image} {stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()[:32]


class RefineDataset(Dataset):
    """RefineSamples -> dictionaries: label (1, S, S) in [0, 1] with soft edges, proposal (1, S, S) in [0, 1],
    has_proposal (2: a correction's, 1: another real one, 0: none), valid_hw (2,), id, and features or image.

    embed: keeps what the frozen encoder gives; None: the image itself (1, S, S) is handed over. coarse_size: besides, the
    image as the coarse network sees it, (1, c, c) (0: left out). with_image: the image beside kept features, to draw on.
    """

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
    ) -> None:
        self.with_image = with_image
        self.coarse_size = coarse_size
        self.samples, self.size, self.seed = list(samples), size, seed
        self.augment, self.variants, self.embed = augment, variants if augment is not None else 1, embed
        self._epoch = SharedEpoch()
        self._kept: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, Letterbox]] = {}
        self._labels: dict[tuple[int, int], torch.Tensor] = {}
        self._small: dict[tuple[int, int], torch.Tensor] = {}

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample, variant = self.samples[index], self._variant(index)
        letterbox = self._load(index)[3]
        # A mirrored or shifted copy has its padding elsewhere: all of it counts as image.
        valid = letterbox.inner_hw if variant == 0 else (self.size, self.size)
        kind = 2 if sample.is_correction else int(sample.proposal is not None)
        out: dict[str, Any] = {ID: sample.id, VALID: torch.tensor(valid), HAS_PROPOSAL: kind}
        if self.embed is None:
            image, pair = self._make(index, variant)
            out[IMAGE] = image
        else:
            key = f"{sample.key()}-{self.seed:x}-{variant:x}-{self.size:x}"
            out[FEATURES] = self.embed(key, lambda: self._make(index, variant)[0][None])
            pair = self._pair(index, variant)
            if self.with_image:
                out[IMAGE] = self._make(index, variant)[0]
        if self.coarse_size:
            out[COARSE_IMAGE] = self._small[index, variant].float()
        out[LABEL], out[PROPOSAL] = pair[:1].float() / 255, pair[1:].float() / 255
        return out

    def _variant(self, index: int) -> int:
        if self.variants == 1:
            return 0
        state = np.random.SeedSequence([self.seed, self._epoch.get(), index]).generate_state(1)[0]
        return int(state) % self.variants

    def _pair(self, index: int, variant: int) -> torch.Tensor:
        """Label and proposal (2, S, S) uint8; kept, for making them anew costs as much as a step."""
        if (index, variant) not in self._labels:
            self._labels[index, variant] = self._make(index, variant)[1]
        return self._labels[index, variant]

    def _make(self, index: int, variant: int) -> tuple[torch.Tensor, torch.Tensor]:
        """image (1, S, S) in [0, 1]; label and proposal (2, S, S) uint8, 0 to 255."""
        pixels, label, proposal, letterbox = self._load(index)
        stack = torch.from_numpy(np.stack([pixels, label, proposal]).astype(np.float32) / 255)[None]
        square = letterbox.apply(stack)[0]
        image, pair = square[:1], square[1:]
        if variant and self.augment is not None:
            draw = np.random.SeedSequence([self.seed, index, variant]).generate_state(1)[0]
            self.augment.set_random_state(seed=int(draw))
            moved = self.augment({IMAGE: image, LABEL: pair})
            image, pair = torch.as_tensor(moved[IMAGE]), torch.as_tensor(moved[LABEL])
        if self.coarse_size:
            # The image itself as in serving, from its own pixels; a copy from the sam frame it was made in.
            if variant == 0:
                small = Letterbox(letterbox.height, letterbox.width, self.coarse_size).apply(stack[:, :1])
            else:
                small = resize(image[None], self.coarse_size, self.coarse_size)
            self._small[index, variant] = small[0].half()
        pair = (pair.clamp(0, 1) * 255).round().to(torch.uint8)
        self._labels[index, variant] = pair
        return image.contiguous(), pair

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Letterbox]:
        """Pixels, label and proposal at the image's own size, uint8 0 to 255."""
        if index not in self._kept:
            sample = self.samples[index]
            image, label = _pixels(sample), _label(sample)
            if image.shape != label.shape:
                raise InputError(f"{sample.id}: its label is {label.shape[::-1]} pixels, its image {image.shape[::-1]}")
            proposal = np.zeros(image.shape, np.float32)
            if sample.proposal is not None:
                own = torch.from_numpy(sample.proposal.astype(np.float32))[None, None]
                proposal = resize(own, *image.shape)[0, 0].numpy()
            self._kept[index] = (
                _bytes(image),
                _bytes(label.astype(np.float32)),
                _bytes(proposal),
                Letterbox(image.shape[0], image.shape[1], self.size),
            )
        return self._kept[index]


def _bytes(plane: np.ndarray) -> np.ndarray:
    return (plane * 255).round().astype(np.uint8)


def _pixels(sample: RefineSample) -> np.ndarray:
    return sample.image if isinstance(sample.image, np.ndarray) else read_study(sample.image).frame(sample.frame)


def _label(sample: RefineSample) -> np.ndarray:
    if isinstance(sample.label, np.ndarray):
        return sample.label > 0
    frames = read_mask(sample.label)
    return frames[min(sample.frame, len(frames) - 1)] > 0
