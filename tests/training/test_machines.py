"""Phase 1 with augmentation for other machines and lesion-free crops: what it trains on, and that a run ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ultrarefiner_monai.config import CoarseConfig, DataConfig, OptimiserConfig, SystemConfig, TrainConfig
from ultrarefiner_monai.datasets.datalist import read_index, split_fold
from ultrarefiner_monai.training.data import loaders
from ultrarefiner_monai.training.data.transforms import ID, IMAGE, LABEL
from ultrarefiner_monai.training.run import train

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
CONFIG = TrainConfig(
    system=SystemConfig(coarse=COARSE),
    data=DataConfig(select_share=0.3, augment="machines", echogenicity=0.3, tissue=0.5),
    optimiser=OptimiserConfig(name="adamw", lr=1e-3),
    epochs=1,
    batch_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 24)


def test_crops_are_trained_on_but_never_judged_by(folder: Path) -> None:
    split = split_fold(read_index(folder), 0, 0.3)
    training, selection = loaders.coarse_loaders(CONFIG, split)
    samples = [training.dataset[k] for k in range(len(training.dataset))]
    crops = [s for s in samples if s[ID].startswith("tissue:")]
    assert len(crops) == round(0.5 * sum(i.has_lesion for i in split.train))
    assert len(samples) == len(split.train) + len(crops) and len(selection.dataset) == len(split.select)
    assert not any(s[LABEL].any() for s in crops) and all(s[IMAGE].shape == (1, 32, 32) for s in samples)
    own = {i.key for i in split.train}
    assert all(s[ID].split(":")[1] in own for s in crops)
    plain, _ = loaders.coarse_loaders(replace(CONFIG, data=replace(CONFIG.data, tissue=0.0)), split)
    assert len(plain.dataset) == len(split.train)


def test_a_run_ends_and_says_what_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(CONFIG, folder, 0, tmp_path / "r", device="cpu")
    assert (tmp_path / "r" / "model.safetensors").is_file()
    trained = json.loads((tmp_path / "r" / "split.json").read_text())["train"]
    assert trained and not any(name.startswith("tissue:") for name in trained)
