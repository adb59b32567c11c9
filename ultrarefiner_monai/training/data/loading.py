"""Items -> batches: prepared once and kept, augmented with a seed of (run, epoch, item), whatever the order or process."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from monai.data import DataLoader
from monai.transforms import Compose
from torch.utils.data import Dataset, DistributedSampler

from ultrarefiner_monai.core.threads import in_threads
from ultrarefiner_monai.datasets.datalist import Item, group_of, names_of
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL
from ultrarefiner_monai.training.loop.ddp import process_share

GROUP = "group"  # of a sample: what it is balanced with; a phantom has none


class SharedEpoch:
    """The epoch's number, seen by the loader's worker processes too: they live on from epoch to epoch."""

    def __init__(self) -> None:
        self._value = multiprocessing.Value("q", 0)

    def get(self) -> int:
        return self._value.value

    def set(self, epoch: int) -> None:
        self._value.value = epoch


def drawn(seed: int, epoch: int, index: int, again: int = 0) -> int:
    """A random number for item ``index`` in an epoch, the ``again``-th time that it is shown there besides the first."""
    entropy = [seed, epoch, index, *([again] if again > 0 else [])]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class SeededDataset(Dataset):
    """Samples as dictionaries. The augmentation of item i in epoch e depends on (seed, e, i) alone.

    That makes a resumed run equal an uninterrupted one, with any number of workers. An item that an epoch shows several
    times (``BalancedSampler``) has the index i + n times the number of items the n-th time, and another augmentation.
    """

    repeats = True

    def __init__(self, items: Sequence[dict[str, Any]], prepare: Compose, augment: Compose | None, seed: int) -> None:
        self.items, self.prepare, self.augment, self.seed = list(items), prepare, augment, seed
        self._kept: dict[int, dict[str, Any]] = {}
        self._epoch = SharedEpoch()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return len(self.items)

    def prepare_all(self) -> None:
        """Prepare every sample now: worker processes that are started later share what is kept."""
        in_threads(self._prepared, range(len(self.items)))

    def _prepared(self, index: int) -> dict[str, Any]:
        if index not in self._kept:
            self._kept[index] = dict(self.prepare(self.items[index]))
        return self._kept[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        again, index = divmod(index, len(self.items))
        sample = dict(self._prepared(index))
        if self.augment is not None:
            self.augment.set_random_state(seed=drawn(self.seed, self._epoch.get(), index, again))
            sample = dict(self.augment(sample))
        return {IMAGE: sample[IMAGE], LABEL: sample[LABEL], ID: sample[ID]}


def as_samples(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items -> the dictionaries that the transforms read. Items of several sets are called SET/ID."""
    names = names_of(items)
    return [{ID: n, IMAGE: i.image, LABEL: i.mask, GROUP: group_of(i)} for n, i in zip(names, items)]


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


def balanced_weights(groups: Sequence[str | None], balance: float) -> list[float] | None:
    """How often each sample is to be shown in an epoch, on average.

    First a set's share goes with n_set^(1 - balance), then within the set a scanner's with n_scanner^(1 - balance): a set
    with many scanners does not count for many. groups: SET/SCANNER of each sample (``group_of``); None for phantoms, whose
    share of an epoch stays as it is. balance: 0 shows all equally often (the answer is None then), 1 each set, and in it
    each scanner. The sum is the number of samples, so an epoch stays as long.
    """
    sizes = Counter(group for group in groups if group is not None)
    if not balance or len(sizes) < 2:
        return None
    sets: dict[str, list[str]] = {}
    for group in sizes:
        sets.setdefault(group.partition("/")[0], []).append(group)
    total, power = sum(sizes.values()), 1 - balance
    whole = {name: sum(sizes[g] for g in own) for name, own in sets.items()}
    all_sets = sum(n**power for n in whole.values())
    weights: dict[str, float] = {}
    for name, own in sets.items():
        share = total * whole[name] ** power / all_sets / sum(sizes[g] ** power for g in own)
        weights |= {g: share * sizes[g] ** -balance for g in own}
    return [1.0 if group is None else weights[group] for group in groups]


class BalancedSampler(DistributedSampler):
    """Shows each sample about as often as its weight says, shuffled by (seed, epoch); an epoch is as long as without.

    Systematic sampling: a sample of weight w is shown floor(w) or ceil(w) times. In a plain draw with replacement a third
    of the images would be missing in each epoch. The n-th time a sample's index has n times their number added, where the
    dataset knows repeats (``SeededDataset``).
    """

    def __init__(self, dataset: Dataset, weights: Sequence[float], **options: Any) -> None:
        super().__init__(dataset, **options)
        if len(weights) != len(dataset):  # type: ignore[arg-type]
            raise ValueError(f"expected a weight for each of {len(dataset)} samples, got {len(weights)}")  # type: ignore[arg-type]
        self.weights = np.asarray(weights, dtype=np.float64)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.weights))
        ends = np.cumsum(self.weights[order])
        marks = (rng.random() + np.arange(len(order))) * (ends[-1] / len(order))
        chosen = order[np.searchsorted(ends, marks, side="right").clip(max=len(order) - 1)]
        if getattr(self.dataset, "repeats", False):
            first = np.searchsorted(np.sort(chosen), chosen)  # chosen: equal ones stand side by side
            ranks = np.argsort(np.argsort(chosen, kind="stable"), kind="stable")
            chosen = chosen + (ranks - first) * len(order)
        shown = np.resize(rng.permutation(chosen), self.total_size)  # as many for each process
        return iter(shown[self.rank :: self.num_replicas].tolist())


def training_loader(
    dataset: Dataset, batch_size: int, seed: int, workers: int = 0, weights: Sequence[float] | None = None
) -> DataLoader:
    """Shuffled by (seed, epoch); the last short batch is left out, since batch norm cannot learn from single images.

    Each of several processes gets its share: their batches of one step together are one process's larger batch.
    weights: how often each sample is shown (``balanced_weights``); None: once.
    """
    rank, count = process_share()
    options = {
        "num_replicas": count,
        "rank": rank,
        "shuffle": True,
        "seed": seed,
        "drop_last": len(dataset) >= count,  # type: ignore[arg-type]
    }
    sampler: DistributedSampler = (
        DistributedSampler(dataset, **options) if weights is None else BalancedSampler(dataset, weights, **options)
    )
    if workers:  # else each of them would read all images again
        dataset.prepare_all()  # type: ignore[attr-defined]
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=len(sampler) > batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def plain_loader(dataset: Dataset, batch_size: int, sets: Sequence[str] | None = None) -> DataLoader:
    """In order, everything, no workers. Of several processes each takes every n-th sample, none twice.

    sets: of each sample; where there are several, a batch holds images of one set only, so that what is measured on it
    counts for that set.
    """
    rank, count = process_share()
    share = range(rank, len(dataset), count)  # type: ignore[arg-type]
    if sets is None or len(set(sets)) < 2:
        return DataLoader(dataset, batch_size=batch_size, sampler=share, num_workers=0)
    own = {name: [k for k in share if sets[k] == name] for name in sorted(set(sets))}
    batches = [part[k : k + batch_size] for part in own.values() for k in range(0, len(part), batch_size)]
    return DataLoader(dataset, batch_sampler=batches, num_workers=0)
