"""Means of networks, and networks of different runs in one checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ultrarefiner_monai.cli import command as cli
from ultrarefiner_monai.config import CoarseConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, save_system
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.training.joining import join

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
SAM = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,))
META = {"data": "d", "fold": "0"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


def saved(path: Path, seed: int, sam: SamConfig | None = None, coarse: CoarseConfig = COARSE, **meta: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = build_coarse(coarse), None if sam is None else build_sam(sam)
    return save_system(path, SystemConfig(coarse=coarse, sam=sam), *networks, {**META, **meta}, half=False)


def test_the_mean_coarse_network_and_the_mean_sam_are_joined_and_calibrated(data: Path, tmp_path: Path) -> None:
    coarse = [saved(tmp_path / f"c{k}.safetensors", k) for k in range(3)]
    sam = [saved(tmp_path / f"s{k}.safetensors", 10 + k, SAM) for k in range(2)]
    config = join(coarse, sam, data, 0, tmp_path / "out.safetensors", select_share=0.3)
    got = read_checkpoint(tmp_path / "out.safetensors")
    assert got.config == config and config.sam == SAM
    for part, files in (("coarse", coarse), ("sam", sam)):
        stored = [read_checkpoint(f).part(part) for f in files]
        assert got.part(part).keys() == stored[0].keys()
        for name, value in got.part(part).items():
            if value.is_floating_point():
                wanted = torch.stack([s[name] for s in stored]).mean(dim=0)
                torch.testing.assert_close(value.float(), wanted, atol=2e-3, rtol=2e-3)
    assert got.meta["joined"] == {p: [read_checkpoint(f).version for f in files] for p, files in (("coarse", coarse), ("sam", sam))}  # fmt: skip
    assert "calibration" in got.meta and load_system(tmp_path / "out.safetensors").refiner is not None


def test_one_of_each_is_that_one_and_without_a_sam_the_coarse_network_alone(data: Path, tmp_path: Path) -> None:
    one = saved(tmp_path / "c.safetensors", 1, SAM)
    join([one], [], data, 0, tmp_path / "out.safetensors", select_share=0.3)
    got, stored = read_checkpoint(tmp_path / "out.safetensors"), read_checkpoint(one)
    assert got.config.sam is None and not got.part("sam")
    for name, value in got.part("coarse").items():
        torch.testing.assert_close(value.float(), stored.part("coarse")[name].float(), atol=2e-3, rtol=2e-3)


def test_strangers_are_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    good, out = saved(tmp_path / "a.safetensors", 1), tmp_path / "out.safetensors"
    wider = saved(tmp_path / "w.safetensors", 1, coarse=replace(COARSE, hidden_size=32))
    with pytest.raises(InputError, match="coarse networks of different kinds"):
        join([good, wider], [], data, 0, out)
    with pytest.raises(InputError, match="holds no sam network"):
        join([good], [good], data, 0, out)
    with pytest.raises(InputError, match="fold 3 held out, so it has seen fold 0"):
        join([good, saved(tmp_path / "f.safetensors", 1, fold="3")], [], data, 0, out)
    with pytest.raises(InputError, match="at least one"):
        join([], [good], data, 0, out)
    assert not out.exists()


def test_from_the_command_line(data: Path, tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{k}.safetensors", k) for k in range(2)]
    out = tmp_path / "out.safetensors"
    arguments = ["weights", "join", str(out), "--data", str(data), "--fold", "0", "--select-share", "0.3"]
    done = CliRunner().invoke(cli.app, [*arguments, "--coarse", str(files[0]), "--coarse", str(files[1])])
    assert done.exit_code == 0, done.output
    assert read_checkpoint(out).version in done.output and "min_presence" in done.output
