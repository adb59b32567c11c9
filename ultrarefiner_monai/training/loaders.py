"""What each phase sees: from a fold's split to the loader it trains on and the one its epochs are judged by."""

from __future__ import annotations

from torch.utils.data import DataLoader

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.data.datalist import Split
from ultrarefiner_monai.data.loading import (
    SeededDataset,
    as_samples,
    phantom_samples,
    plain_loader,
    training_loader,
    with_normal_share,
)
from ultrarefiner_monai.data.transforms import augmentation, preparation


def build_loaders(config: TrainConfig, split: Split) -> tuple[DataLoader, DataLoader]:
    """(training, selection) for the phase that ``config`` names."""
    return {"phase1_coarse": _coarse_loaders}[config.phase](config, split)


def _coarse_loaders(config: TrainConfig, split: Split) -> tuple[DataLoader, DataLoader]:
    size = config.system.coarse.image_size
    samples = as_samples(with_normal_share(split.train, config.data.normal_share, config.seed))
    samples += phantom_samples(config.data.phantoms, config.seed)
    augment = None if config.data.augment == "none" else augmentation(config.data.augment, size)
    training = SeededDataset(samples, preparation(size), augment, config.seed)
    selection = SeededDataset(as_samples(split.select), preparation(size), None, config.seed)
    return (
        training_loader(training, config.batch_size, config.seed, config.data.workers),
        plain_loader(selection, config.batch_size),
    )
