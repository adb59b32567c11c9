"""A checkpoint gives back what was stored, and refuses everything else by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ultrarefiner_monai.config import CoarseConfig, GateConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_strictly, load_system, read_checkpoint, sam_arch, save_system
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.network import build_sam

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
SAM = SamConfig(
    arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, window_size=2, global_attn_indexes=(0,)
)


@pytest.fixture(scope="module")
def config() -> SystemConfig:
    return SystemConfig(coarse=COARSE)


@pytest.fixture(scope="module")
def coarse() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_coarse(COARSE).eval()


def test_full_precision_round_trip_is_exact(tmp_path: Path, config: SystemConfig, coarse: torch.nn.Module) -> None:
    path = save_system(tmp_path / "a.safetensors", config, coarse, meta={"fold": "0"}, half=False)
    system = load_system(path)
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(system.coarse(image), coarse(image))
    assert system.config == config and system.meta == {"fold": "0"} and system.refiner is None
    assert not any(p.requires_grad for p in system.coarse.parameters()) and not system.coarse.training


def test_half_precision_is_close_and_half_the_size(tmp_path: Path, config: SystemConfig, coarse) -> None:
    full = save_system(tmp_path / "full.safetensors", config, coarse, half=False)
    half = save_system(tmp_path / "half.safetensors", config, coarse)
    assert half.stat().st_size < 0.55 * full.stat().st_size
    image = torch.rand(1, 1, 32, 32)
    assert (load_system(half).coarse(image) - coarse(image)).abs().max() < 0.05
    assert load_system(half).version != load_system(full).version


def test_a_system_with_a_refiner_round_trips(tmp_path: Path, coarse: torch.nn.Module) -> None:
    config = SystemConfig(coarse=COARSE, sam=SAM)
    sam = build_sam(SAM)
    path = save_system(tmp_path / "s.safetensors", config, coarse, sam, half=False)
    system = load_system(path)
    assert system.refiner is not None
    stored = read_checkpoint(path).part("sam")
    assert all(torch.equal(v, stored[k]) for k, v in sam.state_dict().items())
    with pytest.raises(ValueError, match="config.sam"):
        save_system(path, config, coarse)


def test_a_learned_gate_travels_along(tmp_path: Path, coarse: torch.nn.Module) -> None:
    config = SystemConfig(coarse=COARSE, sam=SAM, gate=GateConfig(mode="learned"))
    refiner = Refiner(build_sam(SAM), config)
    with torch.no_grad():
        for parameter in refiner.gate.parameters():
            parameter.uniform_(-1, 1)
    path = save_system(tmp_path / "g.safetensors", config, coarse, refiner.sam, half=False, gate=refiner.gate)
    a, b = torch.rand(2, 1, 1, 64, 64)
    loaded = load_system(path).refiner
    assert loaded is not None and torch.equal(loaded.final_prob(a, b), refiner.final_prob(a, b))
    with pytest.raises(ValueError, match="gate"):
        save_system(path, config, coarse, refiner.sam)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, config: SystemConfig, coarse: torch.nn.Module) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        load_system(tmp_path / "missing.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not weights at all")
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_system(junk)
    save_file({"a": torch.zeros(1)}, junk)
    with pytest.raises(InputError, match="not an ultrarefiner checkpoint"):
        load_system(junk)
    whole = save_system(tmp_path / "whole.safetensors", config, coarse)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError):
        load_system(cut)


def test_strict_loading_names_the_keys() -> None:
    module = torch.nn.Linear(2, 3)
    with pytest.raises(InputError, match=r"1 missing: bias; 1 unexpected: biass"):
        load_strictly(module, {"weight": torch.zeros(3, 2), "biass": torch.zeros(3)}, "file")
    with pytest.raises(InputError, match=r"weight \(2, 3\) instead of \(3, 2\)"):
        load_strictly(module, {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, "file")


def test_another_architecture_is_refused(tmp_path: Path, config: SystemConfig, coarse: torch.nn.Module) -> None:
    wider = replace(config, coarse=replace(COARSE, hidden_size=32))
    path = save_system(tmp_path / "wrong.safetensors", wider, coarse)
    with pytest.raises(InputError, match="does not fit this network"):
        load_system(path)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, config: SystemConfig, coarse: torch.nn.Module) -> None:
    path = save_system(tmp_path / "a.safetensors", config, coarse)
    before = path.read_bytes()
    broken = build_coarse(COARSE)
    with torch.no_grad():
        next(broken.parameters()).fill_(1e9)  # beyond float16
    with pytest.raises(ValueError, match="float16"):
        save_system(path, config, broken)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, config: SystemConfig, coarse: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, fsync = {}, os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        flushed[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", noting)
    found = save_system(tmp_path / "a.safetensors", config, coarse).stat()
    assert flushed[found.st_ino] == found.st_size and found.st_mode & 0o777 == 0o644


def test_sam_sizes_are_told_apart() -> None:
    key = "image_encoder.patch_embed.proj.weight"
    assert sam_arch({key: torch.zeros(768, 3, 16, 16)}) == "vit_b"
    assert sam_arch({key: torch.zeros(1280, 3, 16, 16)}) == "vit_h"
    with pytest.raises(InputError, match="missing"):
        sam_arch({})
