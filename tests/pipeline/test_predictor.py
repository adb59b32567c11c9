from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ultrarefiner_monai.config import CoarseConfig, GateConfig, PostConfig, SafetyConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.cache import EmbeddingCache, image_key
from ultrarefiner_monai.core.geometry import Letterbox, to_prompts
from ultrarefiner_monai.core.types import Clicks, InputError, Prompts, RefinerOutput
from ultrarefiner_monai.interaction.clicks import core_clicks
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.pipeline.coarse import coarse_arrays, coarse_to_sam
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.pipeline.proposal import Proposal
from ultrarefiner_monai.pipeline.recent_results import CoarseResult, RecentResults

HEIGHT, WIDTH = 90, 140
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
LESION = np.hypot((ROWS - 40) / 20, (COLUMNS - 60) / 30) < 1
IMAGE = np.where(LESION, 0.2, 0.8).astype(np.float32)
NORMAL = np.full((HEIGHT, WIDTH), 0.8, np.float32)
CONFIG = SystemConfig(coarse=CoarseConfig(arch="compact", image_size=64), sam=SamConfig(arch="compact", image_size=128))


class DarkIsLesion(nn.Module):
    """A coarse network whose answer is known: dark pixels are lesion (so is the padding: it must not come through)."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.weight = nn.Parameter(torch.tensor(20.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        lesion = (0.5 - image) * self.weight
        return torch.cat([-lesion, lesion], dim=1) / 2


class Shifted(nn.Module):
    """A refiner whose answer is known: coarse_prob moved by ``shift`` pixels; clicks add and remove discs."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift, self.encoded, self.decoded = shift, 0, 0
        self.seen: Prompts | None = None
        self.sam = nn.ModuleDict({"image_encoder": nn.Identity()})

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        self.encoded += 1
        return nn.functional.adaptive_avg_pool2d(image, 8).expand(-1, 4, -1, -1)

    def forward(self, image_embedding, coarse_prob, prompts=None, image=None, **_) -> RefinerOutput:
        self.decoded += 1
        assert not torch.is_grad_enabled()
        prob = coarse_prob.roll(self.shift, dims=-1)
        logits = torch.logit(prob.clamp(1e-4, 1 - 1e-4))
        return RefinerOutput(logits, prob, logits.expand(-1, 3, -1, -1), torch.tensor([[0.9, 0.5, 0.1]]))

    def interactive(self, image_embedding, coarse_prob, prompts: Prompts, **_) -> RefinerOutput:
        self.seen = prompts
        return self(image_embedding, coarse_prob, prompts)

    def final_prob(self, coarse_prob, refined_prob) -> torch.Tensor:
        return refined_prob


def system(refiner: nn.Module | None = None, config: SystemConfig = CONFIG) -> System:
    return System(config, DarkIsLesion().eval(), refiner, "abc123")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a.astype(bool) & b.astype(bool)) / (np.count_nonzero(a) + np.count_nonzero(b))


def same(a: Proposal, b: Proposal) -> bool:
    arrays = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("mask", "final_prob", "coarse_prob"))
    names = ("iou_pred", "uncertainty", "flip_uncertainty", "presence", "safety_rule", "refiner", "version")
    return arrays and all(getattr(a, n) == getattr(b, n) for n in names)


def check_arrays(proposal: Proposal) -> None:
    assert proposal.mask.shape == (HEIGHT, WIDTH) and proposal.mask.dtype == np.uint8
    assert set(np.unique(proposal.mask)) <= {0, 1}
    for prob in (proposal.final_prob, proposal.coarse_prob):
        assert prob.shape == (HEIGHT, WIDTH) and prob.dtype == np.float32
        assert prob.min() >= 0 and prob.max() <= 1


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("image", [IMAGE, np.ascontiguousarray(IMAGE.T)])
def test_lesion_lands_where_it_is_in_a_non_square_image(image: np.ndarray, flip: bool) -> None:
    base = system(config=replace(CONFIG, flip_tta=flip))
    proposal = Predictor(base).coarse(image)
    assert proposal.mask.shape == image.shape
    assert dice(proposal.mask, image < 0.5) > 0.95
    assert base.coarse.batches == [2 if flip else 1]
    assert proposal.refiner == "off" and proposal.version == "abc123"
    assert (proposal.flip_uncertainty is not None) == flip


def test_proposal_without_refiner_is_the_coarse_one_and_says_so() -> None:
    predictor = Predictor(system())
    coarse, proposal = predictor.coarse(IMAGE), predictor.propose(IMAGE)
    check_arrays(proposal)
    assert proposal.refiner == "untrained"
    assert same(replace(coarse, refiner="untrained"), proposal)
    assert proposal.iou_pred is not None and 0.8 < proposal.iou_pred <= 1
    assert 0 < proposal.uncertainty < 1
    assert set(proposal.timings) == {"preprocess", "coarse", "encode", "decode", "post", "total", "cached"}


def test_normal_image_gives_an_empty_mask() -> None:
    proposal = Predictor(system(Shifted())).propose(NORMAL)
    assert not proposal.mask.any() and proposal.safety_rule is None and proposal.uncertainty < 0.1


def test_flip_averages_the_image_with_its_mirror_image() -> None:
    class LeftIsLesion(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(5, -5, image.shape[-1]).expand_as(image)
            return torch.cat([torch.zeros_like(image), ramp], dim=1)

    letterbox = Letterbox(80, 40, 64)  # padded on the right: 32 columns of 64 are image
    arrays = coarse_arrays(LeftIsLesion(), torch.rand(1, 1, 64, 64), letterbox, flip_tta=True)
    inner = arrays["coarse_prob"][:, :32]
    assert np.allclose(inner, inner[:, ::-1], atol=1e-6) and inner.min() > 0.5
    assert not arrays["coarse_prob"][:, 32:].any() and not arrays["coarse_spread"][:, 32:].any()
    assert arrays["coarse_spread"][0, 0] > 0.1


def test_refined_mask_is_used_when_the_safety_net_agrees() -> None:
    moved = Predictor(system(Shifted(4))).propose(IMAGE)
    check_arrays(moved)
    assert moved.refiner == "trained" and moved.safety_rule is None
    pixels = 4 * WIDTH / CONFIG.sam.image_size
    shift = np.nonzero(moved.mask)[1].mean() - np.nonzero(LESION)[1].mean()
    assert shift == pytest.approx(pixels, abs=0.5)
    weights = torch.softmax(torch.tensor([0.9, 0.5, 0.1]) / 0.1, 0)
    assert moved.iou_pred == pytest.approx(float((weights * torch.tensor([0.9, 0.5, 0.1])).sum()))


def test_safety_net_returns_the_coarse_result_and_says_why() -> None:
    predictor = Predictor(system(Shifted(40)))
    proposal, coarse = predictor.propose(IMAGE), predictor.coarse(IMAGE)
    assert proposal.safety_rule == "iou"
    assert np.array_equal(proposal.mask, coarse.mask) and np.array_equal(proposal.final_prob, coarse.final_prob)
    assert proposal.iou_pred == coarse.iou_pred
    unchecked = Predictor(system(Shifted(40), replace(CONFIG, safety=SafetyConfig(enabled=False)))).propose(IMAGE)
    assert unchecked.safety_rule is None and not np.array_equal(unchecked.mask, coarse.mask)


def test_post_configuration_is_obeyed() -> None:
    strict = replace(CONFIG, post=PostConfig(min_area=0.5))
    assert not Predictor(system(config=strict)).propose(IMAGE).mask.any()


@pytest.mark.parametrize("trained", [False, True])
def test_clicks_are_honoured_and_order_does_not_matter(trained: bool) -> None:
    predictor = Predictor(system(Shifted() if trained else None))
    foreground, background = ((100.0, 70.0), (95.0, 40.0), (60.0, 40.0)), ((40.0, 40.0), (10.0, 10.0))
    proposal = predictor.interact(IMAGE, Clicks(foreground, background))
    check_arrays(proposal)
    assert proposal.refiner == ("trained" if trained else "untrained")
    assert all(proposal.mask[int(y), int(x)] for x, y in foreground)
    assert not any(proposal.mask[int(y), int(x)] for x, y in background)
    assert same(proposal, predictor.interact(IMAGE, Clicks(foreground[::-1], background[::-1])))


@pytest.mark.parametrize("trained", [False, True])
def test_no_clicks_is_the_proposal_and_undo_is_exact(trained: bool, tmp_path: Path) -> None:
    predictor = Predictor(system(Shifted(3) if trained else None), EmbeddingCache(10**7, tmp_path, 10**7))
    proposal = predictor.propose(IMAGE)
    one = predictor.interact(IMAGE, Clicks(((95, 40),)))
    two = predictor.interact(IMAGE, Clicks(((95, 40),), ((60, 30),)))
    assert not np.array_equal(one.mask, two.mask)
    assert same(predictor.interact(IMAGE, Clicks(((95, 40),))), one)
    assert same(predictor.interact(IMAGE, Clicks()), proposal)
    # Neither a restart with the same folder nor a predictor without a cache answers otherwise.
    for cache in (EmbeddingCache(0, tmp_path, 10**7), None):
        fresh = Predictor(system(Shifted(3) if trained else None), cache)
        assert same(fresh.interact(IMAGE, Clicks(((95, 40),))), one) and same(fresh.propose(IMAGE), proposal)


@pytest.mark.parametrize("trained", [True, False])
def test_a_prepared_image_is_answered_from_the_cache(trained: bool) -> None:
    refiner = Shifted()
    base = system(refiner if trained else None)
    predictor = Predictor(base, EmbeddingCache(10**7))
    for _ in range(2):
        predictor.prepare(IMAGE)
    assert (refiner.encoded, refiner.decoded, len(base.coarse.batches)) == (int(trained), 0, 1)
    assert predictor.interact(IMAGE, Clicks(((95, 40),))).timings["cached"] == 1
    assert predictor.propose(NORMAL).timings["cached"] == 0


def test_a_click_after_the_first_runs_neither_encoder_nor_coarse_network(tmp_path: Path) -> None:
    refiner = Shifted()
    base = system(refiner)
    predictor = Predictor(base, EmbeddingCache(10**7, tmp_path, 10**7))
    first = predictor.interact(IMAGE, Clicks(((95, 40),)))
    assert first.timings["cached"] == 0 and first.timings["coarse"] > 0 and first.timings["encode"] > 0
    for clicks in (Clicks(((95, 40), (20, 20))), Clicks(box_xyxy=(20, 20, 100, 70)), Clicks()):
        later = predictor.interact(IMAGE, clicks)
        assert later.timings["cached"] == 1 and later.timings["coarse"] == later.timings["encode"] == 0
    assert (refiner.encoded, len(base.coarse.batches), refiner.decoded) == (1, 1, 4)
    predictor.propose(NORMAL)
    assert refiner.encoded == 2
    assert predictor.forget(IMAGE) == 2
    predictor.interact(IMAGE, Clicks(((95, 40),)))
    assert refiner.encoded == 3


def test_what_is_kept_of_an_image_changes_no_answer_and_is_forgotten_with_it() -> None:
    torch.manual_seed(0)
    base = system(Refiner(build_sam(CONFIG.sam), CONFIG).eval())
    cache = EmbeddingCache(10**7)
    kept, fresh = Predictor(base, cache), Predictor(base)
    other = np.ascontiguousarray(IMAGE[:, ::-1])
    for image, clicks in [
        (IMAGE, Clicks(((95, 40),))),
        (other, Clicks(((95, 40),))),
        (IMAGE, Clicks(((20, 20),), ((60, 40),))),
        (IMAGE, Clicks(box_xyxy=(20, 20, 100, 70))),
        (IMAGE, Clicks()),
        (other, Clicks(((20, 20),))),
    ]:
        assert same(kept.interact(image, clicks), fresh.interact(image, clicks))
    key = image_key(IMAGE)
    shared = kept.interact(IMAGE, Clicks(((95, 40),))).coarse_prob
    assert kept.interact(IMAGE, Clicks()).coarse_prob is shared and not shared.flags.writeable
    cache.forget(key)
    assert kept.interact(IMAGE, Clicks()).coarse_prob is not shared


def test_recent_results_are_bounded_and_none_from_before_a_forget_comes_back() -> None:
    def result() -> CoarseResult:
        return CoarseResult({}, np.zeros((10, 10), np.float32))

    recent, a, b, c = RecentResults(2 * 400), result(), result(), result()
    recent.put("a", a, 0)
    recent.put("b", b, 0)
    assert recent.get("a", 0) is a
    recent.put("c", c, 0)
    assert recent.get("b", 0) is None and recent.get("a", 0) is a and recent.get("c", 0) is c
    assert recent.get("a", 1) is None
    recent.put("a", a, 0)  # was begun before
    assert recent.get("a", 1) is None and recent.get("a", 0) is None


def test_another_network_or_configuration_does_not_take_the_cached_arrays() -> None:
    cache, learnt = EmbeddingCache(10**7), system()
    with torch.no_grad():
        learnt.coarse.weight += 1
    for other in (system(), learnt, system(config=replace(CONFIG, flip_tta=False))):
        Predictor(other, cache).coarse(IMAGE)
        assert other.coarse.batches != []
    # What is computed anew for each answer leaves it good: a new threshold does not cost every embedding.
    later = system(config=replace(CONFIG, post=replace(CONFIG.post, threshold=0.6)))
    assert Predictor(later, cache).coarse(IMAGE).timings["cached"] == 1 and later.coarse.batches == []


def test_threads_share_one_computation() -> None:
    refiner = Shifted()
    base = system(refiner)
    predictor = Predictor(base, EmbeddingCache(10**7))
    barrier, results = threading.Barrier(6), []

    def ask() -> None:
        barrier.wait()
        results.append(predictor.propose(IMAGE))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 6 and all(same(r, results[0]) for r in results)
    assert (refiner.encoded, len(base.coarse.batches)) == (1, 1)


def test_prompts_are_clicks_in_the_sam_frame() -> None:
    letterbox = Letterbox(HEIGHT, WIDTH, 280)  # twice as large
    prompts = to_prompts(Clicks(((10, 20),), ((139.5, -0.5),), (0, 0, 139, 89)), letterbox)
    assert prompts.points_xy is not None and prompts.boxes_xyxy is not None
    assert prompts.points_xy.tolist() == [[[20.5, 40.5], [278.5, 0.5]]]
    assert prompts.point_labels.tolist() == [[1, 0]]
    assert prompts.boxes_xyxy.tolist() == [[0.5, 0.5, 278.5, 178.5]] and prompts.mask_logits is None
    only_box = to_prompts(Clicks(box_xyxy=(1, 1, 9, 9)), letterbox)
    assert only_box.points_xy is None and only_box.point_labels is None
    refiner = Shifted()
    Predictor(system(refiner)).interact(IMAGE, Clicks(((10, 20),)))
    assert refiner.seen.points_xy.shape == (1, 1, 2)


@pytest.mark.parametrize("shape", [(90, 140), (140, 90), (100, 100), (37, 200)])
def test_coarse_to_sam_keeps_the_place_in_the_image(shape: tuple[int, int]) -> None:
    small, large = Letterbox(*shape, 64), Letterbox(*shape, 256)
    image = torch.zeros(1, 1, *shape)
    image[..., shape[0] // 3 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 1
    moved = large.invert(coarse_to_sam(small.apply(image), small, large))
    direct = small.invert(small.apply(image))
    assert (moved - direct).abs().mean() < 0.01 and ((moved > 0.5) ^ (direct > 0.5)).float().mean() < 0.01


TINY = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=2, num_heads=2, global_attn_indexes=(1,))


def real_system(config: SystemConfig) -> System:
    torch.manual_seed(0)
    return system(Refiner(build_sam(TINY), config).eval(), config)


@pytest.mark.parametrize("roi", [False, True])
@pytest.mark.parametrize("gate", ["off", "confidence"])
def test_real_refiner_end_to_end(roi: bool, gate: str, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        sam=TINY,
        refiner=replace(CONFIG.refiner, roi=roi),
        gate=replace(CONFIG.gate, mode=gate),
        safety=SafetyConfig(enabled=False),
    )
    predictor = Predictor(real_system(config), EmbeddingCache(10**7, tmp_path, 10**7))
    proposal = predictor.propose(IMAGE)
    check_arrays(proposal)
    assert proposal.refiner == "trained" and 0 <= proposal.iou_pred <= 1
    assert not np.array_equal(proposal.final_prob, proposal.coarse_prob)
    first = predictor.interact(IMAGE, Clicks(((95, 40), (60, 40)), ((10, 10),), (20, 10, 120, 80)))
    check_arrays(first)
    assert first.mask[40, 95] and first.mask[40, 60] and not first.mask[10, 10] and not first.mask[:, 127:].any()
    turned = Clicks(((60, 40), (95, 40), (60, 40)), ((10, 10),), (20, 10, 120, 80))
    assert same(first, predictor.interact(IMAGE, turned))
    assert same(first, Predictor(real_system(config)).interact(IMAGE, turned))
    assert same(proposal, predictor.interact(IMAGE, Clicks()))
    assert predictor.interact(IMAGE, turned).timings["encode"] == 0


def test_gate_is_for_the_automatic_result_only() -> None:
    closed = replace(CONFIG, sam=TINY, gate=GateConfig(mode="confidence", g_max=0.0))
    predictor = Predictor(real_system(closed))
    proposal = predictor.propose(IMAGE)
    assert np.allclose(proposal.final_prob, proposal.coarse_prob, atol=0.35)  # but for the detour over 64 pixels
    assert dice(proposal.final_prob > 0.5, proposal.coarse_prob > 0.5) > 0.98
    clicked = predictor.interact(IMAGE, Clicks(((60, 40),)))
    assert dice(clicked.final_prob > 0.5, proposal.coarse_prob > 0.5) < 0.9


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 20, 20), np.float32), "shape"),
        (np.zeros((7, 20), np.float32), "at least 8 x 8"),
        (np.zeros((20, 20), np.uint8), "uint8"),
        (np.full((20, 20), 1.01, np.float32), "1.01"),
        (np.full((20, 20), -0.01, np.float32), "-0.01"),
        (np.full((20, 20), np.nan, np.float32), "nan"),
        ([[0.0]], "list"),
    ],
)
def test_unusable_images_are_refused(image, message: str) -> None:
    predictor = Predictor(system())
    for ask in (predictor.coarse, predictor.propose, lambda i: predictor.interact(i, Clicks(((1, 1),)))):
        with pytest.raises(InputError, match=message):
            ask(image)


def test_unusable_clicks_are_refused_before_any_network_runs() -> None:
    base = system(Shifted())
    for clicks in (Clicks(((500, 3),)), Clicks(((5, 5),), ((5, 5),)), Clicks(box_xyxy=(300, 0, 310, 5))):
        with pytest.raises(InputError):
            Predictor(base).interact(IMAGE, clicks)
    assert base.coarse.batches == []


def test_smallest_and_read_only_images_work() -> None:
    image = np.full((8, 300), 0.8, np.float32)
    image[2:6, 100:110] = 0.1
    image.setflags(write=False)
    proposal = Predictor(system(Shifted())).interact(image, Clicks(((104, 3),), ((200, 4),)))
    assert proposal.mask.shape == (8, 300) and proposal.mask[3, 104] and not proposal.mask[4, 200]


class BrightIsLesion(torch.nn.Module):
    """Per pixel, so that every view of an image must agree with every other, up to interpolation."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(image), 8 * image - 4], dim=1)


def test_smaller_views_come_back_to_their_place() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 5, 40), torch.linspace(0, 7, 56), indexing="ij")
    letterbox = Letterbox(40, 56, 64)
    image = letterbox.apply((0.5 + 0.5 * torch.sin(rows) * torch.cos(columns))[None, None])
    plain = coarse_arrays(BrightIsLesion(), image, letterbox, flip_tta=False)
    assert "coarse_spread" not in plain
    for flip, scales in ((True, ()), (False, (0.75,)), (True, (0.85, 0.7))):
        arrays = coarse_arrays(BrightIsLesion(), image, letterbox, flip, scales)
        inside = np.s_[2:42, 2:60]  # the outermost pixels blend with the padding
        assert np.abs(arrays["coarse_prob"] - plain["coarse_prob"])[inside].max() < 0.06
        assert arrays["coarse_spread"][inside].max() < 0.08


def test_clicks_mend_what_the_refiner_starts_from() -> None:
    """A false alarm denied in its middle is doubted in the mask prompt, and a second lesion has begun there."""
    refiner = Shifted()
    clicks = Clicks(foreground_xy=((120, 75),), background_xy=((60, 40),))
    seen = {}
    for mend in (True, False):
        config = replace(CONFIG, prompts=replace(CONFIG.prompts, mend=mend))
        final = Predictor(system(refiner, config)).interact(IMAGE, clicks).final_prob
        seen[mend] = final[40, 60], final[75, 120], final[5, 5]
    assert seen[False][0] > 0.9 and seen[False][1] < 0.1
    assert seen[True][0] < 0.5 and seen[True][1] > 0.7 and seen[True][2] < 0.1


def test_automatic_result_with_a_click_of_its_own_is_that_clicks_result() -> None:
    config = replace(
        CONFIG, refiner=replace(CONFIG.refiner, self_click=True), safety=replace(CONFIG.safety, enabled=False)
    )
    refiner = Shifted()
    own = Predictor(system(refiner, config))
    automatic = own.propose(IMAGE)
    clicks = core_clicks(own.coarse(IMAGE).mask)
    assert clicks and np.array_equal(automatic.mask, own.interact(IMAGE, clicks).mask)
    assert not np.array_equal(automatic.final_prob, Predictor(system(refiner, CONFIG)).propose(IMAGE).final_prob)


class Doubting(DarkIsLesion):
    """The same, and P(there is a lesion) = .3 whatever is shown."""

    def forward_with_presence(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(image), torch.full((len(image),), 0.3).logit()


@pytest.mark.parametrize("trained", [True, False])
def test_what_is_held_unlikely_is_not_offered_but_a_click_is_answered(trained: bool) -> None:
    """min_presence above P(lesion): empty masks, by the coarse network and by the refiner; below it changes nothing."""
    found = {}
    for bar in (0.0, 0.25, 0.35):
        config = replace(CONFIG, post=replace(CONFIG.post, min_presence=bar))
        predictor = Predictor(System(config, Doubting().eval(), Shifted() if trained else None, "abc123"))
        clicks = Clicks(((60, 40),))
        found[bar] = predictor.coarse(IMAGE), predictor.propose(IMAGE), predictor.interact(IMAGE, clicks)
    for shown, plain in zip(found[0.25], found[0.0], strict=True):
        assert same(shown, plain) and shown.mask.any() and shown.presence == pytest.approx(0.3, abs=1e-3)
    coarse, automatic, clicked = found[0.35]
    for hidden in (coarse, automatic):
        assert not hidden.mask.any() and hidden.safety_rule is None and hidden.iou_pred is None
        assert hidden.final_prob.max() < CONFIG.post.threshold
    # The click is answered where it is. One elsewhere, or one that says "not here", brings back nothing of the rest.
    assert clicked.mask[40, 60] and not (clicked.mask.astype(bool) & ~LESION).any()
    config = replace(CONFIG, post=replace(CONFIG.post, min_presence=0.35))
    predictor = Predictor(System(config, Doubting().eval(), Shifted() if trained else None, "abc123"))
    assert not predictor.interact(IMAGE, Clicks((), ((5, 5),))).mask.any()
    elsewhere = predictor.interact(IMAGE, Clicks(((120, 75),))).mask
    assert elsewhere[75, 120] and not (elsewhere.astype(bool) & LESION).any()
    assert Predictor(system()).propose(IMAGE).presence is None  # a network that does not say has no bar to pass


def test_presence_survives_the_cache(tmp_path) -> None:
    asked = [Predictor(System(CONFIG, Doubting().eval(), None, "v"), EmbeddingCache(0, tmp_path, 10**7)) for _ in "ab"]
    first, second = (predictor.propose(IMAGE) for predictor in asked)
    assert second.timings["cached"] == 1 and same(first, second) and first.presence is not None
