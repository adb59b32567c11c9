"""Phases 2 and 3 with LoRA: the adapters learn, the encoder under them stands still, and the result is a plain checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_refiner_phase import COARSE, LITE, PHASE1, VIT, phase2

from ultrarefiner_monai.config import ConfigError, GateConfig, LoraConfig, RefineConfig, SamConfig, from_dict, load_yaml
from ultrarefiner_monai.config.train import TrainConfig
from ultrarefiner_monai.learning.adapters import add_adapter
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.adapter_file import read_adapter, with_adapter
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.models.lora import lora_parameters
from ultrarefiner_monai.models.sam.network import encode
from ultrarefiner_monai.studies.work_folder import WorkFolder
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.run import train

ALONE = {"train": (), "lora": LoraConfig(rank=2), "cache": "off"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


@pytest.fixture(scope="module")
def start(tmp_path_factory, folder: Path) -> Path:
    """A whole system: what a department's adapters are trained over."""
    out = tmp_path_factory.mktemp("start")
    train(replace(PHASE1, epochs=1), folder, 0, out / "1", device="cpu")
    train(replace(phase2(out / "1" / "model.safetensors", VIT), epochs=1), folder, 0, out / "2", device="cpu")
    return out / "2" / "model.safetensors"


def embedding(path: Path) -> torch.Tensor:
    system = load_system(path)
    assert system.refiner is not None
    return encode(system.refiner.sam, torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)))


def test_an_adapter_alone_is_all_that_changed(folder: Path, start: Path, tmp_path: Path) -> None:
    train(phase2(start, VIT, **ALONE), folder, 0, tmp_path / "r", device="cpu")
    before, after = read_checkpoint(start), read_checkpoint(tmp_path / "r" / "best.safetensors")
    changed = {k for k, v in after.tensors.items() if not torch.equal(v.float(), before.tensors[k].float())}
    assert changed == {
        f"sam.image_encoder.blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
    }
    assert after.tensors.keys() == before.tensors.keys() and after.config == before.config
    assert after.meta["lora"]["rank"] == 2
    # The file, put on what the training began from, is the result.
    system, adapter = load_system(start), read_adapter(tmp_path / "r" / "adapter.safetensors")
    assert system.refiner is not None and adapter.facts["fold"] == "0"
    served = with_adapter(system.refiner.sam, adapter)
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    own = embedding(tmp_path / "r" / "best.safetensors")
    assert torch.allclose(encode(served, image), own, atol=1e-5) and not torch.allclose(
        embedding(start), own, atol=1e-5
    )


@pytest.mark.parametrize("sam", [VIT, LITE], ids=["vit", "cnn"])
def test_gradients_reach_the_adapters_and_what_is_named(
    folder: Path, start: Path, tmp_path: Path, sam: SamConfig
) -> None:
    config = phase2(start, sam, train=("mask_decoder",), lora=LoraConfig(rank=2), cache="off", sam_init="none")
    if sam is LITE:
        config = replace(
            config,
            refine=replace(config.refine, sam_init="stem"),
            init=str(start.parents[1] / "1" / "model.safetensors"),
        )
    phase = build_phase(config)
    network = phase.network
    with torch.no_grad():
        for _, parameter in lora_parameters(network):
            parameter.add_(0.01)  # B leaves zero, so that A gets a gradient
    from ultrarefiner_monai.datasets.datalist import read_index, split_fold

    training, _ = phase.loaders(split_fold(read_index(folder), 0, 0.3, 0), tmp_path)
    phase.losses(network, next(iter(training)))["loss"].backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    adapters = {name for name, _ in lora_parameters(network)}
    assert adapters and adapters <= reached
    assert all(name.startswith("sam.mask_decoder.") for name in reached - adapters)
    grouped = {id(p) for group in phase.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}, "each once, none that stands still"


def test_a_resumed_run_is_an_uninterrupted_one(folder: Path, start: Path, tmp_path: Path) -> None:
    config = phase2(start, VIT, **{**ALONE, "lora": LoraConfig(rank=2, dropout=0.1)})
    train(config, folder, 0, tmp_path / "whole", device="cpu")
    train(replace(config, epochs=1), folder, 0, tmp_path / "cut", device="cpu")
    train(config, folder, 0, tmp_path / "cut", resume=True, device="cpu")
    whole, cut = (read_checkpoint(tmp_path / n / "best.safetensors").tensors for n in ("whole", "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    one, other = (read_adapter(tmp_path / n / "adapter.safetensors").state for n in ("whole", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_phase_3_learns_with_adapters(folder: Path, start: Path, tmp_path: Path) -> None:
    config = replace(phase2(start, VIT, **ALONE), phase="phase3_joint", epochs=1)
    train(config, folder, 0, tmp_path / "j", device="cpu")
    after = read_checkpoint(tmp_path / "j" / "best.safetensors")
    assert not any("lora" in key for key in after.tensors) and after.meta["lora"]["rank"] == 2
    assert not (tmp_path / "j" / "adapter.safetensors").exists(), "the coarse network learnt too"


def test_a_learned_gate_stands_still_beside_adapters_alone(start: Path) -> None:
    config = phase2(start, VIT, **ALONE)
    phase = build_phase(replace(config, system=replace(config.system, gate=GateConfig(mode="learned"))))
    learns = {name for name, p in phase.network.named_parameters() if p.requires_grad}
    assert learns == {name for name, _ in lora_parameters(phase.network)}


def test_what_does_not_go_together_is_refused_by_name() -> None:
    for values, words in (
        ({"lora": {"rank": 2}}, "refine.cache must be off"),
        ({"lora": {}, "cache": "off", "train": ["encoder"]}, "stands still"),
        ({"lora": {}, "cache": "off", "train": ["neck"]}, "stands still"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_dict(RefineConfig, values)
    nothing = {"phase": "phase2_refiner", "system": {"sam": {}}, "refine": {"train": []}}
    with pytest.raises(ConfigError, match="at least one part"):
        from_dict(TrainConfig, nothing)


def test_the_configuration_that_comes_with_it_runs(folder: Path, start: Path, tmp_path: Path) -> None:
    config = load_yaml(TrainConfig, Path(__file__).parents[3] / "configs" / "phase2_compact_lora.yaml")
    assert config.refine.lora == LoraConfig(targets=("proj", "mlp")) and config.refine.train == ()
    system = replace(config.system, coarse=COARSE, sam=VIT)
    small = replace(
        config, system=system, init=str(start), epochs=1, data=replace(config.data, phantoms=2, select_share=0.3),
        refine=replace(config.refine, variants=2, max_clicks=2), tracking="none",
    )  # fmt: skip
    train(small, folder, 0, tmp_path / "r", device="cpu")
    assert load_system(tmp_path / "r" / "model.safetensors").refiner is not None
    # With the averaged weights that it asks for: what stands still has to stay as it is, to the bit.
    assert small.ema is not None
    registry = Registry(WorkFolder.of(tmp_path))
    found = add_adapter(registry, tmp_path / "r" / "adapter.safetensors", "site", start)
    before, after = read_checkpoint(start), read_checkpoint(tmp_path / "r" / "best.safetensors")
    changed = {k for k, v in after.tensors.items() if not torch.equal(v.float(), before.tensors[k].float())}
    assert changed and all(".attn.proj." in k or ".mlp." in k for k in changed)
    own = embedding(tmp_path / "r" / "best.safetensors")
    assert torch.allclose(embedding(found.path), own, atol=1e-5)
