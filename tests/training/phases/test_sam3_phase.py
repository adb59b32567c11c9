"""Phase 2 over SAM 3's vision tower, tiny and random, with the configuration that comes with it: one process and two."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_refiner_phase import COARSE, PHASE1
from tiny_sam3 import SMALL, tower
from two_processes import torchrun

from ultrarefiner_monai.config import LoraConfig, TrainConfig, load_yaml, to_dict
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.models.adapter_file import read_adapter
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.models.sam.network import build_sam, save_sam
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.run import train

CONFIG = Path(__file__).parents[3] / "configs" / "phase2_sam3_lora.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """A SAM 3 file, a SAM file for the decoder, and a phase 1 by itself."""
    out = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    save_file({k: v.contiguous() for k, v in tower(build_sam(SMALL)).state_dict().items()}, out / "sam3.safetensors")
    save_sam(build_sam(replace(SMALL, arch="compact", tower=None, depth=1, image_size=64)), out / "sam.pth")
    return {"sam3": out / "sam3.safetensors", "sam": out / "sam.pth", "out": out}


@pytest.fixture(scope="module")
def small(folder: Path, weights: dict[str, Path]) -> TrainConfig:
    """configs/phase2_sam3_lora.yaml over the tiny tower and a tiny coarse network."""
    train(PHASE1, folder, 0, weights["out"] / "1", device="cpu")
    config = load_yaml(TrainConfig, CONFIG)
    assert config.refine.lora == LoraConfig(16, 32.0, 0.05) and config.system.sam is not None
    assert (config.system.sam.image_size, config.optimiser.lr, config.epochs, config.batch_size) == (1008, 1e-4, 30, 16)
    return replace(
        config, system=replace(config.system, coarse=COARSE, sam=SMALL), epochs=1, batch_size=2, tracking="none",
        data=replace(config.data, phantoms=2, select_share=0.3), init=str(weights["out"] / "1" / "model.safetensors"),
        refine=replace(config.refine, max_clicks=2, sam_init=str(weights["sam3"]), decoder_init=str(weights["sam"])),
    )  # fmt: skip


def test_the_configuration_that_comes_with_it_trains_and_answers(
    folder: Path, weights: dict[str, Path], small: TrainConfig, tmp_path: Path
) -> None:
    train(small, folder, 0, tmp_path / "r", device="cpu")
    stored = read_checkpoint(tmp_path / "r" / "best.safetensors")
    assert stored.config.sam is not None and stored.config.sam.tower == SMALL.tower
    system = load_system(tmp_path / "r" / "best.safetensors")
    assert system.refiner is not None and not [k for k in stored.tensors if "lora" in k]
    before, after = load_file(weights["sam3"]), tower(system.refiner.sam).state_dict()  # type: ignore[arg-type]
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed and all("_proj.weight" in k or ".mlp." in k for k in changed), (
        "the adapters are merged, nothing else moves"
    )
    assert read_adapter(tmp_path / "r" / "adapter.safetensors").config.rank == 16
    rng = np.random.default_rng(0)
    image = rng.random((70, 90)).astype(np.float32)
    predictor = Predictor(system)
    assert predictor.propose(image).mask.shape == (70, 90)
    assert predictor.interact(image, Clicks(foreground_xy=((45.0, 35.0),))).mask[35, 45]


def test_weights_that_are_missing_are_asked_for(folder: Path, small: TrainConfig, tmp_path: Path) -> None:
    for start, words in (
        ("none", "sam.arch sam3 needs SAM 3's weights"),
        ("nowhere.pt", "no SAM 3 weights at nowhere.pt"),
    ):
        with pytest.raises(InputError, match=words):
            refine = replace(small.refine, sam_init=start)
            train(replace(small, refine=refine), folder, 0, tmp_path / "r", device="cpu")


def test_a_decoder_of_another_size_is_refused(
    folder: Path, weights: dict[str, Path], small: TrainConfig, tmp_path: Path
) -> None:
    refine = replace(small.refine, decoder_init=str(weights["sam3"]))
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        train(replace(small, refine=refine), folder, 0, tmp_path / "r", device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_the_adapters(
    folder: Path, small: TrainConfig, tmp_path: Path, small_network: None
) -> None:
    """The coarse network is a small one without batch norm, as in test_ddp."""
    first = replace(PHASE1, epochs=1)
    train(first, folder, 0, tmp_path / "first", device="cpu")
    config = replace(small, init=str(tmp_path / "first" / "model.safetensors"))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(to_dict(config)))
    arguments = ["--config", str(tmp_path / "small.yaml"), "--data", str(folder), "--device", "cpu"]
    code, output = torchrun("train", "phase2_refiner", *arguments, "--out", str(tmp_path / "two"))
    assert code == 0, output[-2000:]
    row = list(csv.DictReader((tmp_path / "two" / "history.csv").open()))[-1]
    assert float(row["loss"]) > 0
    state = read_adapter(tmp_path / "two" / "adapter.safetensors").state
    moved = [v.abs().max() for k, v in state.items() if k.endswith("lora_b")]
    assert len(moved) == 12 and min(moved) > 0, "each adapter has learnt"
