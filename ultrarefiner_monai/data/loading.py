"""Items -> batches: prepared once and kept, augmented with a seed of (run, epoch, item), whatever the order or process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from monai.data import DataLoader
from monai.transforms import Compose
from torch.utils.data import Dataset, DistributedSampler

from ultrarefiner_monai.data.datalist import Item
from ultrarefiner_monai.data.phantoms import make_phantom
from ultrarefiner_monai.data.transforms import ID, IMAGE, LABEL


class SharedEpoch:
    """The epoch's number, seen by the loader's worker processes too: they live on from epoch to epoch."""

    def __init__(self) -> None:
        self._value = multiprocessing.Value("q", 0)

    def get(self) -> int:
        return self._value.value

    def set(self, epoch: int) -> None:
        self._value.value = epoch


class SeededDataset(Dataset):
    """Samples as dictionaries. The augmentation of item i in epoch e depends on (seed, e, i) alone.

    That makes a resumed run equal an uninterrupted one, with any number of workers.
    """

    def __init__(self, items: Sequence[dict[str, Any]], prepare: Compose, augment: Compose | None, seed: int) -> None:
        self.items, self.prepare, self.augment, self.seed = list(items), prepare, augment, seed
        self._kept: dict[int, dict[str, Any]] = {}
        self._epoch = SharedEpoch()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._kept:
            self._kept[index] = dict(self.prepare(self.items[index]))
        sample = dict(self._kept[index])
        if self.augment is not None:
            draw = np.random.SeedSequence([self.seed, self._epoch.get(), index]).generate_state(1)[0]
            self.augment.set_random_state(seed=int(draw))
            sample = dict(self.augment(sample))
        return {IMAGE: sample[IMAGE], LABEL: sample[LABEL], ID: sample[ID]}


def as_samples(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items -> the dictionaries that the transforms read."""
    return [{ID: i.id, IMAGE: i.image, LABEL: i.mask} for i in items]


def with_normal_share(items: Sequence[Item], share: float | None, seed: int) -> list[Item]:
    """Repeat or leave out lesion-free images so that they make up ``share`` of the list; None keeps the list."""
    lesions, normals = [i for i in items if i.has_lesion], [i for i in items if not i.has_lesion]
    if share is None or not normals:
        return list(items)
    count = round(share / (1 - share) * len(lesions))
    order = np.random.default_rng(seed).permutation(len(normals))
    return lesions + [normals[order[k % len(normals)]] for k in range(count)]


def phantom_samples(count: int, seed: int) -> list[dict[str, Any]]:
    """Phantoms as samples, of random sizes between 256 and 320 pixels, a quarter of them without a lesion."""
    samples = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        height, width = (int(n) for n in rng.integers(256, 321, size=2))
        phantom = make_phantom(rng, height, width)
        image, label = phantom.image.astype(np.float32) / 255, phantom.mask.astype(np.float32)
        samples.append({ID: f"phantom_{k:04d}", IMAGE: image, LABEL: label})
    return samples


def process_share() -> tuple[int, int]:
    """(this process, number of processes) of a training by torchrun; (0, 1) for any other."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def training_loader(dataset: Dataset, batch_size: int, seed: int, workers: int = 0) -> DataLoader:
    """Shuffled by (seed, epoch); the last short batch is left out, since batch norm cannot learn from single images.

    Each of several processes gets its share: their batches of one step together are one process's larger batch.
    """
    rank, count = process_share()
    sampler: DistributedSampler = DistributedSampler(
        dataset, num_replicas=count, rank=rank, shuffle=True, seed=seed, drop_last=len(dataset) >= count
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=len(sampler) > batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def plain_loader(dataset: Dataset, batch_size: int) -> DataLoader:
    """In order, everything, no workers. Of several processes each takes every so-manieth sample, none twice."""
    rank, count = process_share()
    share = range(rank, len(dataset), count)
    return DataLoader(dataset, batch_size=batch_size, sampler=share, num_workers=0)
