from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ultrarefiner_monai import cli, commands
from ultrarefiner_monai.checkpoints import load_system, save_system
from ultrarefiner_monai.config import CoarseConfig, SystemConfig
from ultrarefiner_monai.data.datalist import read_index
from ultrarefiner_monai.data.readers import read_mask, read_study
from ultrarefiner_monai.evaluation import evaluate
from ultrarefiner_monai.inference import Predictor
from ultrarefiner_monai.metrics import score
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.types import InputError

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    coarse = build_coarse(COARSE)
    return save_system(tmp_path_factory.mktemp("w") / "tiny.safetensors", SystemConfig(coarse=COARSE), coarse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


def test_the_figures_are_those_of_the_served_masks(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(load_system(checkpoint))
    summary = evaluate(predictor, folder, 0, tmp_path / "out")
    rows = {r["id"]: r for r in csv.DictReader((tmp_path / "out" / "metrics.csv").open())}
    items = [i for i in read_index(folder) if i.fold == "0"]
    assert sorted(rows) == [i.id for i in items]
    dice = []
    for item in items:
        mask = predictor.propose(read_study(item.image).frame(0)).mask
        expected = score(mask, read_mask(item.mask)[0])
        assert float(rows[item.id]["dice"]) == pytest.approx(expected.dice, abs=1e-4)
        dice += [expected.dice] if item.has_lesion else []
    assert summary["lesion_images"]["dice"]["mean"] == pytest.approx(np.mean(dice), abs=1e-3)
    low, high = summary["lesion_images"]["dice"]["ci95"]
    assert low <= summary["lesion_images"]["dice"]["mean"] <= high
    assert summary["normal_images"]["count"] == sum(not i.has_lesion for i in items)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert "Not a medical device" in summary["notice"]
    assert {p.name for p in (tmp_path / "out" / "overlays").iterdir()} == {
        "worst.png",
        "median.png",
        "best.png",
        "normal.png",
    }


def test_an_empty_fold_is_refused(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image in fold 9"):
        evaluate(Predictor(load_system(checkpoint)), folder, 9, tmp_path)


def test_the_command_evaluates(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app,
        ["evaluate", "--data", str(folder), "--fold", "1", "--model", str(checkpoint), "--out", str(tmp_path / "o")],
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "o" / "summary.json").is_file() and "boundary_f" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--data", "nowhere", "--out", "x", "--model", "nothing.safetensors"], "no checkpoint at"),
        (["train", "phase1_coarse", "--config", "none.yaml", "--data", "d", "--out", "o"], "no configuration at"),
        (["prepare", "FOO", "--raw", "r", "--out", "o"], "unknown dataset"),
        (["weights", "fetch", "nonsense"], "unknown weights"),
        (["weights", "add", "nothing.pth"], "no such file"),
        (["forget", "../x", "--studies", "s"], "expected an image id"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["ultrarefiner", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    error = capsys.readouterr().err
    assert caught.value.code == 1 and words in error and "Traceback" not in error and error.count("\n") == 1


def test_help_and_version_carry_the_notice() -> None:
    for arguments in (["--help"], ["--version"]):
        assert "Not a medical device" in " ".join(CliRunner().invoke(cli.app, arguments).output.split())


def test_overrides_read_numbers_as_numbers() -> None:
    assert commands.overrides(["optimiser.lr=1e-3", "ema=null", "init=none", "epochs=4"]) == {
        "optimiser.lr": 1e-3, "ema": None, "init": "none", "epochs": 4,
    }  # fmt: skip


def test_a_run_without_out_is_named_after_its_config(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "system:\n  coarse: {arch: compact, image_size: 32, hidden_size: 16, num_layers: 1, num_heads: 2, mlp_dim: 32,"
        " decoder_channels: [16, 8, 8]}\ndata: {select_share: 0.3}\nepochs: 1\nbatch_size: 4\n"
    )
    result = CliRunner().invoke(
        cli.app, ["train", "phase1_coarse", "--config", str(config), "--data", str(folder), "--fold", "1"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "tiny_fold1" / "model.safetensors").is_file()
