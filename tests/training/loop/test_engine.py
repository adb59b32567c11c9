"""The loop itself, on a phase so small that a run takes a second: resume, accumulation, freezing, full disk, trackers."""

from __future__ import annotations

import csv
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ultrarefiner_monai.config import OptimiserConfig, TrainConfig, to_dict
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Split
from ultrarefiner_monai.training.data.loading import plain_loader, training_loader
from ultrarefiner_monai.training.loop.engine import Run
from ultrarefiner_monai.training.loop.epoch_means import Means
from ultrarefiner_monai.training.loop.state import check_same_options, load_state
from ultrarefiner_monai.training.loop.steps import Accumulation, TrainingError, frozen_parts
from ultrarefiner_monai.training.phases.phase import Loaders, Phase

CONFIG = TrainConfig(
    epochs=4,
    batch_size=2,
    ema=0.1,
    optimiser=OptimiserConfig(name="adamw", lr=1e-2, accumulate=3, warmup_epochs=1, clip_norm=1.0),
    tracking="none",
    overlays=3,
)


class Squares(torch.utils.data.Dataset):
    """10 noisy images of 12 pixels with a bright square each; noise by epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 10

    def __getitem__(self, k: int) -> dict:
        noise = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(100 * self.epoch + k))
        label = torch.zeros(1, 12, 12)
        label[:, k % 5 : k % 5 + 6, 2:8] = 1
        return {"image": 0.5 * noise + 0.5 * label, "label": label, "id": f"square{k}"}


class TinyPhase(Phase):
    """A head on a stem that is frozen in epoch 1."""

    selects: tuple[float, ...] = ()  # figures to pretend, by epoch

    def __init__(self, config: TrainConfig = CONFIG) -> None:
        torch.manual_seed(7)
        stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.network = nn.Sequential(stem, nn.Conv2d(4, 1, 1))
        self.config, self.epoch, self.saved = config, 0, []

    def loaders(self, split: Split, out: Path) -> Loaders:
        data = Squares()
        return training_loader(data, self.config.batch_size, 0), plain_loader(data, 4)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.network[0].requires_grad_(epoch > 1)

    def parameter_groups(self) -> list[dict]:
        stem, head = self.network[0].parameters(), self.network[1].parameters()
        return [{"params": stem, "lr": 1e-3, "name": "stem"}, {"params": head, "lr": 1e-2, "name": "head"}]

    def losses(self, network: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        loss = F.binary_cross_entropy_with_logits(network(batch["image"]), batch["label"])
        return {"loss": loss, "bce": loss, "tiny_dice": torch.tensor(float("nan"))}

    def figures(self, network: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        mask = network(batch["image"]) > 0
        dice = 1 - (mask.float() - batch["label"]).abs().flatten(1).mean(dim=1)
        select = torch.full_like(dice, self.selects[self.epoch - 1]) if self.selects else dice
        return {"select": select, "tiny_dice": dice, "tiny_iou": dice[:0]}

    def pictures(self, network: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        return {"image": batch["image"], "label": batch["label"], "tiny": network(batch["image"]) > 0}

    def save(self, network: nn.Module, path: Path, meta: dict) -> None:
        path.write_text(str(meta["epoch"]))


def make(out: Path, config: TrainConfig = CONFIG) -> Run:
    out.mkdir(exist_ok=True)
    phase = TinyPhase(config)
    return Run(phase, config, *phase.loaders(Split((), (), ()), out), out)


def interrupt_in(monkeypatch, epoch: int) -> None:
    losses = TinyPhase.losses

    def interrupted(self, network, batch):
        if self.epoch == epoch and torch.rand(1) >= 0:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 2:
                raise KeyboardInterrupt
        return losses(self, network, batch)

    monkeypatch.setattr(TinyPhase, "losses", interrupted)


@pytest.mark.parametrize("epoch", [1, 3])
def test_interrupted_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, monkeypatch, epoch: int) -> None:
    """5 batches an epoch with 3 accumulated: the rest of 2 steps too, so nothing is lost between epochs."""
    whole = make(tmp_path / "whole")
    whole.fit()
    with monkeypatch.context() as patch:
        interrupt_in(patch, epoch)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "part").fit()
    assert load_state(tmp_path / "part" / "last.pt")["epoch"] == epoch - 1
    again = make(tmp_path / "part")
    again.resume()
    again.fit()
    a, b = (load_state(tmp_path / n / "last.pt") for n in ("whole", "part"))
    for part in ("network", "average"):
        assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    for key, moments in a["optimiser"]["state"].items():
        assert all(torch.equal(v, b["optimiser"]["state"][key][n]) for n, v in moments.items())
    assert a["best"] == b["best"] and a["schedule"] == b["schedule"] == {"last_epoch": 8}
    rows = [list(csv.DictReader((tmp_path / n / "history.csv").open())) for n in ("whole", "part")]
    assert [{**r, "seconds": ""} for r in rows[0]] == [{**r, "seconds": ""} for r in rows[1]]


def test_few_looks_at_the_selection_images_change_nothing_of_what_is_learnt(tmp_path: Path, monkeypatch) -> None:
    often, seldom = make(tmp_path / "often"), make(tmp_path / "seldom", replace(CONFIG, validate_every=3))
    often.fit()
    with monkeypatch.context() as patch:
        interrupt_in(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            seldom.fit()
    assert load_state(tmp_path / "seldom" / "last.pt")["epoch"] == 0  # kept after each look
    again = make(tmp_path / "seldom", replace(CONFIG, validate_every=3))
    again.resume()
    again.fit()
    a, b = (load_state(tmp_path / n / "last.pt") for n in ("often", "seldom"))
    assert all(torch.equal(a["average"][k], b["average"][k]) for k in a["average"])
    rows = list(csv.DictReader((tmp_path / "seldom" / "history.csv").open()))
    assert [bool(r["select"]) for r in rows] == [False, False, True, True] and all(r["loss"] for r in rows)


def test_patience_survives_an_interruption(tmp_path: Path, monkeypatch) -> None:
    config = replace(CONFIG, epochs=9, early_stop=3)
    monkeypatch.setattr(TinyPhase, "selects", (0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4))
    make(tmp_path / "whole", config).fit()
    assert load_state(tmp_path / "whole" / "last.pt")["epoch"] == 4
    with monkeypatch.context() as patch:
        interrupt_in(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "part", config).fit()
    for _ in range(2):  # the second time there is nothing left to do
        again = make(tmp_path / "part", config)
        again.resume()
        again.fit()
        assert load_state(tmp_path / "part" / "last.pt")["epoch"] == 4
    assert again.finished and again.best.epoch == 1


def test_the_rest_of_an_epoch_is_a_step_of_its_own() -> None:
    five = Accumulation(batches=5, every=3)
    assert five.steps == 2
    places = [five.at(k) for k in range(1, 11)]
    assert places[:5] == [(False, 3), (False, 3), (True, 3), (False, 2), (True, 2)] and places[5:] == places[:5]
    assert [Accumulation(2, 8).at(k) for k in (1, 2)] == [(False, 2), (True, 2)]


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(TinyPhase, "start_epoch", lambda self, epoch: None)
    plain = replace(CONFIG, epochs=1, ema=None)
    ends = []
    for name, size, every in (("small", 1, 5), ("large", 5, 1)):
        run = make(
            tmp_path / name,
            replace(plain, batch_size=size, optimiser=replace(CONFIG.optimiser, name="sgd", accumulate=every)),
        )
        run.phase.network[0][1], run.phase.network[0][3] = nn.Identity(), nn.Identity()
        run.fit()
        ends.append(run.network[1].weight)
    assert torch.allclose(*ends, atol=1e-6) and not torch.equal(ends[0], TinyPhase().network[1].weight)


def test_frozen_parts_stand_still_and_thaw(tmp_path: Path) -> None:
    start = {k: v.clone() for k, v in TinyPhase().network.state_dict().items()}
    run = make(tmp_path / "one", replace(CONFIG, epochs=1))
    run.fit()
    one = run.network.state_dict()
    assert all(torch.equal(one[k], start[k]) for k in start if k.startswith("0."))  # norm statistics too
    assert not torch.equal(one["1.weight"], start["1.weight"])
    run = make(tmp_path / "two", replace(CONFIG, epochs=2))
    run.fit()
    two = run.network.state_dict()
    assert all(not torch.equal(two[k], start[k]) for k in ("0.0.weight", "0.1.running_mean"))


def test_frozen_parts_are_the_largest_ones() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.Dropout()), nn.Linear(1, 1))
    network[0].requires_grad_(False)
    assert frozen_parts(network) == [network[0]]
    network[0][0].bias.requires_grad_(True)
    assert frozen_parts(network) == []


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path) -> None:
    """A real refusal by the system: no file may grow beyond a limit that the first checkpoint just reaches."""
    out = tmp_path / "r"
    make(out, replace(CONFIG, epochs=1)).fit()
    before = (out / "last.pt").read_bytes()
    run = make(out, replace(CONFIG, epochs=2))
    run.resume()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(TrainingError, match="epoch 2 could not be written .*make room.*--resume"):
            run.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (out / "last.pt").read_bytes() == before and not list(out.glob("*.part")) + list(out.glob(".*.part"))
    again = make(out, replace(CONFIG, epochs=2))
    again.resume()
    again.fit()
    make(tmp_path / "whole", replace(CONFIG, epochs=2)).fit()
    a, b = (load_state(p / "last.pt")["network"] for p in (out, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_state_without_newer_options_goes_on(tmp_path: Path) -> None:
    run = make(tmp_path / "r", replace(CONFIG, epochs=1))
    run.fit()
    state = load_state(tmp_path / "r" / "last.pt")
    for name in ("overlays", "tracking", "keep"):
        del state["config"][name]
    torch.save(state, tmp_path / "r" / "last.pt")
    make(tmp_path / "r", replace(CONFIG, tracking="tensorboard")).resume()
    with pytest.raises(InputError, match="other options: keep differ"):
        make(tmp_path / "r", replace(CONFIG, keep="last")).resume()


def test_a_state_with_options_that_are_gone_goes_on_where_they_were_what_is_done_now(tmp_path: Path) -> None:
    config = replace(CONFIG, data=replace(CONFIG.data, augment="machines"))
    make(tmp_path / "r", replace(config, epochs=1)).fit()
    state = load_state(tmp_path / "r" / "last.pt")
    state["config"] |= {"overlay_every": 2}
    state["config"]["joint"] |= {"warn_drop": 0.5}
    state["config"]["data"]["machines"] |= {"zoom": [0.6, 1.6], "shadows": 3}
    torch.save(state, tmp_path / "r" / "last.pt")
    make(tmp_path / "r", config).resume()
    state["config"]["data"]["machines"] |= {"zoom": [0.5, 2.0]}
    torch.save(state, tmp_path / "r" / "last.pt")
    with pytest.raises(
        InputError, match=r"trained with data.machines.zoom: \[0.5, 2.0\], which is fixed at \(0.6, 1.6\)"
    ):
        make(tmp_path / "r", config).resume()


def test_options_that_are_gone_count_only_where_the_run_went_by_them() -> None:
    stored, path = to_dict(CONFIG), Path("last.pt")
    stored["data"]["machines"] |= {"zoom": [0.5, 2.0]}
    stored["loss"] |= {"teacher_weight": 2.0, "teachers": []}
    for augment in ("none", "standard", "strong"):
        config = replace(CONFIG, data=replace(CONFIG.data, augment=augment))
        check_same_options(path, {**stored, "data": {**stored["data"], "augment": augment}}, config)
    with pytest.raises(InputError, match="data.machines.zoom"):
        check_same_options(path, {**stored, "data": {**stored["data"], "augment": "machines"}}, CONFIG)
    with pytest.raises(InputError, match="loss.teacher_weight"):
        check_same_options(path, {**stored, "loss": {**stored["loss"], "teachers": ["a.safetensors"]}}, CONFIG)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path: Path, amp: str) -> None:
    optimiser = OptimiserConfig(name="adamw", schedule="constant")
    run = make(tmp_path / "r", replace(CONFIG, amp=amp, epochs=4, optimiser=optimiser))  # type: ignore[arg-type]
    run.fit()
    rows = list(csv.DictReader((tmp_path / "r" / "history.csv").open()))
    assert float(rows[3]["loss"]) < float(rows[0]["loss"])
    assert next(run.network.parameters()).dtype == torch.float32


def test_means_leave_out_what_is_not_there() -> None:
    means = Means(torch.device("cpu"))
    means.add({"loss": 1.0, "dice": float("nan"), "iou": torch.zeros(0)})
    means.add({"loss": 3.0, "dice": 0.5, "iou": torch.tensor([0.2, 0.4])})
    figures = means.compute()
    assert figures == {"loss": 2.0, "dice": 0.5, "iou": pytest.approx(0.3)}


def test_pictures_are_drawn_every_so_often(tmp_path: Path) -> None:
    from PIL import Image

    make(tmp_path / "r", replace(CONFIG, epochs=6)).fit()
    pictures = sorted((tmp_path / "r" / "overlays").iterdir())
    assert [p.name for p in pictures] == ["epoch_0005.png", "epoch_0006.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (3 * 12, 12) and picture.mode == "RGB"
        colours = {tuple(c) for _, c in picture.getcolors() or []}
    assert (53, 208, 127) in colours or (255, 176, 0) in colours


@pytest.mark.parametrize("several", [False, True])
def test_only_where_there_are_several_sets_a_name_before_a_slash_is_one(tmp_path: Path, several: bool) -> None:
    class Named(Squares):
        def __getitem__(self, k: int) -> dict:
            return {**super().__getitem__(k), "id": f"{'ab'[k % 2]}/deep/{k}"}

    config, data = replace(CONFIG, epochs=1), Named()
    sets = ["ab"[k % 2] for k in range(10)] if several else None
    Run(TinyPhase(), config, training_loader(data, 2, 0), plain_loader(data, 4, sets), tmp_path).fit()
    names = next(csv.reader((tmp_path / "history.csv").open()))
    assert {n for n in names if "[" in n} == (
        {f"{n}[{s}]" for n in ("select", "tiny_dice") for s in "ab"} if several else set()
    )
