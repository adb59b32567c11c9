"""What a run shows and where its figures go."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ultrarefiner_monai.config import ConfigError, TrainConfig
from ultrarefiner_monai.training.loop.console import EpochTable, epoch_table
from ultrarefiner_monai.training.loop.tracking import Trackers, overlay_sheet

CONFIG = TrainConfig(tracking="both")


def test_an_epoch_is_a_table_with_the_best_marked(tmp_path: Path, capsys) -> None:
    table = EpochTable(tmp_path / "history.csv", epochs=3)
    table.add(
        1,
        {"loss": 0.5, "loss_iou": 0.1, "iou": 0.3},
        {"select": 0.7, "coarse_dice": 0.71, "refined_iou": 0.62},
        1e-3,
        True,
    )
    table.add(
        2,
        {"loss": 0.4, "loss_iou": 0.1, "iou": 0.3},
        {"select": 0.6, "coarse_dice": 0.61, "refined_iou": 0.52},
        1e-3,
        False,
    )
    first, second = capsys.readouterr().out.split("EPOCH 2/3")
    assert "EPOCH 1/3  ★ BEST" in first and "BEST" not in second and "left" in first
    lines = [line for line in first.splitlines() if line.startswith(("train", "validation"))]
    assert [line.split()[:2] for line in lines[1:3]] == [["validation", "coarse"], ["validation", "refined"]]
    assert "0.5000" in lines[0] and "0.7100" in lines[1] and "0.6200" in lines[2]
    assert "loss_iou 0.1000 · train iou 0.3000" in first and "select 0.7000" in first
    header, row, _ = (tmp_path / "history.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(",")))["train_loss_iou"] == "0.1"


def test_the_table_fits_a_terminal() -> None:
    figures = {f"refined_{m}": 0.5 for m in ("dice", "iou", "precision", "recall", "accuracy")} | {"loss": 1.0}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(epoch_table({"loss": 1.0}, figures))
    lines = capture.get().splitlines()
    assert len(lines) == 4 and "…" not in capture.get()  # header, rule, two rows: nothing is wrapped or cut


def test_outlines_are_drawn_on_the_image() -> None:
    image, mask = torch.full((2, 1, 9, 9), 0.5), torch.zeros(2, 1, 9, 9)
    mask[0, :, 2:7, 2:7] = 1
    sheet = overlay_sheet({"image": image, "label": mask, "coarse": torch.zeros_like(mask)})
    assert sheet.shape == (9, 18, 3) and sheet.dtype == np.uint8
    assert tuple(sheet[2, 2]) == (53, 208, 127) and tuple(sheet[4, 4]) == tuple(sheet[4, 13]) == (128, 128, 128)


def test_tensorboard_hides_what_is_computed_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, tracking="tensorboard")
    for first, epochs in ((1, (1, 2, 3)), (3, (3, 4))):  # interrupted after epoch 2's checkpoint
        trackers = Trackers(tmp_path, config, {}, None, first, 10 * first)
        for epoch in epochs:
            trackers.scalars({"select/select": epoch / 10 + first}, epoch)
        trackers.picture(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8), 1)
        trackers.close(True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [round(e.value, 2) for e in events.Scalars("select/select")] == [1.1, 1.2, 3.3, 3.4]


def test_a_failing_tracker_is_left_out(tmp_path: Path, caplog) -> None:
    trackers = Trackers(tmp_path, replace(CONFIG, tracking="none"), {})

    class Full:
        calls = 0

        def scalars(self, figures, step):
            self.calls += 1
            raise OSError(28, "No space left on device")

    full = Full()
    trackers._all.append(full)  # type: ignore[arg-type]
    trackers.scalars({"a": 1.0}, 1)
    trackers.scalars({"a": 1.0}, 2)
    assert full.calls == 1 and "Full failed and is left out" in caplog.text


def test_a_tracker_that_is_not_installed_is_said_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match="tracking: mlflow needs MLflow: pip install"):
        Trackers(tmp_path, replace(CONFIG, tracking="mlflow"), {})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlflow_keeps_one_run_in_a_local_file(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    out, config = tmp_path / "runs" / "compact_fold0", replace(CONFIG, tracking="mlflow")
    out.mkdir(parents=True)
    (out / "epoch_0001.png").write_bytes(b"picture")
    first = Trackers(out, config, {"fold": "0"})
    first.scalars({"select/select": 0.5, "train/dice": float("nan")}, 1)
    first.picture(out / "epoch_0001.png", np.zeros((1, 1, 3), np.uint8), 1)
    first.close(False)
    again = Trackers(out, config, {"fold": "0"}, first.state())
    again.scalars({"select/select": 0.6}, 2)
    again.close(True)
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("phase1_coarse")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "compact_fold0" and run.info.status == "FINISHED" and run.data.tags["fold"] == "0"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "select/select")] == [0.5, 0.6]
    assert "train/dice" not in run.data.metrics and run.data.params["optimiser.lr"] == "0.01"
    assert list((tmp_path / "runs" / "mlartifacts").rglob("overlays/epoch_0001.png"))
