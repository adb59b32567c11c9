"""Phase weak_encoder: the parts of the loss as properties, and runs in which no mask is learnt from."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_refiner_phase import COARSE, PHASE1, VIT, phase2
from torch import nn

from ultrarefiner_monai.config import ConfigError, LoraConfig, TrainConfig, WeakConfig, from_dict, load_yaml, to_dict
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.boxes import boxes_of_folder, write_boxes
from ultrarefiner_monai.datasets.datalist import read_index, split_fold
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.training.loop.steps import TrainingError
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.phases.contrast import (
    ProjectionHead,
    box_masks,
    contrast,
    entropy,
    info_nce,
    ring_points,
)
from ultrarefiner_monai.training.phases.weak import WeakPhase
from ultrarefiner_monai.training.run import train

ANSWER = WeakPhase._answer
CONFIGS = Path(__file__).parents[3] / "configs"


# --- parts ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_prompts_lie_between_the_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x1, y1 = rng.uniform(0, 30, 2)
    big = (x1, y1, x1 + rng.uniform(2, 60), y1 + rng.uniform(2, 60))
    share = np.sort(rng.random((2, 2)), axis=0)
    small = tuple(big[k % 2] + share[k // 2, k % 2] * (big[2 + k % 2] - big[k % 2]) for k in range(4))
    xy = ring_points([big], [small], 50, torch.Generator().manual_seed(seed))[0].double()
    eps = 1e-3
    assert (xy[:, 0] >= big[0] - eps).all() and (xy[:, 0] <= big[2] + eps).all()
    assert (xy[:, 1] >= big[1] - eps).all() and (xy[:, 1] <= big[3] + eps).all()
    deep = (
        (xy[:, 0] > small[0] + eps)
        & (xy[:, 0] < small[2] - eps)
        & (xy[:, 1] > small[1] + eps)
        & (xy[:, 1] < small[3] - eps)
    )
    assert not deep.any()


def test_points_are_drawn_by_area() -> None:
    xy = ring_points([(0, 0, 10, 10)], [(0, 0, 10, 5)], 400, torch.Generator().manual_seed(0))
    assert (xy[..., 1] >= 5).all(), "all that lies between them is below"


def test_boxes_on_the_grid() -> None:
    found = box_masks([(0, 0, 31, 15), (40, 40, 41, 41)], 4, 64)
    assert torch.equal(found[0].nonzero(), torch.tensor([[0, 0], [0, 1]]))
    assert torch.equal(found[1].nonzero(), torch.tensor([[2, 2]])), "at least where its middle lies"


def test_entropy_tells_sure_from_unsure() -> None:
    valid = torch.ones(3, 1, 8, 8, dtype=torch.bool)
    logits = torch.stack([torch.full((1, 8, 8), v) for v in (0.0, 30.0, -30.0)])
    assert entropy(logits, valid).tolist() == pytest.approx([math.log(2), 0, 0], abs=1e-6)
    half = torch.cat([torch.zeros(1, 1, 4, 8), torch.full((1, 1, 4, 8), 30.0)], dim=2)
    image = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    image[..., 4:, :] = True
    assert entropy(half, image).item() == pytest.approx(0, abs=1e-6), "the padding does not count"


def test_info_nce_is_its_formula() -> None:
    torch.manual_seed(0)
    a, p, n = (nn.functional.normalize(torch.randn(k, 8), dim=1) for k in (5, 5, 9))
    own, others = (a * p).sum(1) / 0.1, a @ n.T / 0.1
    expected = -(own - torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1)).mean()
    assert torch.allclose(info_nce(a, p, n, 0.1), expected, atol=1e-5)
    assert info_nce(a, a, -a, 0.1) < info_nce(a, p, n, 0.1) < info_nce(a, -a, a, 0.1)


def test_contrast_takes_places_as_the_boxes_say() -> None:
    """Anchors where mask and small box agree; away from what the small box has and the mask misses, or the mask has beyond the big one."""
    torch.manual_seed(0)
    student = nn.functional.normalize(torch.randn(8, 6, 6), dim=0).requires_grad_()
    teacher = nn.functional.normalize(torch.randn(8, 6, 6), dim=0).requires_grad_()
    small, big, pseudo = (torch.zeros(6, 6, dtype=torch.bool) for _ in range(3))
    small[2:4, 2:4] = True
    big[1:5, 1:5] = True
    pseudo[2:4, 2] = True  # half of the small box
    pseudo[0, 0] = True  # beyond the big one
    valid = torch.ones(6, 6, dtype=torch.bool)
    loss = contrast(student, teacher, pseudo, small, big, valid, 256, 512, 0.1)
    assert loss is not None
    loss.backward()
    assert teacher.grad is None, "positives are the teacher's, without a gradient"
    touched = student.grad.abs().sum(dim=0) > 0
    assert torch.equal(touched.nonzero(), torch.tensor([[0, 0], [2, 2], [2, 3], [3, 2], [3, 3]]))
    plain = contrast(student, teacher, small, small, big, valid, 256, 512, 0.1)
    assert plain is not None, "nothing is wrong: random background stands in"
    nothing = torch.zeros(6, 6, dtype=torch.bool)
    assert contrast(student, teacher, nothing, small, big, valid, 256, 512, 0.1) is None
    padding = valid.clone()
    padding[:, :] = False
    padding[2:4, 2:4] = True
    assert contrast(student, teacher, small, small, big, padding, 256, 512, 0.1) is None, "no background in the image"


def test_the_head_gives_length_one() -> None:
    found = ProjectionHead(16, 4)(torch.randn(2, 16, 3, 3))
    assert found.shape == (2, 4, 3, 3) and torch.allclose(found.norm(dim=1), torch.ones(2, 3, 3), atol=1e-5)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory, folder: Path) -> Path:
    path = tmp_path_factory.mktemp("boxes") / "boxes.csv"
    write_boxes(path, boxes_of_folder(folder))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory, folder: Path) -> Path:
    out = tmp_path_factory.mktemp("start")
    train(replace(PHASE1, epochs=1), folder, 0, out / "1", device="cpu")
    train(replace(phase2(out / "1" / "model.safetensors", VIT), epochs=1), folder, 0, out / "2", device="cpu")
    return out / "2" / "model.safetensors"


def config(init: Path, boxes: Path, **weak) -> TrainConfig:
    """Of random networks no mask is sure: all are trusted here."""
    found = phase2(init, VIT)
    options = WeakConfig(**{"boxes": str(boxes), "most_entropy": 1.0, "momentum": 0.9, "width": 8, **weak})
    return replace(found, phase="weak_encoder", weak=options, epochs=2, batch_size=4, calibrate=False)


def half_of_the_image(self: WeakPhase, refiner: nn.Module, embedding: torch.Tensor, *_: object) -> SimpleNamespace:
    """A sure mask where the embedding's first channel is above its middle: tiny networks, hardly trained, mark nothing."""
    first = nn.functional.interpolate(embedding[:, :1].detach(), scale_factor=4, mode="bilinear")
    middle = first.flatten(1).median(dim=1).values[:, None, None, None]
    return SimpleNamespace(
        refined_logits=torch.where(first > middle, 20.0, -20.0), iou_pred=embedding.new_zeros(len(first), 3)
    )


@pytest.fixture(scope="module", autouse=True)
def marked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeakPhase, "_answer", half_of_the_image)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder: Path, boxes: Path, start: Path) -> Path:
    out = tmp_path_factory.mktemp("weak") / "r"
    train(config(start, boxes), folder, 0, out, device="cpu")
    return out


def test_the_encoder_learns_and_nothing_else(start: Path, trained: Path) -> None:
    before, after = read_checkpoint(start), read_checkpoint(trained / "best.safetensors")
    changed = {k for k, v in before.tensors.items() if not torch.equal(v.float(), after.tensors[k].float())}
    assert changed and all(k.startswith("sam.image_encoder.") for k in changed)
    assert before.tensors.keys() == after.tensors.keys()
    rows = list(csv.DictReader((trained / "history.csv").open()))
    named = {"loss", "train_mask", "train_contrast", "train_iou", "train_distillation", "train_trusted"}
    lacking = {name for name in named if not any(name in key.replace(" ", "_") for key in rows[0])}
    assert not lacking, (lacking, list(rows[0]))
    assert float(rows[0]["train_contrast"]) > 0, "some places were compared"
    assert load_system(trained / "model.safetensors").refiner is not None


def test_no_mask_is_learnt_from(tmp_path: Path, folder: Path, boxes: Path, start: Path, trained: Path) -> None:
    """Masks of noise: the weights are the same, and so is the epoch that is kept."""
    noisy = shutil.copytree(folder, tmp_path / folder.name)
    for item in (i for i in read_index(noisy) if i.has_lesion):
        mask = np.random.default_rng(0).random(np.asarray(Image.open(item.mask)).shape) < 0.5
        Image.fromarray(mask).save(item.mask)
    train(config(start, boxes), noisy, 0, tmp_path / "r", device="cpu")
    one, other = (read_checkpoint(p / "best.safetensors") for p in (trained, tmp_path / "r"))
    assert one.meta["epoch"] == other.meta["epoch"]
    assert all(torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)


def test_a_run_resumes(folder: Path, boxes: Path, start: Path, trained: Path, tmp_path: Path) -> None:
    train(replace(config(start, boxes), epochs=1), folder, 0, tmp_path / "cut", device="cpu")
    train(config(start, boxes), folder, 0, tmp_path / "cut", resume=True, device="cpu")
    whole, cut = (read_checkpoint(p / "best.safetensors").tensors for p in (trained, tmp_path / "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_gradients_the_teacher_and_the_monitors(
    folder: Path, boxes: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = build_phase(config(start, boxes))
    network = phase.network
    training, _ = phase.loaders(split_fold(read_index(folder), 0, 0.3, 0), tmp_path)
    batch = next(iter(training))
    before = {k: v.clone() for k, v in network.teacher.state_dict().items()}  # type: ignore[union-attr, operator]
    # A teacher that is sure of the left half of the image.
    logits = torch.full((len(batch["id"]), 1, 16, 16), -20.0)
    logits[..., :8] = 20
    sure = SimpleNamespace(refined_logits=logits, iou_pred=torch.rand(len(logits), 3))
    monkeypatch.setattr(phase, "_answer", lambda *_: sure)
    losses = phase.losses(network, batch)
    losses["loss"].backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("refiner.sam.image_encoder.") for n in reached) and any(
        n.startswith("head.") for n in reached
    )
    assert all(n.startswith(("refiner.sam.image_encoder.", "head.")) for n in reached)
    options = phase.config.weak
    total = losses["mask"] + options.contrast_weight * losses["contrast"] + options.iou_weight * losses["iou"]
    total = total + options.distillation_weight * losses["distillation"]
    assert torch.allclose(losses["loss"].detach(), total, atol=1e-5)
    assert losses["distillation"] < 1e-9 and losses["trusted"] == 1 and losses["contrast"] > 0
    student = network.refiner.sam.image_encoder  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in student.parameters():  # type: ignore[union-attr, operator]
            parameter.add_(1.0)
    network.follow(0.9)  # type: ignore[operator]
    for name, value in network.teacher.named_parameters():  # type: ignore[union-attr, operator]
        assert torch.allclose(value, before[name] + 0.1, atol=1e-5), "t = .9 t + .1 s"


def test_only_the_last_blocks(folder: Path, boxes: Path, start: Path, tmp_path: Path) -> None:
    two = replace(VIT, depth=2)
    one = replace(config(start, boxes, last_blocks=1), system=replace(config(start, boxes).system, sam=two))
    phase = build_phase(replace(one, refine=replace(one.refine, sam_init=_random(tmp_path, two))))
    learns = {n.split(".")[3] for n, p in phase.network.named_parameters() if p.requires_grad and "image_encoder" in n}
    names = {n for n, p in phase.network.named_parameters() if p.requires_grad}
    assert not any(".blocks.0." in n for n in names) and any(".blocks.1." in n for n in names) and "neck" in learns
    with pytest.raises(InputError, match="has 1 blocks, got 2"):
        build_phase(config(start, boxes, last_blocks=2))


def _random(folder: Path, sam) -> str:
    from ultrarefiner_monai.models.sam.network import build_sam, save_sam

    save_sam(build_sam(sam), folder / "sam.pth")
    return str(folder / "sam.pth")


def test_no_trusted_mask_in_an_epoch_ends_the_run(
    folder: Path, boxes: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeakPhase, "_answer", ANSWER)
    with pytest.raises(TrainingError, match="sure of no image"):
        train(config(start, boxes, most_entropy=1e-6), folder, 0, tmp_path / "r", device="cpu")
    assert (tmp_path / "r" / "last.pt").is_file(), "what there was is kept"


def test_the_configuration_that_comes_with_it_runs(
    folder: Path, boxes: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeakPhase, "_answer", ANSWER)
    found = load_yaml(TrainConfig, CONFIGS / "weak_encoder_compact.yaml")
    assert found.phase == "weak_encoder" and found.optimiser.lr == 2e-6 and found.weak.momentum == 0.999
    small = replace(
        found, system=replace(found.system, coarse=COARSE, sam=VIT), init=str(start), epochs=1, tracking="none",
        data=replace(found.data, select_share=0.3), weak=replace(found.weak, boxes=str(boxes), most_entropy=1.0),
    )  # fmt: skip
    train(small, folder, 0, tmp_path / "r", device="cpu")
    assert load_system(tmp_path / "r" / "model.safetensors").refiner is not None


def test_what_cannot_be_trained_is_refused(folder: Path, boxes: Path, start: Path, tmp_path: Path) -> None:
    split = split_fold(read_index(folder), 0, 0.3, 0)
    with pytest.raises(InputError, match="weak.boxes must name"):
        build_phase(replace(config(start, boxes), weak=WeakConfig())).loaders(split, tmp_path)
    few = tmp_path / "few.csv"
    few.write_text("\n".join(boxes.read_text().splitlines()[:1]) + "\n")
    with pytest.raises(InputError, match="at least one of each"):
        build_phase(config(start, few)).loaders(split, tmp_path)
    values = to_dict(config(start, boxes))
    for change, words in (
        ({"refine": {**values["refine"], "lora": to_dict(LoraConfig()), "cache": "off"}}, "weak.last_blocks"),
        ({"weak": {**values["weak"], "momentum": 1.0}}, "momentum"),
        ({"weak": {**values["weak"], "temperature": 0.0}}, "temperature"),
        ({"weak": {**values["weak"], "last_blocks": 0}}, "last_blocks"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_dict(TrainConfig, {**values, **change})
