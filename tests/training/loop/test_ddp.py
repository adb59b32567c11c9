"""torchrun with two gloo processes, through the real command, against one process with twice the batch."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from two_processes import torchrun

from ultrarefiner_monai.config import TrainConfig, from_dict
from ultrarefiner_monai.training.loop.state import load_state
from ultrarefiner_monai.training.run import train

CONFIG = {
    "phase": "phase1_coarse",
    "system": {"coarse": {"image_size": 32}},
    "data": {"select_share": 0.3, "phantoms": 3},
    "optimiser": {"name": "adamw", "lr": 1e-2, "accumulate": 2, "clip_norm": 1.0},
    "epochs": 3,
    "batch_size": 2,
    "ema": 0.1,
    "tracking": "none",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("ddp") / "d", 22)


@pytest.fixture
def arguments(data: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    return ["train", "phase1_coarse", "--config", str(tmp_path / "small.yaml"), "--data", str(data), "--device", "cpu"]


def test_two_processes_learn_what_one_learns_from_twice_the_batch(
    arguments: list[str], data: Path, tmp_path: Path, small_network: None
) -> None:
    code, output = torchrun(*arguments, "--out", str(tmp_path / "two"))
    assert code == 0, output[-2000:]
    assert output.count("best epoch") == output.count("model.safetensors") == 1  # one process speaks
    train(from_dict(TrainConfig, {**CONFIG, "batch_size": 4}), data, 0, tmp_path / "one", device="cpu")

    one, two = (list(csv.DictReader((tmp_path / n / "history.csv").open())) for n in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "select", "select_loss", "coarse_accuracy", "normal_marked"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), (name, a, b)
    assert one[0]["loss"] != one[2]["loss"]
    a, b = (load_state(tmp_path / n / "last.pt") for n in ("one", "two"))
    assert max((a["average"][k] - v).abs().max().item() for k, v in b["average"].items()) < 1e-5
    assert max((a["average"][k] - v).abs().max().item() for k, v in a["network"].items()) > 1e-4
    assert a["schedule"] == b["schedule"] and (tmp_path / "two" / "model.safetensors").is_file()
    splits = [json.loads((tmp_path / n / "split.json").read_text()) for n in ("one", "two")]
    assert splits[0] == splits[1]


def test_balanced_sets_are_shared_among_processes(
    arguments: list[str], data: Path, tmp_path: Path, small_network: None, write_clean_folder
) -> None:
    """Each image as often as in one process, and the figures of a set are those of all processes."""
    other = write_clean_folder(tmp_path / "other", 12, seed=7)
    config = {**CONFIG, "data": {"select_share": 0.3, "phantoms": 2, "balance": 1.0}, "epochs": 2}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    code, output = torchrun(*arguments, "--data", str(other), "--out", str(tmp_path / "two"))
    assert code == 0, output[-2000:]
    whole = from_dict(TrainConfig, {**config, "batch_size": 4})
    train(whole, [data, other], 0, tmp_path / "one", device="cpu")
    one, two = (list(csv.DictReader((tmp_path / n / "history.csv").open())) for n in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert "select[other]" in a
        for name in ("loss", "select", "select_loss", "select[d]", "select[other]"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), (name, a, b)


def test_a_nan_in_one_process_ends_all_and_names_its_images(arguments: list[str], tmp_path: Path) -> None:
    code, output = torchrun(*arguments, "--out", str(tmp_path / "r"), BREAK_RANK="1")
    assert code != 0
    assert "error: the loss became nan in epoch 1 on p" in output
    assert load_state(tmp_path / "r" / "last.pt")["epoch"] == 0


def test_phases_2_and_3_run_on_two_processes_and_judge_all_images(
    arguments: list[str], data: Path, tmp_path: Path, small_network: None
) -> None:
    train(from_dict(TrainConfig, {**CONFIG, "epochs": 1}), data, 0, tmp_path / "first", device="cpu")
    sam = {"arch": "compact", "image_size": 64, "embed_dim": 16, "depth": 1, "num_heads": 2, "global_attn_indexes": [0]}
    system = {**CONFIG["system"], "sam": sam}  # type: ignore[dict-item]
    start = tmp_path / "first" / "model.safetensors"
    for phase, extra in (("phase2_refiner", {}), ("phase3_joint", {"joint": {"freeze_coarse_epochs": 1}})):
        config = {**CONFIG, "phase": phase, "system": system, "init": str(start), "epochs": 1, "ema": None, **extra}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
        code, output = torchrun("train", phase, *arguments[2:], "--out", str(tmp_path / phase))
        assert code == 0, output[-2000:]
        row = list(csv.DictReader((tmp_path / phase / "history.csv").open()))[-1]
        if phase == "phase2_refiner":
            # The coarse network stands still: what both processes measured together is what one measures.
            train(from_dict(TrainConfig, config), data, 0, tmp_path / "one2", device="cpu")
            one = list(csv.DictReader((tmp_path / "one2" / "history.csv").open()))[-1]
            assert float(row["coarse_dice"]) == pytest.approx(float(one["coarse_dice"]), abs=1e-4)
        start = tmp_path / phase / "model.safetensors"
        assert start.is_file() and float(row["refined_dice"]) >= 0
