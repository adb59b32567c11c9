"""The real training command on a tiny network: learns, resumes exactly, keeps the best, stops on nonsense."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import (
    CoarseConfig,
    CoarseLossConfig,
    DataConfig,
    OptimiserConfig,
    SystemConfig,
    TrainConfig,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.datasets.seen import digests_of
from ultrarefiner_monai.evaluation.figures import seen_in_training
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.training import run
from ultrarefiner_monai.training.calibration.calibrate import Example, choose
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL
from ultrarefiner_monai.training.loop.state import load_state, save_state
from ultrarefiner_monai.training.loop.steps import TrainingError, build_optimiser, build_schedule
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.phases.coarse import CoarsePhase
from ultrarefiner_monai.training.phases.selection import selection_figures
from ultrarefiner_monai.training.run import train

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
CONFIG = TrainConfig(
    system=SystemConfig(coarse=COARSE),
    data=DataConfig(select_share=0.3, phantoms=2),
    optimiser=OptimiserConfig(name="adamw", lr=1e-3, schedule="cosine", warmup_epochs=1, clip_norm=1.0),
    loss=CoarseLossConfig(),
    epochs=3,
    batch_size=4,
    ema=0.05,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 24)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    train(CONFIG, folder, 0, out, device="cpu")
    return out


def test_a_run_leaves_what_it_promises(finished: Path, folder: Path) -> None:
    assert {"model.safetensors", "last.pt", "best.safetensors", "split.json", "history.csv", "tensorboard"} <= {
        p.name for p in finished.iterdir()
    }
    assert not list(finished.glob("*.part"))
    rows = list(csv.DictReader((finished / "history.csv").open()))
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    best = max(rows, key=lambda r: float(r["select"]))
    meta = read_checkpoint(finished / "best.safetensors").meta
    assert meta["epoch"] == int(best["epoch"]) and meta["fold"] == "0"
    assert meta["selection"]["select"] == pytest.approx(float(best["select"]), abs=1e-5)
    system = load_system(finished / "best.safetensors")
    assert system.config == CONFIG.system
    final = load_system(finished / "model.safetensors")
    assert replace(final.config, post=CONFIG.system.post) == CONFIG.system
    assert (finished / "model.safetensors").stat().st_size < 0.6 * (finished / "best.safetensors").stat().st_size
    reported = json.loads((finished / "split.json").read_text())["report"]
    assert reported and not set(reported) & set(json.loads((finished / "split.json").read_text())["train"])


def test_an_interrupted_run_ends_with_the_same_weights(
    finished: Path, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    """Interrupted in the middle of epoch 3, then resumed: bit for bit what the uninterrupted run has."""
    out = tmp_path / "r"
    losses = CoarsePhase.losses
    calls = {"n": 0}

    def interrupted(self, network, batch):
        calls["n"] += 1
        if calls["n"] > 2 * steps + 1:
            raise KeyboardInterrupt
        return losses(self, network, batch)

    steps = load_state(finished / "last.pt")["schedule"]["last_epoch"] // 3
    with monkeypatch.context() as patch:
        patch.setattr(CoarsePhase, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, folder, 0, out, device="cpu")
    assert load_state(out / "last.pt")["epoch"] == 2
    train(CONFIG, folder, 0, out, resume=True, device="cpu")
    a, b = load_state(finished / "last.pt"), load_state(out / "last.pt")
    for part in ("network", "average"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert a["best"] == b["best"]
    assert [r["epoch"] for r in csv.DictReader((out / "history.csv").open())] == ["1", "2", "3"]


def test_a_run_keeps_to_its_fold(finished: Path, folder: Path, tmp_path: Path) -> None:
    """Neither resumed nor used as a start can a run move on to a fold that it was trained on."""
    with pytest.raises(InputError, match="another split"):
        train(CONFIG, folder, 1, finished, resume=True, device="cpu")
    start = replace(CONFIG, init=str(finished / "best.safetensors"), epochs=1)
    with pytest.raises(InputError, match="has seen fold 1"):
        train(start, folder, 1, tmp_path / "r", device="cpu")
    train(start, folder, 0, tmp_path / "s", device="cpu")
    meta = read_checkpoint(finished / "model.safetensors").meta
    items = read_index(folder)
    before = {k: v for k, v in meta.items() if k != "digests"}  # a checkpoint of an earlier version
    elsewhere = [replace(i, set="elsewhere") for i in items]
    for fold, seen in (("0", False), ("1", True)):
        own, other = ([i for i in part if i.fold == fold] for part in (items, elsewhere))
        digests = sorted(digests_of(own))
        assert seen_in_training(meta, own, digests) is seen_in_training(meta, other, digests) is seen
        assert seen_in_training(before, own, digests) is seen and seen_in_training(before, other, digests) is None
    assert seen_in_training(before, [replace(items[0], fold="test")], []) is False


def test_teachers_are_followed_and_must_not_have_seen_the_fold(finished: Path, folder: Path, tmp_path: Path) -> None:
    teacher = finished / "model.safetensors"
    taught = replace(CONFIG, epochs=1, loss=replace(CONFIG.loss, teachers=(str(teacher), str(teacher))))
    with pytest.raises(InputError, match="loss.teachers"):
        train(taught, folder, 1, tmp_path / "other", device="cpu")
    smaller = replace(CONFIG.system.coarse, image_size=CONFIG.system.coarse.image_size // 2)
    with pytest.raises(InputError, match="loss.teachers.*image_size"):
        build_phase(replace(taught, system=replace(CONFIG.system, coarse=smaller)))
    torch.manual_seed(0)
    image = torch.rand(2, 1, COARSE.image_size, COARSE.image_size)
    batch = {IMAGE: image, LABEL: (image > 0.9).float()}
    pupil, free = CoarsePhase(taught), CoarsePhase(replace(taught, loss=CONFIG.loss))
    extra = []
    for weights in (pupil.network.state_dict(), pupil.teachers[0].state_dict()):
        pupil.network.load_state_dict(weights)
        network = pupil.network.eval()
        extra.append(float(pupil.losses(network, batch)["loss"] - free.losses(network, batch)["loss"]))
    assert extra[0] > extra[1] > 0  # the teacher itself has nothing to learn but that it is unsure
    train(taught, folder, 0, tmp_path / "r", device="cpu")


def test_it_learns_one_batch(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=24, ema=None, data=DataConfig(select_share=0.3, augment="none"), batch_size=8)
    train(
        replace(config, optimiser=OptimiserConfig(name="adamw", lr=3e-3, schedule="constant")),
        folder,
        0,
        tmp_path / "r",
    )
    rows = list(csv.DictReader((tmp_path / "r" / "history.csv").open()))
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_without_a_calibration_the_result_is_the_best_weights_in_half_precision(folder: Path, tmp_path: Path) -> None:
    train(replace(CONFIG, epochs=1, calibrate=False), folder, 0, tmp_path / "r")
    best, result = (read_checkpoint(tmp_path / "r" / f"{n}.safetensors") for n in ("best", "model"))
    assert result.config == best.config and "calibration" not in result.meta and result.meta == best.meta
    assert all(
        torch.equal(v.half() if v.is_floating_point() else v, result.tensors[k]) for k, v in best.tensors.items()
    )


def test_an_existing_run_is_not_overwritten_and_nothing_cannot_be_resumed(
    finished: Path, folder: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(run, "build_phase", lambda _config: pytest.fail("said before the images are prepared"))
    with pytest.raises(InputError, match="--resume"):
        train(CONFIG, folder, 0, finished)
    with pytest.raises(InputError, match="nothing to resume"):
        train(CONFIG, folder, 0, tmp_path / "new", resume=True)
    with pytest.raises(InputError, match="other options: .*seed"):
        train(replace(CONFIG, seed=1), folder, 0, finished, resume=True)


def test_nan_loss_stops_with_the_images_and_keeps_the_state(folder: Path, tmp_path: Path, monkeypatch) -> None:
    losses = CoarsePhase.losses
    monkeypatch.setattr(CoarsePhase, "losses", lambda s, n, b: {"loss": losses(s, n, b)["loss"] * float("nan")})
    with pytest.raises(TrainingError, match=r"nan in epoch 1 on .*p\d\d"):
        train(CONFIG, folder, 0, tmp_path / "r")


def test_a_failing_write_keeps_the_last_good_state(finished: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.pt"
    save_state(path, {"network": {}, "optimiser": {}, "schedule": {}, "epoch": 1, "best": {}, "config": {}})

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_state(path, {"epoch": 2})
    assert load_state(path)["epoch"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_broken_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable training state"):
        load_state(tmp_path / "last.pt")


def test_accumulated_steps_equal_one_large_batch(folder: Path, tmp_path: Path) -> None:
    """Two batches of 2 accumulated move the schedule as often as one batch of 4."""
    one = replace(CONFIG, epochs=1, data=DataConfig(select_share=0.3))
    two = replace(one, batch_size=2, optimiser=replace(CONFIG.optimiser, accumulate=2))
    for name, config in (("one", one), ("two", two)):
        train(config, folder, 0, tmp_path / name)
    steps = [load_state(tmp_path / n / "last.pt")["schedule"]["last_epoch"] for n in ("one", "two")]
    assert abs(steps[0] - steps[1]) <= 1


def test_runs_of_several_seeds_may_share_their_selection_images(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = replace(CONFIG, epochs=1, data=replace(CONFIG.data, select_seed=5))
    train(first, folder, 0, tmp_path / "a")
    start = str(tmp_path / "a" / "best.safetensors")
    train(replace(first, seed=1, init=start), folder, 0, tmp_path / "b")
    splits = [json.loads((tmp_path / n / "split.json").read_text()) for n in "ab"]
    assert splits[0] == splits[1] and "another seed" not in caplog.text
    train(replace(first, data=CONFIG.data, init=start), folder, 0, tmp_path / "c")
    assert "another seed, so on images that select the checkpoint" in caplog.text


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_schedules_warm_up_and_end_where_they_should(schedule: str) -> None:
    config = OptimiserConfig(lr=1.0, schedule=schedule, warmup_epochs=1)  # type: ignore[arg-type]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = build_optimiser(config, [{"params": [parameter], "lr": 1.0}])
    scheduler = build_schedule(config, optimiser, epochs=5, steps_per_epoch=10)
    rates = []
    for _ in range(50):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert rates[:10] == sorted(rates[:10]) and rates[0] < 0.2
    after = rates[11:]
    assert after == ([1.0] * len(after) if schedule == "constant" else sorted(after, reverse=True))
    assert schedule == "constant" or rates[-1] < 0.05


def test_selection_counts_missed_lesions_and_marked_normals() -> None:
    label = torch.zeros(4, 1, 10, 10, dtype=torch.bool)
    label[:2, :, 2:6, 2:6] = True
    mask = torch.zeros_like(label)
    mask[0] = label[0]  # found; 1 is missed
    mask[2, :, :5] = True  # a false alarm; 3 stays clean
    figures = selection_figures(mask, label, "coarse")
    assert figures["select"].tolist() == [1, 0, 0, 1]
    assert figures["coarse_dice"].tolist() == [1, 0] and figures["normal_marked"].tolist() == [1, 0]


def test_calibration_keeps_lesions_and_clears_normals() -> None:
    """Faint marks on normal images and strong ones on lesions: some bar between them has to be chosen."""
    label = np.zeros((60, 60), bool)
    label[20:40, 20:40] = True
    lesion = Example(np.where(label, 0.93, 0.02).astype(np.float32), None, label)
    normal = Example(np.where(label, 0.65, 0.02).astype(np.float32), None, np.zeros_like(label))
    start = SystemConfig(coarse=COARSE)
    config, figure = choose([lesion, normal], start)
    assert figure == 1 and config.post.min_peak == 0.9  # the highest bar that loses no lesion
    assert replace(config, post=start.post) == start  # nothing else changes without a refiner


def test_calibration_hides_what_the_presence_tells_apart() -> None:
    """Marks as strong on the normal image as on the lesions: only the presence knows. No lesion is hidden for nothing."""
    label = np.zeros((60, 60), bool)
    label[20:40, 20:40] = True
    marks = np.where(label, 0.97, 0.0).astype(np.float32)
    doubts = (0.9, 0.8, 0.42)
    examples = [Example(marks, None, label, p) for p in doubts] + [Example(marks, None, np.zeros_like(label), 0.2)]
    start = SystemConfig(coarse=COARSE)
    config, figure = choose(examples, start)
    assert figure == 1 and config.post.min_presence == 0.25  # so do .3, .35 and .4: the lowest hides least elsewhere
    many = [Example(marks, None, label, 0.9)] * 300 + [Example(marks, None, label, 0.55)]
    assert choose(many, start)[0].post.min_presence <= 0.55
    silent, _ = choose([replace(e, presence=None) for e in examples], start)
    assert silent.post.min_presence == 0


def test_calibration_of_a_refiner_averages_where_that_is_better() -> None:
    label = np.zeros((60, 60), bool)
    label[20:40, 20:40] = True
    # Each network misses the half of the lesion of which the other is sure.
    left, right = label.copy(), label.copy()
    left[:, 33:], right[:, :27] = False, False
    coarse_prob, refined_prob = (
        np.where(half, 0.98, np.where(label, 0.3, 0.0)).astype(np.float32) for half in (left, right)
    )
    config, figure = choose([Example(coarse_prob, refined_prob, label)], SystemConfig(coarse=COARSE))
    assert config.gate.mode == "confidence" and config.gate.g_min == config.gate.g_max == 0.5 and figure == 1


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_optimisers_do_what_the_plain_ones_do(name: str) -> None:
    """Also on weights that lie channels last in memory, as the networks' do on a CPU."""

    def trained(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        network.to(memory_format=torch.channels_last)
        config = OptimiserConfig(name=name, lr=1e-2, weight_decay=0.1)  # type: ignore[arg-type]
        optimiser = build_optimiser(config, [{"params": list(network.parameters()), "lr": 1e-2}])
        optimiser.param_groups[0]["fused"] = fused
        for _ in range(5):
            network(torch.rand(2, 3, 16, 16)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-4, atol=1e-6)
