"""Phase ppn: the targets, the matching, what learns, and what comes out of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_refiner_phase import COARSE, PHASE1, VIT, phase2

from ultrarefiner_monai.config import (
    ConfigError,
    GateConfig,
    LoraConfig,
    PpnConfig,
    TrainConfig,
    from_dict,
    load_yaml,
    to_dict,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index, split_fold
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.models.lora import lora_parameters
from ultrarefiner_monai.models.ppn import ProposedPoints
from ultrarefiner_monai.training.joining import join
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.phases.points import matched, point_losses, target_points
from ultrarefiner_monai.training.phases.ppn import share_inside
from ultrarefiner_monai.training.run import train

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = PpnConfig(points=5, width=16, blocks=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory, folder: Path) -> Path:
    out = tmp_path_factory.mktemp("coarse")
    train(replace(PHASE1, epochs=1), folder, 0, out / "1", device="cpu")
    return out / "1" / "model.safetensors"


@pytest.fixture(scope="module")
def start(tmp_path_factory, folder: Path, coarse: Path) -> Path:
    out = tmp_path_factory.mktemp("start")
    train(replace(phase2(coarse, VIT), epochs=1), folder, 0, out / "2", device="cpu")
    return out / "2" / "model.safetensors"


def config(init: Path, **refine) -> TrainConfig:
    found = phase2(init, VIT, train=("mask_decoder",))
    options = replace(found.refine, **refine)
    return replace(found, phase="ppn", system=replace(found.system, ppn=SMALL), refine=options, epochs=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder: Path, start: Path) -> Path:
    out = tmp_path_factory.mktemp("ppn") / "r"
    train(config(start, train=()), folder, 0, out, device="cpu")
    return out


# --- targets ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_points_lie_inside_and_just_beside(seed: int, radius: int, inside: int) -> None:
    rng = np.random.default_rng(seed)
    ys, xs = np.ogrid[:32, :32]
    label = (ys - rng.integers(0, 32)) ** 2 + (xs - rng.integers(0, 32)) ** 2 <= radius**2
    target = target_points(label, inside, 7, 0.06)
    assert target is not None
    xy, kind = target
    assert xy.shape == (7, 2) and kind.sum() == inside
    held = label[xy[:, 1].astype(int), xy[:, 0].astype(int)]
    assert np.array_equal(held, kind > 0.5)
    ys, xs = np.nonzero(label)
    for x, y in xy[kind < 0.5]:
        assert np.hypot(xs - x, ys - y).min() <= max(0.06 * 32, 1.5)


def test_hard_labels() -> None:
    assert target_points(np.zeros((16, 16), bool), 4, 7, 0.06) is None, "no lesion has no places"
    one = np.zeros((16, 16), bool)
    one[5, 9] = True
    xy, kind = target_points(one, 4, 7, 0.06)  # type: ignore[misc]
    assert np.array_equal(xy[:4], np.tile([9, 5], (4, 1))) and kind.tolist() == [1, 1, 1, 1, 0, 0, 0]
    xy, kind = target_points(np.ones((16, 16), bool), 4, 7, 0.06)  # type: ignore[misc]
    assert kind.all() and len(np.unique(xy, axis=0)) == 7, "there is no place beside it"
    deepest = np.zeros((33, 33), bool)
    deepest[4:29, 4:29] = True
    assert target_points(deepest, 1, 1, 0.06)[0].tolist() == [[16, 16]]  # type: ignore[index]


@given(st.integers(0, 500), st.integers(3, 31))
@settings(max_examples=30, deadline=None)
def test_no_target_lies_in_the_padding(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros((32, 32), bool)
    y, x = int(rng.integers(0, rows)), int(rng.integers(0, 32))
    label[y : min(rows, y + 6), x : x + 6] = True
    target = target_points(label, 4, 7, 0.2, (rows, 32))
    assert target is not None and (target[0][:, 1] < rows).all() and len(target[0]) == 7


def test_numbers_that_are_none_reach_the_loss() -> None:
    """Where the loop finds them, and names the images."""
    label = np.zeros((16, 16), bool)
    label[3:8, 3:8] = True
    points = ProposedPoints(torch.full((1, 7, 2), float("nan")), torch.zeros(1, 7))
    place, _ = point_losses(points, [target_points(label, 4, 7, 0.06)], 16)
    assert torch.isnan(place)


def test_matching_is_that_of_least_cost_and_blind_to_order() -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((32, 32), bool)
    label[8:20, 10:26] = True
    target = target_points(label, 4, 7, 0.06)
    assert target is not None
    xy = torch.from_numpy((target[0] + 0.5) / 32).float()
    logits = torch.from_numpy(20 * target[1] - 10).float()
    order = rng.permutation(7)
    points = ProposedPoints(xy[order][None], logits[order][None])
    assert matched(points, 0, target, 32).tolist() == order.tolist()
    place, kind = point_losses(points, [target], 32)
    assert place < 1e-10 and kind < 1e-3, "the very targets cost nothing, in any order"
    assert share_inside(points, torch.from_numpy(label)[None, None]).item() == 1
    assert share_inside(ProposedPoints(xy[None], -logits[None]), torch.from_numpy(label)[None, None]).item() == 0


def test_without_a_lesion_only_the_labels_are_learnt() -> None:
    xy, logits = torch.rand(2, 7, 2, requires_grad=True), torch.zeros(2, 7, requires_grad=True)
    label = np.zeros((16, 16), bool)
    label[3:8, 3:8] = True
    place, kind = point_losses(ProposedPoints(xy, logits), [None, target_points(label, 4, 7, 0.06)], 16)
    (place + kind).backward()
    assert xy.grad is not None and logits.grad is not None
    assert (xy.grad[0] == 0).all() and (xy.grad[1] != 0).any()
    assert (logits.grad[0] > 0).all(), "towards background"
    place, _ = point_losses(ProposedPoints(xy, logits), [None, None], 16)
    assert place == 0


# --- the phase ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["frozen", "lora"])
def test_gradients_reach_points_decoder_and_adapters_alone(folder: Path, start: Path, tmp_path: Path, lora) -> None:
    phase = build_phase(config(start, lora=lora, cache="ram" if lora is None else "off"))
    with torch.no_grad():
        for _, parameter in lora_parameters(phase.network):
            parameter.add_(0.01)
    training, _ = phase.loaders(split_fold(read_index(folder), 0, 0.3, 0), tmp_path)
    phase.losses(phase.network, next(iter(training)))["loss"].backward()
    reached = {n for n, p in phase.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    adapters = {n for n, _ in lora_parameters(phase.network)}
    assert bool(adapters) == (lora is not None) and adapters <= reached
    assert {n for n, _ in phase.network.points.named_parameters(prefix="points")} <= reached  # type: ignore[union-attr, operator]
    assert any(n.startswith("refiner.sam.mask_decoder.") for n in reached)
    allowed = ("points.", "refiner.sam.mask_decoder.")
    assert all(n in adapters or n.startswith(allowed) for n in reached)
    grouped = [p for group in phase.parameter_groups() for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in phase.network.parameters() if p.requires_grad}


def test_it_learns_one_batch(folder: Path, start: Path, tmp_path: Path) -> None:
    phase = build_phase(config(start))
    training, _ = phase.loaders(split_fold(read_index(folder), 0, 0.3, 0), tmp_path)
    batch, optimiser = next(iter(training)), torch.optim.AdamW(phase.parameter_groups(), lr=3e-3)
    seen = []
    for _ in range(25):
        losses = phase.losses(phase.network, batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        seen.append({k: float(v.detach()) for k, v in losses.items()})
    for name, share in (("loss", 0.8), ("place", 0.8), ("label", 0.95)):
        assert seen[-1][name] < share * seen[0][name], name


def test_a_run_adds_the_network_and_leaves_the_rest(start: Path, trained: Path) -> None:
    before, after = read_checkpoint(start), read_checkpoint(trained / "best.safetensors")
    assert after.config.ppn == SMALL and after.part("ppn")
    for key, value in before.tensors.items():
        assert torch.equal(value.float(), after.tensors[key].float()), "refine.train: [] leaves all else"
    assert {"points_dice", "points_inside", "normal_marked"} <= set(after.meta["selection"])
    assert load_system(trained / "model.safetensors").ppn is not None


def test_a_run_resumes_and_goes_on_from_a_network(folder: Path, start: Path, trained: Path, tmp_path: Path) -> None:
    one = config(start, train=())
    train(replace(one, epochs=1), folder, 0, tmp_path / "cut", device="cpu")
    train(one, folder, 0, tmp_path / "cut", resume=True, device="cpu")
    whole, cut = (read_checkpoint(p / "best.safetensors").tensors for p in (trained, tmp_path / "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    phase = build_phase(config(trained / "best.safetensors"))
    state = phase.network.points.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(v, state[k]) for k, v in read_checkpoint(trained / "best.safetensors").part("ppn").items())


def test_later_trainings_keep_it_while_the_encoder_stands_still(folder: Path, trained: Path, tmp_path: Path) -> None:
    init = trained / "model.safetensors"
    train(replace(phase2(init, VIT), epochs=1), folder, 0, tmp_path / "kept", device="cpu")
    kept = read_checkpoint(tmp_path / "kept" / "model.safetensors")
    assert kept.config.ppn == SMALL
    assert all(torch.equal(v, kept.part("ppn")[k]) for k, v in read_checkpoint(init).part("ppn").items())
    other = phase2(init, VIT, train=("encoder", "mask_decoder"), cache="off")
    train(replace(other, epochs=1), folder, 0, tmp_path / "left", device="cpu")
    assert read_checkpoint(tmp_path / "left" / "model.safetensors").config.ppn is None
    for files, expected in (([init], SMALL), ([init, tmp_path / "left" / "model.safetensors"], None)):
        join(files, files, folder, 0, tmp_path / "joined.safetensors", calibrate=False)
        assert load_system(tmp_path / "joined.safetensors").config.ppn == expected


def test_the_configuration_that_comes_with_it_runs(folder: Path, start: Path, tmp_path: Path) -> None:
    found = load_yaml(TrainConfig, CONFIGS / "ppn_compact.yaml")
    assert found.phase == "ppn" and found.system.ppn == PpnConfig() and found.refine.train == ("mask_decoder",)
    # Of another gate than its start, averaged, and with the decoder left alone: all but the points stays, to the bit.
    other = replace(found.system, coarse=COARSE, sam=VIT, ppn=SMALL, gate=GateConfig(mode="confidence"))
    alone = replace(
        found, system=other, init=str(start), epochs=1, tracking="none", data=replace(found.data, select_share=0.3),
        refine=replace(found.refine, variants=1, train=()),
    )  # fmt: skip
    assert alone.ema is not None and alone.calibrate
    train(alone, folder, 0, tmp_path / "alone", device="cpu")
    before, after = read_checkpoint(start), read_checkpoint(tmp_path / "alone" / "model.safetensors")
    assert all(torch.equal(v, after.tensors[k]) for k, v in before.tensors.items())
    assert replace(after.config, ppn=None) == before.config
    small = replace(
        found, system=replace(found.system, coarse=COARSE, sam=VIT, ppn=SMALL), init=str(start), epochs=1, tracking="none",
        data=replace(found.data, select_share=0.3), refine=replace(found.refine, variants=2),
    )  # fmt: skip
    train(small, folder, 0, tmp_path / "r", device="cpu")
    assert load_system(tmp_path / "r" / "model.safetensors").ppn is not None


def test_what_cannot_be_trained_is_refused(coarse: Path, start: Path) -> None:
    values = to_dict(config(start))
    for change, words in (
        ({"system": {**values["system"], "ppn": None}}, "system.ppn must say which"),
        ({"refine": {**values["refine"], "train": ["prompt_encoder", "mask_decoder"]}}, "phase ppn trains"),
        ({"points": {**values["points"], "inside": 6}}, "6 points inside the lesion, of 5"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_dict(TrainConfig, {**values, **change})
    with pytest.raises(InputError, match="whole system"):
        build_phase(config(coarse))
