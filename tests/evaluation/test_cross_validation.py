"""Trainings in a row and cross-validation: what is finished is left alone, what is begun goes on."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.config import CoarseConfig, ConfigError, DataConfig, OptimiserConfig, SystemConfig, TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.evaluation import cross_validation as cv
from ultrarefiner_monai.evaluation.cross_validation import FoldJob, cross_validate, results_table, run_fold, summary
from ultrarefiner_monai.models.checkpoints import read_checkpoint
from ultrarefiner_monai.training.phases import build, coarse
from ultrarefiner_monai.training.sequence import train_all

SMALL = TrainConfig(
    system=SystemConfig(coarse=CoarseConfig(image_size=32), flip_tta=False),
    data=DataConfig(select_share=0.3),
    optimiser=OptimiserConfig(name="adamw", lr=1e-2),
    epochs=2,
    batch_size=4,
    tracking="none",
)
COMPACT = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("cv") / "phantoms", 24)


def test_stages_start_from_the_one_before_and_a_chain_goes_on(
    data: Path, tmp_path: Path, small_network: None, monkeypatch
) -> None:
    stages = [("first", SMALL), ("second", replace(SMALL, seed=SMALL.seed, batch_size=3))]
    losses, calls = coarse.CoarsePhase.losses, []

    def counted(self, network, batch):
        calls.append(self.config.batch_size)
        if len(calls) == 7 and stopping:
            raise KeyboardInterrupt
        return losses(self, network, batch)

    monkeypatch.setattr(coarse.CoarsePhase, "losses", counted)
    stopping = True
    with pytest.raises(KeyboardInterrupt):
        train_all(stages, data, 0, tmp_path, device="cpu")
    assert calls.count(3) and (tmp_path / "first" / "model.safetensors").is_file()
    stopping, first = False, calls.count(4)
    result = train_all(stages, data, 0, tmp_path, resume=True, device="cpu")
    assert calls.count(4) == first  # the finished one was not trained again
    assert result == tmp_path / "second" / "model.safetensors" and read_checkpoint(result).meta["fold"] == "0"
    start = build.build_phase(replace(SMALL, init=str(tmp_path / "first" / "model.safetensors")))
    assert build.build_phase(SMALL).network[0].weight.ne(start.network[0].weight).any()
    with pytest.raises(InputError, match="other options: .*epochs|other options: .*batch_size"):
        train_all([("first", replace(SMALL, batch_size=5)), stages[1]], data, 0, tmp_path, resume=True, device="cpu")
    with pytest.raises(InputError, match="different names"):
        train_all([stages[0], stages[0]], data, 0, tmp_path / "other")


def test_a_checkpoint_of_another_network_is_refused_at_once(data: Path, tmp_path: Path, small_network: None) -> None:
    model = train_all([("a", replace(SMALL, epochs=1))], data, 0, tmp_path, device="cpu")
    coarse.build_coarse = lambda config: __import__("torch").nn.Conv2d(1, 2, 3)  # type: ignore[assignment]
    with pytest.raises(InputError, match="does not fit this network"):
        train_all([("b", replace(SMALL, init=str(model)))], data, 0, tmp_path, device="cpu")
    assert not (tmp_path / "b" / "last.pt").exists()


def test_a_fold_leaves_figures_and_unseen_predictions(data: Path, tmp_path: Path, small_network: None) -> None:
    job = FoldJob(data, "1", tmp_path / "phantoms" / "fold_1", (("coarse", replace(SMALL, epochs=1)),), "cpu")
    row = run_fold(job)
    assert row["fold"] == "1" and 0 <= row["dice"] <= 1 and row == json.loads(job.result.read_text())
    held_out = [r["id"] for r in csv.DictReader((data / "index.csv").open()) if r["fold"] == "1"]
    kept = tmp_path / "phantoms" / "oof"
    assert sorted(p.stem for p in kept.iterdir()) == sorted(held_out)
    with Image.open(kept / f"{held_out[0]}.png") as picture:
        assert picture.mode == "L" and max(picture.size) == 32 and np.asarray(picture).max() > 0
    job.result.write_text(json.dumps({**row, "dice": 0.123}))
    assert run_fold(job)["dice"] == 0.123  # finished: nothing is computed again
    job.result.unlink()
    with cv._alone(job.out), pytest.raises(InputError, match="another process works in"):
        run_fold(job)


def test_a_folder_that_cannot_be_locked_is_not_called_busy(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"cannot lock .*\.lock: Is a directory"), cv._alone(tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_local_jobs_skip_what_is_finished_and_report_what_failed(data: Path, tmp_path: Path) -> None:
    config = replace(SMALL, system=SystemConfig(coarse=COMPACT, flip_tta=False), epochs=1)
    finished = tmp_path / "phantoms" / "fold_1" / "result.json"
    finished.parent.mkdir(parents=True)
    row = {"dataset": "phantoms", "fold": "1", "lesion_images": 6, "normal_images": 2, "false_alarm_rate": 0.5}
    finished.write_text(json.dumps({**row, **dict.fromkeys(cv.FIGURES, 0.5), "coarse_dice": 0.5}))
    (tmp_path / "phantoms" / "fold_2").write_text("in the way")  # makes this job fail
    said: list[str] = []
    with pytest.raises(InputError, match=r"1 of 3 jobs failed: phantoms, fold 2 \(.*fold_2.*log: "):
        cross_validate([("c", config)], [data], ["0", "1", "2"], tmp_path, parallel=2, device="cpu", say=said.append)
    assert "3 jobs, 1 of them finished before" in said and "phantoms, fold 0: finished" in said
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [r["fold"] for r in rows] == ["0", "1"] and float(rows[1]["dice"]) == 0.5
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["datasets"]["phantoms"]["dice"]["folds"] == 2


def test_slurm_gets_one_array_with_its_options(data: Path, tmp_path: Path, monkeypatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("srun", "sbatch", "sacct"):
        (tools / name).write_text(f'#!/bin/sh\ncat "$1" > {tmp_path}/{name}.txt\necho Submitted batch job 4242\n')
        (tools / name).chmod(0o755)
    arguments = ([("c", SMALL)], [data], ["0", "1", "2"], tmp_path / "out", "slurm")
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="use --executor local"):
            cross_validate(*arguments)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    options = {"partition": "gpu", "gpus_per_node": 1, "timeout_min": 90}
    assert cross_validate(*arguments, options, parallel=2, wait=False) == []
    script = (tmp_path / "sbatch.txt").read_text()
    for line in ("--array=0-2%2", "--partition=gpu", "--gpus-per-node=1", "--time=90"):
        assert f"#SBATCH {line}\n" in script
    with pytest.raises(ConfigError, match="--slurm: .*no_such"):
        cross_validate(*arguments, {"no_such": 1}, wait=False)


def test_bad_data_is_found_before_any_job(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fold 7 does not exist"):
        cross_validate([("c", SMALL)], [data], ["0", "7"], tmp_path / "out")
    with pytest.raises(InputError, match="different names"):
        cross_validate([("c", SMALL)], [data, data], ["0"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_table_has_means_and_deviations() -> None:
    base = {"dataset": "a", "lesion_images": 3, "normal_images": 0, "false_alarm_rate": None, "coarse_dice": 0.6}
    rows = [{**base, "fold": str(k), **dict.fromkeys(cv.FIGURES, v)} for k, v in enumerate((0.6, 0.8))]
    figures = summary(rows)["a"]
    assert figures["dice"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.1414, abs=1e-4), "folds": 2}
    assert "false_alarm_rate" not in figures
    table = results_table(rows)
    assert table.row_count == 3 and "0.700 ± 0.141" in list(table.columns[2].cells)


def test_several_sets_are_one_job_with_a_line_for_each(
    data: Path, tmp_path: Path, small_network: None, write_clean_folder
) -> None:
    other = write_clean_folder(tmp_path / "other", 12, seed=5)
    job = FoldJob((data, other), "1", tmp_path / "o" / "fold_1", (("coarse", replace(SMALL, epochs=1)),), "cpu")
    assert job.name == "other+phantoms"
    result = run_fold(job)
    whole, *sets = cv._rows([result])
    assert [line["dataset"] for line in (whole, *sets)] == ["other+phantoms", "other", "phantoms"]
    assert whole["lesion_images"] == sum(line["lesion_images"] for line in sets)
    mean = sum(line["dice"] * line["lesion_images"] for line in sets) / whole["lesion_images"]
    assert whole["dice"] == pytest.approx(mean, abs=1e-3) and not any("sets" in line for line in (whole, *sets))
    assert results_table([whole, *sets]).row_count == 6
    kept = {p.parent.name for p in (tmp_path / "o" / "oof").rglob("*.png")}
    assert kept == {"other", "phantoms"}
