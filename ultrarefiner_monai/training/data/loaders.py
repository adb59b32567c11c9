"""What each phase sees: from a fold's split to the loader it trains on and the one its epochs are judged by."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from monai.transforms import Compose
from torch import nn
from torch.utils.data import DataLoader

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item, Split, group_of, names_of
from ultrarefiner_monai.studies.corrections import read_corrections
from ultrarefiner_monai.training.data.acquisition_ranges import ranges
from ultrarefiner_monai.training.data.features import FeatureKeeper
from ultrarefiner_monai.training.data.loading import (
    GROUP,
    SeededDataset,
    as_samples,
    balanced_weights,
    phantom_samples,
    plain_loader,
    training_loader,
)
from ultrarefiner_monai.training.data.predictions import proposal_folders, read_proposals
from ultrarefiner_monai.training.data.refining import CoarseMasks, Embed, ProposalKind, RefineDataset, RefineSample
from ultrarefiner_monai.training.data.tissue import tissue_samples
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL, MACHINES, augmentation, preparation

log = logging.getLogger(__name__)
CACHE_BYTES = 8 * 2**30  # of kept features in memory (refine.cache: ram)


def coarse_loaders(config: TrainConfig, split: Split) -> tuple[DataLoader, DataLoader]:
    """(training, selection) of phase 1: images and labels in the coarse frame."""
    size = config.system.coarse.image_size
    samples = as_samples(split.train)
    samples += phantom_samples(config.data.phantoms, config.seed)
    samples += tissue_samples(split.train, config.data.tissue, config.seed)
    weights = balanced_weights([s.get(GROUP) for s in samples], config.data.balance)
    training = SeededDataset(samples, preparation(size), _augmentation(config, size), config.seed)
    selection = SeededDataset(as_samples(split.select), preparation(size), None, config.seed)
    return (
        training_loader(training, config.batch_size, config.seed, config.data.workers, weights),
        plain_loader(selection, config.batch_size, [i.set for i in split.select]),
    )


def refiner_loaders(
    config: TrainConfig,
    split: Split,
    out: Path,
    encoder: nn.Module,
    proposed: Callable[[Item], np.ndarray],
    coarse_size: int = 0,
) -> tuple[DataLoader, DataLoader]:
    """(training, selection) of phases 2 and 3: images as kept features (or pixels), labels, and real proposals where there
    are any.

    out: the run's folder, where features lie with ``refine.cache: disk``. encoder: the image encoder, for the features.
    proposed: what the coarse network says of an image (``predicted_prob``), which the selection images are judged with.
    coarse_size: the side of the coarse network's image, where that network learns too (phase 3) and answers for itself; 0:
    it stands still, and what stands for its result comes from the data.
    """
    sam = config.system.sam
    assert sam is not None
    embed = _embed(config, encoder, out)
    dataset = partial(RefineDataset, size=sam.image_size, seed=config.seed, embed=embed, coarse_size=coarse_size)
    augment = _augmentation(config, sam.image_size, soft_label=True)
    samples = training_samples(config, split.train)
    made = phantom_samples(config.data.phantoms, config.seed)
    made += tissue_samples(split.train, config.data.tissue, config.seed)
    samples += [RefineSample(s[ID], s[IMAGE], s[LABEL], group=s.get(GROUP)) for s in made]
    weights = balanced_weights([s.group for s in samples], config.data.balance)
    masks = None if coarse_size else coarse_masks(config)
    training = dataset(samples, augment=augment, variants=config.refine.variants, coarse_masks=masks)
    # The checkpoint is judged by what it will really be given: the coarse network's own predictions.
    judged = [
        replace(_sample(i, name), proposals=(proposed(i),)) for i, name in zip(split.select, names_of(split.select))
    ]
    selection = dataset(judged, with_image=True)
    workers = config.data.workers if config.refine.cache != "ram" else 0  # a worker's RAM is not shared
    return (
        training_loader(training, config.batch_size, config.seed, workers, weights),
        plain_loader(selection, config.batch_size, [i.set for i in split.select]),
    )


def _augmentation(config: TrainConfig, size: int, soft_label: bool = False) -> Compose | None:
    if config.data.augment == "none":
        return None
    data = config.data
    return augmentation(data.augment, size, soft_label, data.echogenicity, ranges(data.machines))


def coarse_masks(config: TrainConfig) -> CoarseMasks:
    """What stands for the coarse network's result in phase 2, as configured."""
    options = config.refine
    easy = max(1, config.epochs // 2) if options.curriculum else 0
    return CoarseMasks(options.corruption, config.system.coarse.image_size, options.corrupted_share, easy)


def _embed(config: TrainConfig, encoder: nn.Module, out: Path) -> Embed | None:
    if config.refine.cache == "off":
        return None
    folder = out / "features" if config.refine.cache == "disk" else None
    recipe = f"{config.data.augment} {config.data.echogenicity}"
    if config.data.augment == MACHINES:
        recipe += f" {ranges(config.data.machines)}"
    return FeatureKeeper(encoder, config.refine.train, CACHE_BYTES, folder, recipe)


def _sample(item: Item, name: str) -> RefineSample:
    return RefineSample(name, item.image, item.mask, group=group_of(item), view=item.view)


def training_samples(config: TrainConfig, items: Sequence[Item]) -> list[RefineSample]:
    """Items with what was really proposed for them: recorded corrections first, else out-of-fold predictions."""
    offered = {}
    if config.refine.corrections:
        # By time: the newest stands. Only images of the training part: the others judge or are reported.
        offered = {c.id: c.proposal for c in read_corrections(config.refine.corrections)}
    folders = proposal_folders(config.refine.proposals)
    # Of two images of one id in different sets nobody knows which one was meant.
    counts = Counter(i.id for i in {i.key: i for i in items}.values())
    samples, real, corrected = [], 0, 0
    for item, name in zip(items, names_of(items)):
        sample, alone = _sample(item, name), counts[item.id] == 1
        if alone and item.id in offered:
            sample = replace(sample, proposals=(offered[item.id].astype(np.float32),), kind=ProposalKind.CORRECTION)
        else:
            sample = replace(sample, proposals=read_proposals(folders, item, by_id=alone))
        real += bool(sample.proposals)
        corrected += sample.kind is ProposalKind.CORRECTION
        samples.append(sample)
    log.info("%d of %d training images have a real proposal, %d of them corrected", real, len(items), corrected)
    if config.refine.proposals and not real:
        raise InputError(
            f"refine.proposals: {config.refine.proposals} holds no prediction for any image of the training part; "
            "`ultrarefiner proposals` makes them"
        )
    return samples
