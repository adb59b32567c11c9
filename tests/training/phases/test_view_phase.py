"""View conditioning in training: the vectors of the views that the data names learn; what comes of them is served."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_refiner_phase import COARSE, PHASE1, VIT, phase2

from ultrarefiner_monai.config import LoraConfig, SystemConfig, TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.evaluation.figures import evaluate
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.joining import join
from ultrarefiner_monai.training.run import train

VIEWS = ("radial", "anti-radial", "longitudinal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    """Images that are radial, antiradial (as somebody writes it), or do not say."""
    data = write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)
    with (data / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for k, row in enumerate(rows):
        row["view"] = "" if k in (0, 6) else ("Radial", "AntiRadial")[k % 2]
    with (data / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return data


@pytest.fixture(scope="module")
def first(tmp_path_factory, folder: Path) -> Path:
    out = tmp_path_factory.mktemp("first")
    train(replace(PHASE1, epochs=1), folder, 0, out, device="cpu")
    return out / "model.safetensors"


def with_views(init: Path, views: tuple[str, ...] = VIEWS, **refine) -> TrainConfig:
    return replace(phase2(init, VIT, **refine), epochs=1, system=SystemConfig(coarse=COARSE, sam=VIT, views=views))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder: Path, first: Path) -> Path:
    out = tmp_path_factory.mktemp("views")
    train(with_views(first), folder, 0, out, device="cpu")
    return out


def table(path: Path) -> torch.Tensor:
    return read_checkpoint(path).part("views")["table"].float()


def test_the_index_names_views(folder: Path) -> None:
    assert {i.view for i in read_index(folder)} == {"radial", "anti-radial", ""}


def test_the_views_in_the_data_learn_and_the_others_stay(folder: Path, trained: Path) -> None:
    found = table(trained / "best.safetensors").abs().amax(dim=1)
    assert found[0] > 0 and found[1] > 0 and found[2] == 0
    assert table(trained / "model.safetensors").shape == (3, 256), "through the calibration"
    assert load_system(trained / "model.safetensors").config.views == VIEWS


def test_another_run_goes_on_with_those_that_it_knows(folder: Path, trained: Path, tmp_path: Path) -> None:
    start = trained / "best.safetensors"
    config = with_views(start, ("oblique", "radial"), train=(), lora=LoraConfig(rank=2), cache="off")
    train(config, folder, 0, tmp_path / "r", device="cpu")
    found = table(tmp_path / "r" / "best.safetensors")
    assert torch.equal(found[1], table(start)[0]) and not found[0].any(), (
        "where adapters alone learn, views stand still"
    )


def test_another_refiner_does_not_get_the_vectors_of_this_one(folder: Path, first: Path, trained: Path) -> None:
    start = trained / "best.safetensors"
    from ultrarefiner_monai.models.checkpoints import load_system
    from ultrarefiner_monai.models.sam.network import save_sam
    from ultrarefiner_monai.training.phases.build import build_phase

    refiner = load_system(start).refiner
    assert refiner is not None
    foreign = first.parent / "foreign.pth"
    save_sam(refiner.sam, foreign)  # type: ignore[arg-type]
    own = build_phase(with_views(first, sam_init=str(start))).network.views.table  # type: ignore[union-attr]
    assert torch.equal(own, table(start)), "those of the checkpoint that the refiner is from"
    other = build_phase(with_views(start, sam_init=str(foreign))).network.views.table  # type: ignore[union-attr]
    assert not other.any()


def test_figures_are_those_of_the_view(folder: Path, trained: Path, tmp_path: Path, monkeypatch) -> None:
    asked: set[str] = set()
    real = Predictor.seen_as
    monkeypatch.setattr(Predictor, "seen_as", lambda self, view: (asked.add(view), real(self, view))[1])
    evaluate(Predictor(load_system(trained / "model.safetensors")), folder, 0, tmp_path / "out")
    assert asked == {"anti-radial", ""}


def test_means_are_of_refiners_with_the_same_views(folder: Path, first: Path, trained: Path, tmp_path: Path) -> None:
    start = trained / "best.safetensors"
    join([start], [start, start], folder, 0, tmp_path / "same.safetensors", calibrate=False)
    assert torch.allclose(table(tmp_path / "same.safetensors"), table(start), atol=1e-3)
    train(with_views(first, ("radial",)), folder, 0, tmp_path / "other", device="cpu")
    other = tmp_path / "other" / "best.safetensors"
    with pytest.raises(InputError, match="know other views"):
        join([start], [start, other], folder, 0, tmp_path / "x.safetensors", calibrate=False)
