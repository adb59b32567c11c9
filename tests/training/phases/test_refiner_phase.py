"""Phases 2 and 3 on tiny networks: what is learned, what stays, what is kept, and what a user would do."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom

from ultrarefiner_monai.config import (
    CoarseConfig,
    ConfigError,
    CorruptionConfig,
    DataConfig,
    JointConfig,
    OptimiserConfig,
    RefineConfig,
    RefinerConfig,
    SamConfig,
    SystemConfig,
    TrainConfig,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.compact import LiteSamEncoder
from ultrarefiner_monai.models.sam.network import build_sam, encode
from ultrarefiner_monai.training.data.features import FeatureKeeper, to_embedding
from ultrarefiner_monai.training.data.predictions import proposal_folders, read_proposals, write_proposal
from ultrarefiner_monai.training.data.refining import (
    COARSE_IMAGE,
    FEATURES,
    CoarseMasks,
    ProposalKind,
    RefineDataset,
    RefineSample,
)
from ultrarefiner_monai.training.data.transforms import IMAGE, LABEL, augmentation
from ultrarefiner_monai.training.phases.build import build_phase
from ultrarefiner_monai.training.phases.joint import JointPhase, _scaled_gradient
from ultrarefiner_monai.training.phases.losses import RefinerLoss, change_penalty, iou_loss, overlap, soft_dice_loss
from ultrarefiner_monai.training.phases.simulate import as_prompts, draw_counts, simulate, worst_clicks
from ultrarefiner_monai.training.proposals import nested_proposals, parts_of
from ultrarefiner_monai.training.run import _check_start, train
from ultrarefiner_monai.training.sequence import train_all

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
VIT = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,))
LITE = SamConfig(arch="compact", encoder="lite0", image_size=64)
ADAM = OptimiserConfig(name="adamw", lr=1e-3, schedule="constant")
PHASE1 = TrainConfig(
    system=SystemConfig(coarse=COARSE), data=DataConfig(select_share=0.3), optimiser=ADAM, epochs=1, batch_size=4,
    tracking="none",
)  # fmt: skip


def phase2(init: Path, sam: SamConfig = VIT, **refine) -> TrainConfig:
    return replace(
        PHASE1,
        phase="phase2_refiner",
        system=SystemConfig(coarse=COARSE, sam=sam),
        data=DataConfig(select_share=0.3, augment="standard"),
        refine=RefineConfig(**{"max_clicks": 2, **refine}),
        init=str(init),
        epochs=2,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 16)


@pytest.fixture(scope="module")
def first(tmp_path_factory, folder: Path) -> Path:
    out = tmp_path_factory.mktemp("first") / "r"
    train(PHASE1, folder, 0, out, device="cpu")
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def second(tmp_path_factory, folder: Path, first: Path) -> Path:
    out = tmp_path_factory.mktemp("second") / "r"
    config = phase2(first, LITE, train=("neck", "prompt_encoder", "mask_decoder"), sam_init="stem", variants=2)
    train(config, folder, 0, out, device="cpu")
    return out


# --- the runs -----------------------------------------------------------------------------------------------------------


def test_phase_2_trains_its_parts_and_leaves_the_others(first: Path, second: Path) -> None:
    before, after = read_checkpoint(first), read_checkpoint(second / "best.safetensors")
    for key, value in before.part("coarse").items():
        assert torch.equal(value.float(), after.part("coarse")[key].float()), key
    stem = {k: v for k, v in before.part("coarse").items() if k.startswith("stem.blocks.0")}
    assert stem and all(
        torch.equal(v.float(), after.tensors[f"sam.image_encoder.{k}"].float()) for k, v in stem.items()
    )
    fresh = build_sam(LITE).state_dict()
    norm = "mask_decoder.transformer.norm_final_attn.weight"
    assert not torch.equal(after.part("sam")[norm], fresh[norm])
    assert after.config.sam == LITE and after.config.post == before.config.post
    rows = list(csv.DictReader((second / "history.csv").open()))
    assert {"refined_dice", "dice_1_click", "dice_3_clicks", "coarse_dice"} <= set(rows[0])
    system = load_system(second / "model.safetensors")
    assert system.refiner is not None


@pytest.mark.parametrize("sam, extra", [(VIT, {}), (VIT, {"train": ("encoder", "mask_decoder"), "cache": "off"})])
def test_a_resumed_phase_2_is_an_uninterrupted_one(folder: Path, first: Path, tmp_path: Path, sam, extra) -> None:
    config = phase2(first, sam, variants=2, curriculum=True, **extra)
    train(config, folder, 0, tmp_path / "whole")
    train(replace(config, epochs=1, refine=config.refine), folder, 0, tmp_path / "cut")
    # The curriculum's pace comes from ``epochs``; both runs are still in its first half in epoch 1.
    train(config, folder, 0, tmp_path / "cut", resume=True)
    whole, cut = (read_checkpoint(tmp_path / n / "best.safetensors").tensors for n in ("whole", "cut"))
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_phase_3_trains_both_and_reports_before_and_after(
    folder: Path, second: Path, tmp_path: Path, amp: Literal["off", "bf16"]
) -> None:
    config = phase2(second / "model.safetensors", LITE, train=("neck", "prompt_encoder", "mask_decoder"))
    config = replace(config, phase="phase3_joint", joint=JointConfig(freeze_refiner_epochs=1), epochs=2, amp=amp)
    train(config, folder, 0, tmp_path / "j", device="cpu")
    before, after = read_checkpoint(second / "model.safetensors"), read_checkpoint(tmp_path / "j" / "best.safetensors")
    assert any(not torch.equal(v.float(), after.part("coarse")[k].float()) for k, v in before.part("coarse").items())
    assert {"coarse_dice", "refined_dice"} <= set(after.meta["before"])
    assert {"coarse_dice", "refined_dice"} <= set(after.meta["selection"])


def test_phase_2_learns_one_batch(folder: Path, first: Path, tmp_path: Path) -> None:
    config = phase2(first, LITE, train=("neck", "prompt_encoder", "mask_decoder"), sam_init="stem", click_share=0.5)
    phase = build_phase(config)
    split = _split(folder)
    training, _ = phase.loaders(split, tmp_path)
    batch = next(iter(training))
    optimiser = torch.optim.AdamW(phase.parameter_groups())
    losses = []
    for step in range(14):
        torch.manual_seed(step % 2)
        loss = phase.losses(phase.network, batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])


def _split(folder: Path):
    from ultrarefiner_monai.datasets.datalist import read_index, split_fold

    return split_fold(read_index(folder), 0, 0.3, 0)


def test_a_refiner_that_starts_from_nothing_is_told(folder: Path, first: Path, second: Path, caplog) -> None:
    split = _split(folder)
    for init, more, told in (
        (first, {}, True),
        (first, {"sam_init": "stem"}, False),
        (second / "model.safetensors", {}, False),
    ):
        caplog.clear()
        _check_start(phase2(init, LITE, **more), split, 0, ())
        assert ("starts from random weights" in caplog.text) == told


def test_wrong_starts_are_refused_with_what_to_do(folder: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="init must be the .safetensors of phase1_coarse"):
        build_phase(replace(phase2(first), init="none"))
    other = replace(COARSE, hidden_size=32)
    with pytest.raises(InputError, match="hidden_size: 16 there, 32 here"):
        build_phase(replace(phase2(first), system=SystemConfig(coarse=other, sam=VIT)))
    with pytest.raises(InputError, match="neck and deep are the compact preset's"):
        build_phase(phase2(first, VIT, train=("neck",)))
    with pytest.raises(InputError, match="of the same stem"):
        build_phase(phase2(first, VIT, sam_init="stem"))
    (tmp_path / "p").mkdir()
    config = phase2(first, proposals=str(tmp_path / "p"))
    with pytest.raises(InputError, match="holds no prediction"):
        build_phase(config).loaders(_split(folder), tmp_path)


# --- kept features ------------------------------------------------------------------------------------------------------


def test_kept_features_give_the_embedding_and_new_weights_make_them_void(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cases = ((VIT, ("mask_decoder",)), (LITE, ("neck",)), (LITE, ("mask_decoder",)), (LITE, ("neck", "deep")))
    for sam_config, train_parts in cases:
        sam = build_sam(sam_config)
        image, calls = torch.rand(1, 1, 64, 64), []

        def make(image=image, calls=calls) -> torch.Tensor:
            calls.append(1)
            return image

        keeper = FeatureKeeper(sam.image_encoder, train_parts, 2**24)
        for _ in range(2):
            features = [f[None].float() for f in keeper("0123456789abcdef", make)]
        assert len(calls) == 1
        got = to_embedding(sam.image_encoder, features)
        assert torch.allclose(got, encode(sam, image), atol=5e-2)
        frozen = sam.image_encoder.stem if "neck" in train_parts else sam.image_encoder
        if "deep" in train_parts:  # what learns voids nothing
            with torch.no_grad():
                next(iter(sam.image_encoder.deep_modules.parameters())).add_(0.1)
            assert FeatureKeeper(sam.image_encoder, train_parts, 2**24).version == keeper.version
            assert torch.allclose(to_embedding(sam.image_encoder, features), encode(sam, image), atol=5e-2)
        with torch.no_grad():
            next(iter(frozen.parameters())).add_(0.1)
        assert FeatureKeeper(sam.image_encoder, train_parts, 2**24).version != keeper.version


def test_the_deep_half_of_the_stem_learns_over_kept_features(
    folder: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    parts = ("neck", "deep", "prompt_encoder", "mask_decoder")
    config = phase2(second / "model.safetensors", LITE, train=parts, variants=2, overlooked_share=0.5)
    train(replace(config, amp="bf16"), folder, 0, tmp_path / "r", device="cpu")
    before, after = (read_checkpoint(p / "model.safetensors").part("sam") for p in (second, tmp_path / "r"))
    changed = {k for k, v in before.items() if not torch.equal(v, after[k]) and k.startswith("image_encoder.stem.")}
    blocks = {int(k.split(".")[3]) for k in changed}
    assert blocks == {3, 4, 5, 6}
    with pytest.raises(ConfigError, match="deep needs neck"):
        phase2(second, LITE, train=("deep", "mask_decoder"))
    with pytest.raises(InputError, match="neck and deep are the compact preset's"):
        build_phase(phase2(first, VIT, train=parts))


def test_the_stem_in_two_halves_is_the_stem() -> None:
    encoder = LiteSamEncoder("lite0", 64).eval()
    gray = torch.rand(1, 1, 64, 64)
    x = (127.5 * (2 * gray - 1 + 1) - 123.675) / 58.395
    with torch.no_grad():
        whole = encoder.stem((2 * gray - 1).expand(-1, 3, -1, -1))
        parts = encoder.features(x.expand(-1, 3, -1, -1))
    assert len(parts) == len(whole) == 4
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(parts, whole, strict=True))


def test_variants_are_fixed_and_the_first_is_the_image_itself() -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((30, 50), np.uint8)
    label[5:20, 10:30] = 1
    sample = RefineSample("a", rng.random((30, 50), dtype=np.float32), label, (label.astype(np.float32),))
    make = {"size": 64, "seed": 3, "augment": augmentation("strong", 64, soft_label=True), "variants": 3}
    one, two = (RefineDataset([sample], coarse_size=32, **make) for _ in range(2))
    seen = set()
    for epoch in range(12):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        a, b = one[0], two[0]
        assert all(torch.equal(a[k], b[k]) for k in (IMAGE, LABEL, COARSE_IMAGE))
        # The proposal, which is the label here, went the label's way.
        assert torch.equal(a[LABEL], a["proposal"])
        seen.add(a[IMAGE].numpy().tobytes())
        if one._variant(0) == 0:
            assert tuple(a["valid_hw"]) == (38, 64) and a[LABEL].max() == 1
    assert len(seen) == 3
    plain = RefineDataset([sample], size=64, seed=3)[0]
    assert FEATURES not in plain and torch.equal(plain["proposal"], plain[LABEL])


def test_a_coarse_mask_is_a_real_prediction_or_a_corrupted_label_drawn_anew_in_each_epoch() -> None:
    label = np.zeros((60, 90), np.uint8)
    label[10:40, 20:60] = 1
    others = tuple(np.full((30, 45), level, np.float32) for level in (0.25, 0.75))
    image = np.zeros((60, 90), np.float32)

    def seen(share: float, **more) -> set[float]:
        masks = CoarseMasks(CorruptionConfig(), 32, share)
        data = RefineDataset([RefineSample("a", image, label, others, **more)], 64, 3, coarse_masks=masks)
        found = set()
        for epoch in range(1, 25):
            data.set_epoch(epoch)
            proposal = data[0]["proposal"]
            assert proposal.shape == (1, 32, 32) and torch.equal(proposal, data[0]["proposal"])
            found.add(round(float(proposal[0, 4, 4]), 2) if len(proposal.unique()) < 40 else -1.0)
        return found

    real = seen(0.0)
    assert {0.25, 0.75} <= real  # either prediction has its turn
    assert seen(1.0, kind=ProposalKind.CORRECTION) == real  # a correction's proposal is always used
    assert not {0.25, 0.75} & seen(1.0)


def test_proposals_of_several_folders_and_sets_are_read(tmp_path: Path) -> None:
    item = Item("x", tmp_path / "x.png", tmp_path / "x.png", "g", "1", "", True, set="here")
    write_proposal(tmp_path / "one", "here/x", np.full((4, 5), 0.2, np.float32))
    write_proposal(tmp_path / "two", "x", np.full((4, 5), 0.6, np.float32))
    folders = proposal_folders(f"{tmp_path}/one, {tmp_path}/two")
    assert [round(float(p.mean()), 1) for p in read_proposals(folders, item)] == [0.2, 0.6]
    # Another set's x would get the prediction of a strange image.
    assert [round(float(p.mean()), 1) for p in read_proposals(folders, item, by_id=False)] == [0.2]
    assert read_proposals(proposal_folders(""), item) == ()
    write_proposal(tmp_path / "a, b", "x", np.full((4, 5), 0.4, np.float32))
    assert proposal_folders(str(tmp_path / "a, b")) == [tmp_path / "a, b"]
    with pytest.raises(InputError, match="none is no folder"):
        proposal_folders(f"{tmp_path}/one,{tmp_path}/none")


def test_a_label_of_another_size_is_refused() -> None:
    sample = RefineSample("a", np.zeros((20, 20), np.float32), np.zeros((20, 21), np.uint8))
    with pytest.raises(InputError, match="its label is"):
        RefineDataset([sample], 32, 0)[0]


def test_nested_proposals_never_come_from_a_network_that_saw_the_image(folder: Path, tmp_path: Path) -> None:
    count = nested_proposals(PHASE1, folder, 0, tmp_path / "p", parts=2)
    split = _split(folder)
    assert count == len(split.train)
    import json

    for k, piece in enumerate(parts_of(split.train, 2, 0)):
        used = set(json.loads((tmp_path / "p" / f"part{k}" / "split.json").read_text())["train"])
        assert not used & {i.id for i in piece} and not used & {i.id for i in (*split.report, *split.select)}
        assert not {i.group for i in piece} & {i.group for i in split.train if i.id in used}
    (prob,) = read_proposals([tmp_path / "p"], split.train[0])
    assert prob is not None and prob.ndim == 2 and 0 <= prob.min() <= prob.max() <= 1
    stamp = (tmp_path / "p" / "part0" / "last.pt").stat().st_mtime_ns
    assert nested_proposals(PHASE1, folder, 0, tmp_path / "p", parts=2) == count
    with pytest.raises(InputError, match="another split"):  # those networks have seen fold 1
        nested_proposals(PHASE1, folder, 1, tmp_path / "p", parts=2)
    stages = [("coarse", PHASE1), ("refiner", phase2(tmp_path / "none", proposals="nested", nested_parts=2))]
    shutil.copytree(tmp_path / "p", tmp_path / "row" / "proposals")  # made above: only the way there is tested
    train_all(stages, folder, 0, tmp_path / "row", device="cpu")
    assert (tmp_path / "row" / "refiner" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="needs a phase1_coarse"):
        train_all([stages[1]], folder, 0, tmp_path / "other", device="cpu")
    with pytest.raises(InputError, match="is for `train all`"):
        train(stages[1][1], folder, 0, tmp_path / "alone", device="cpu")
    assert (tmp_path / "p" / "part0" / "last.pt").stat().st_mtime_ns == stamp  # nothing was trained again


# --- gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box, negative, mask", [("none", "none", "none"), ("moments", "none", "none"), ("none", "none", "direct")])  # fmt: skip
def test_the_refined_loss_reaches_the_coarse_prob_as_finite_differences_say(
    box: str, negative: str, mask: str, monkeypatch
) -> None:
    """Through the point alone, box and point, mask and point: the directional derivative of the refined loss."""
    from ultrarefiner_monai.config import PromptConfig

    # segment_anything encodes places in float32 whatever the network is; a difference needs more digits.
    encode_places = PositionEmbeddingRandom._pe_encoding
    monkeypatch.setattr(
        PositionEmbeddingRandom,
        "_pe_encoding",
        lambda self, xy: encode_places(self, xy.to(self.positional_encoding_gaussian_matrix.dtype)),
    )
    torch.manual_seed(0)
    prompts = PromptConfig(box=box, negative=negative, mask=mask)  # type: ignore[arg-type]
    # The predicted IoUs are left out of the mixture: their head of ReLUs has a kink right here.
    config = SystemConfig(coarse=COARSE, sam=VIT, prompts=prompts, refiner=RefinerConfig(selection_temperature=1e6))
    refiner = Refiner(build_sam(VIT), config).double().requires_grad_(False)
    rows, columns = np.ogrid[:64, :64]
    blob = 1 / (1 + np.exp((np.hypot(rows - 30, columns - 34) - 14) / 4))
    prob = torch.tensor(blob, dtype=torch.float64)[None, None].requires_grad_(True)
    embedding = torch.randn(1, 256, 4, 4, dtype=torch.float64)
    label = torch.tensor(np.hypot(rows - 26, columns - 30) < 12).double()[None, None]

    def loss(p: torch.Tensor) -> torch.Tensor:
        logits = refiner(embedding, p).refined_logits
        wanted = 2 * torch.nn.functional.interpolate(label, size=16, mode="area") - 1
        return (logits * wanted).sum()  # linear, so that the differences are the chain's own

    (grad,) = torch.autograd.grad(loss(prob), prob)
    assert torch.isfinite(grad).all() and grad.abs().sum() > 0
    direction = grad / grad.norm() * (prob.detach() > 0.35)  # away from the floor's kink
    # With a graph: without one the decoder takes another order of the same sums, whose last digits would show here.
    ahead, behind = (loss(prob + step * direction).detach() for step in (0.01, -0.01))
    numeric = (ahead - behind) / 0.02
    assert torch.allclose((grad * direction).sum(), numeric, rtol=1e-2)


def test_only_the_refined_losss_gradient_is_scaled() -> None:
    x = torch.ones(3, requires_grad=True)
    scaled = _scaled_gradient(x, 0.1)
    assert torch.equal(scaled, x)
    (scaled.sum() + 2 * x.sum()).backward()
    assert torch.allclose(x.grad, torch.full((3,), 2.1))


def test_anchor_pulls_back_and_freezing_holds_still(folder: Path, second: Path) -> None:
    base = phase2(second / "model.safetensors", LITE)
    joint = JointConfig(freeze_coarse_epochs=1, freeze_refiner_epochs=2, freeze_refiner="all_but_heads")
    phase = build_phase(replace(base, phase="phase3_joint", joint=joint))
    assert isinstance(phase, JointPhase)
    assert phase._anchor(phase.coarse) == 0
    with torch.no_grad():
        next(iter(phase.coarse.parameters())).add_(0.5)
    assert phase._anchor(phase.coarse) > 0
    in_optimiser = {id(p) for g in phase.parameter_groups() for p in g["params"]}
    phase.start_epoch(1)
    assert not any(p.requires_grad for p in phase.coarse.parameters())
    learning = {n for n, p in phase.refiner.named_parameters() if p.requires_grad}
    assert learning and all("hypernetworks" in n or "iou_prediction_head" in n for n in learning)
    phase.start_epoch(3)
    assert all(p.requires_grad for p in phase.coarse.parameters())
    assert {id(p) for p in phase.network.parameters() if p.requires_grad} <= in_optimiser


# --- losses -------------------------------------------------------------------------------------------------------------


def test_losses_at_the_right_answer_and_on_empty_labels() -> None:
    label = torch.zeros(2, 1, 16, 16)
    label[0, 0, 4:9, 3:12] = 1
    right = (2 * label - 1) * 20
    assert RefinerLoss()(right, label) < 1e-3 < RefinerLoss()(-right, label)
    assert torch.allclose(soft_dice_loss(label, label), torch.zeros(2), atol=1e-6)
    logits = torch.zeros(2, 1, 16, 16, requires_grad=True)
    RefinerLoss()(logits, label).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[1].abs().sum() > 0
    assert iou_loss(right.expand(-1, 3, -1, -1), torch.ones(2, 3), label) == 0
    assert overlap(label, label).tolist() == [1.0, 1.0]


def test_change_penalties_charge_for_what_was_good() -> None:
    label = torch.zeros(1, 1, 10, 10)
    label[..., :5] = 1
    half = torch.full_like(label, 0.5)
    # agreement: the coarse mask is right everywhere, leaving it by a half costs a half; wrong places cost nothing
    assert change_penalty("agreement", half, label, label) == 0.5
    assert change_penalty("agreement", half, 1 - label, label) == 0
    # quality: Dice 1 counts fully, below .6 nothing
    assert torch.isclose(change_penalty("quality", half, label, label), torch.tensor(0.25))
    assert change_penalty("quality", half, 1 - label, label) == 0
    with pytest.raises(ValueError, match="quality, agreement or none"):
        change_penalty("other", half, label, label)


# --- clicks -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_clicks_fall_on_mistakes_with_the_right_sign(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    mask, label = rng.random((2, 24, 24)) > 0.7
    clicks = worst_clicks(mask, label, count, [])
    assert len(clicks) == count and len({c[:2] for c in clicks}) == count
    x, y, positive = clicks[0]
    assert mask[int(y), int(x)] != label[int(y), int(x)] and label[int(y), int(x)] == bool(positive)
    assert worst_clicks(label, label, count, []) == []


def test_an_interaction_gives_each_item_its_number_and_stops_when_all_is_right() -> None:
    label = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    label[0, 0, 3:12, 3:12] = True
    label[1, 0, 5:7, 5:7] = True
    start = torch.zeros(2, 1, 16, 16)
    asked = []

    def answer(prompts):
        asked.append(prompts)
        return label.float()

    rng = np.random.default_rng(0)
    prompts = simulate(answer, start, label, [5, 1], None, 4.0, 0.0, rng)
    given_labels = prompts.point_labels
    # The first round mends both; then the answer is right and no more clicks are due.
    assert 1 <= (given_labels[0] == 1).sum() <= 2 and (given_labels[1] == 1).sum() == 1 and len(asked) == 2
    x, y = prompts.points_xy[1, 0].tolist()
    assert 20 <= x <= 28 and 20 <= y <= 28  # in the frame that is four times as large


def test_counts_are_mostly_few_and_padding_says_minus_one() -> None:
    counts = draw_counts(2000, 8, np.random.default_rng(0))
    assert set(counts) == set(range(1, 9)) and counts.count(1) > counts.count(3) > counts.count(8)
    prompts = as_prompts([[(0.0, 0.0, 1)], []], 4.0, None, torch.zeros(1))
    assert prompts.point_labels.tolist() == [[1], [-1]]
    assert prompts.points_xy[0, 0].tolist() == [1.5, 1.5]


def test_the_lite_encoder_has_sams_interface() -> None:
    encoder = LiteSamEncoder("lite0", 96).eval()
    x = torch.randn(2, 3, 96, 96)
    out = encoder(x)
    assert out.shape == (2, 256, 6, 6)
    assert torch.allclose(encoder.neck(encoder.features(x)), out)
    assert torch.allclose(encoder.neck(encoder.shallow(x)), out)


def test_a_trained_sam_leaves_as_a_plain_sam_file(first: Path, second: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ultrarefiner_monai.cli import command as cli
    from ultrarefiner_monai.models.sam.network import load_sam_state

    out = tmp_path / "sam.pth"
    result = CliRunner().invoke(cli.app, ["weights", "export", str(second / "model.safetensors"), str(out)])
    assert result.exit_code == 0, result.output
    stored, state = read_checkpoint(second / "model.safetensors").part("sam"), load_sam_state(out)
    assert state.keys() == stored.keys() and all(torch.equal(state[k], v.float()) for k, v in stored.items())
    result = CliRunner().invoke(cli.app, ["weights", "export", str(first), str(out)])
    assert result.exit_code != 0 and "no SAM" in str(result.exception)
