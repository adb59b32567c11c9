"""The calibration: sets count alike, the refiner harms none, protections stay on, lesion-free crops are judged too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ultrarefiner_monai.config import CoarseConfig, GateConfig, PostConfig, SafetyConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT, score
from ultrarefiner_monai.masks.postprocess import prob_to_mask, safety_net
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, save_system, with_options
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.calibration.calibrate import choose, finish
from ultrarefiner_monai.training.calibration.candidates import Example, figures_of, grid_around
from ultrarefiner_monai.training.calibration.choosing import PRESENCES, Table, choose_among
from ultrarefiner_monai.training.calibration.explaining import explain, report

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
SAM = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,))
START = SystemConfig(coarse=COARSE)
LABEL = np.zeros((60, 60), bool)
LABEL[20:40, 20:40] = True
LARGE = np.zeros((60, 60), bool)
LARGE[8:52, 8:52] = True  # five times the area: the net's business
EMPTY = np.zeros((60, 60), bool)


def prob(mask: np.ndarray, sure: float = 0.97) -> np.ndarray:
    return np.where(mask, sure, 0.02).astype(np.float32)


def moved(pixels: int) -> np.ndarray:
    return np.roll(LABEL, pixels, axis=1)


def about(examples: list[Example]) -> dict:
    grid = grid_around(START.post, START.safety, refiner=True)
    table = Table(examples, [figures_of(e, grid) for e in examples], grid)
    return report(table, choose_among([table])[1])


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_of_all_candidates_are_those_of_the_way_that_serves(seed: int) -> None:
    """Shared components, crops and a dilation instead of a distance transform change no figure."""
    rng = np.random.default_rng(seed)
    size = (50 + 7 * seed, 64)

    def field() -> np.ndarray:
        return torch.nn.functional.interpolate(
            torch.from_numpy(rng.random((1, 1, 9, 8))).float(), size=size, mode="bicubic"
        )[0, 0].clamp(0, 1).numpy()  # fmt: skip

    coarse, refined = field(), field()
    label = field() > (0.6 if seed else 2)
    safety = SafetyConfig(band_fusion_px=3 if seed == 3 else 0, min_iou=0.3)
    grid = grid_around(PostConfig(min_area=0.01, fill_holes=seed != 2), safety, refiner=True)
    found = figures_of(Example(coarse, refined, label), grid)
    for i, j in zip(rng.integers(0, len(grid.posts), 40), rng.integers(0, len(grid.shares), 40)):
        share, post = grid.shares[j], grid.posts[i]
        mixed = {0.0: coarse, 1.0: refined}.get(share, coarse + np.float32(share) * (refined - coarse))
        masks = prob_to_mask(coarse, post), prob_to_mask(mixed, post)
        for k, mask in enumerate((safety_net(*masks, grid.safety)[0], masks[1])):
            wanted = score(mask, label)
            if label.any():
                assert found[:, i, j, k] == pytest.approx((wanted.dice, wanted.boundary_f), abs=1e-9)
            else:
                assert found[0, i, j, k] == float(wanted.marked <= NORMAL_LIMIT)


def test_one_set_never_switches_the_safety_net_off_two_that_it_hurts_may() -> None:
    """The coarse network outlines too much, the refiner is right, and the net holds that for a mistake."""
    hurt = Example(prob(LARGE), prob(LABEL), LABEL)
    one = [replace(hurt, set="a")] * 60
    config, figure = choose(one, START)
    assert config.safety.enabled and figure < 1
    # A file whose net was switched off has it on again.
    assert choose(one, replace(START, safety=SafetyConfig(enabled=False)))[0].safety.enabled
    two = [replace(hurt, set=name) for name in "ab" for _ in range(20)]
    config, figure = choose(two, START)
    assert not config.safety.enabled and figure == 1
    assert about(two)["protections_off"] == ["safety net"] and about(one)["protections_off"] == []
    few = two[:20] + two[20:24]  # four lesions of the second are no evidence
    assert choose(few, START)[0].safety.enabled
    # In a third set, small as it may be, the net saves lesions.
    saved = Example(prob(LABEL, 0.55), prob(EMPTY), LABEL, set="c")
    assert choose([*two, saved, saved, saved], START)[0].safety.enabled


def test_a_protection_goes_only_where_no_protected_candidate_does_as_well() -> None:
    """Of two tables (as of two ``peak_ratio``) the second has a coarse network that needs no refiner."""
    grid = grid_around(START.post, START.safety, refiner=True)
    hurt = [Example(prob(LARGE), prob(LABEL), LABEL, set=name) for name in "ab" for _ in range(20)]
    well = [replace(e, coarse_prob=e.refined_prob) for e in hurt]
    first, second = (Table(part, [figures_of(e, grid) for e in part], grid) for part in (hurt, well))
    assert not choose_among([first])[1].net
    for tables, wanted in (((first, second), 1), ((second, first), 0)):
        k, chosen = choose_among(tables)
        assert k == wanted and chosen.net and not chosen.relaxed and chosen.figure == 1


def test_no_protection_goes_for_one_set() -> None:
    """Faint lesions that only the lowest bars let through, and a presence that is always low."""
    faint = Example(prob(LABEL, 0.45), None, LABEL, presence=0.02, set="a")
    strong = Example(prob(LABEL), None, LABEL, presence=0.9, set="a")
    config, _ = choose([faint] * 30 + [strong], START)
    assert config.post.min_peak >= 0.5 and config.post.min_presence > 0
    both = [replace(e, set=name) for name in "ab" for e in [faint] * 30 + [strong]]
    config, figure = choose(both, START)
    assert config.post.min_peak < 0.5 and config.post.min_presence == 0 and figure == 1
    # Where nobody says how likely a lesion is there is no bar for it.
    assert choose([replace(strong, presence=None)], START)[0].post.min_presence == 0


def test_a_refiner_that_harms_one_set_is_turned_down() -> None:
    """It gains much in a large set and loses a little in a small one."""
    gains = Example(prob(moved(5)), prob(LABEL), LABEL, set="a")
    loses = Example(prob(LABEL), prob(moved(3)), LABEL, set="b")
    found = about([gains] * 40)
    assert found["gate"] == 1 and not found["refiner_turned_down"] and found["harm"] == {}
    found = about([gains] * 40 + [loses] * 12)
    assert found["gate"] < 1 and found["harm"] == {"b": ["dice", "boundary_f"]}
    own = found["sets"]["b"]
    assert own["refined_dice"] < own["coarse_dice"] == own["result_dice"] == 1
    assert any("it harms b (Dice 1.000 to 0.850" in line for line in explain(found))
    # Harm in every way that gives the refiner a share: none is left.
    worse = Example(prob(LABEL, 0.62), prob(moved(3)), LABEL, set="a")
    config, figure = choose([worse] * 12, START)
    assert config.gate.closed and figure == 1 and about([worse] * 12)["refiner_turned_down"]


def test_chance_in_a_small_set_is_no_veto_and_a_lesion_that_is_wiped_out_is() -> None:
    gains = [Example(prob(moved(3)), prob(LABEL), LABEL, set="a")] * 12
    shifted = LABEL.copy()
    shifted[20, 20] = False  # a pixel of 400
    assert about([*gains, Example(prob(LABEL), prob(shifted), LABEL, set="b")])["gate"] == 1
    # Of two components the coarse network outlines the lesion and a shadow, the refiner keeps the shadow: the net sees
    # an area and an overlap that it allows.
    shadow = np.zeros((60, 60), bool)
    shadow[2:14, 2:58] = True
    small = np.zeros((60, 60), bool)
    small[30:45, 20:38] = True
    wipes = Example(prob(shadow | small), prob(shadow), small, set="a")
    assert safety_net(shadow | small, shadow, SafetyConfig())[1] is None
    found = about([*gains * 5, wipes])
    assert found["harm"] == {"a": ["wiped_out"]} and found["gate"] < 1
    own = found["sets"]["a"]
    assert own["refined_wiped_out"] == 1 and own["result_wiped_out"] == 0 and own["result_missed"] == 0
    assert about(gains * 5)["gate"] == 1


def test_a_small_set_counts_as_much_as_a_large_one() -> None:
    """Threshold .3 suits the many images of one set, .6 the few of another, which lose more by the other's."""
    inner, outer = LABEL, LARGE
    graded = np.where(inner, 0.97, np.where(outer, 0.45, 0.02)).astype(np.float32)
    many = [Example(graded, None, moved(0) | (outer & (np.arange(60) < 30)), set="a")] * 40
    few = [Example(graded, None, inner, set="b")] * 4
    alone, _ = choose(many, START)
    assert alone.post.threshold < 0.45
    both, figure = choose(many + few, START)
    assert both.post.threshold > 0.45
    assert choose([replace(e, set="a") for e in many + few], START)[0].post.threshold < 0.45  # one set: the many win
    of = [choose(part, replace(START, post=both.post)) for part in (many, few)]
    dice = [2 * (inner & e.label).sum() / (inner.sum() + e.label.sum()) for e in (many[0], few[0])]
    assert figure == pytest.approx(np.mean(dice), abs=1e-6) and of[1][1] == 1


def test_the_presence_is_judged_by_crops_where_a_set_has_no_lesion_free_images() -> None:
    lesions = [Example(prob(LABEL), None, LABEL, p, set="b") for p in (0.9, 0.8, 0.62)]
    crops = [Example(prob(LABEL), None, EMPTY, p, set="b", tissue=True) for p in (0.1, 0.3, 0.42)]
    alone, _ = choose(lesions, START)
    assert 0 < alone.post.min_presence <= 0.6
    config, figure = choose(lesions + crops, START)
    assert config.post.min_presence == 0.45 and figure == 1  # the lowest bar that clears them all
    # Beside true normals crops are one group: a hundred of them do not outweigh two.
    normals = [Example(prob(LABEL), None, EMPTY, 0.1, set="b")] * 2
    marked = [replace(crops[0], presence=0.95)] * 100
    hundred = choose(lesions + normals + marked, START)
    assert hundred[0].post.min_presence <= 0.6
    assert hundred[1] == pytest.approx(0.75 + 0.25 * (1 + (0 - 0.9)) / 2, abs=1e-6)
    assert max(PRESENCES) == 0.5  # what is held likelier than not is never hidden


def test_sets_without_lesions_and_without_lesion_free_images() -> None:
    normals = [Example(prob(EMPTY), prob(EMPTY), EMPTY, set="a")] * 3
    lesions = [Example(prob(LABEL), prob(LABEL), LABEL, set="b")] * 2
    one_pixel = EMPTY.copy()
    one_pixel[0, 0] = True
    tiny = Example(prob(EMPTY), prob(EMPTY), one_pixel, set="c")
    for examples, wanted in ((normals, 1), (lesions, 1), (normals + lesions, 1), ([*normals, *lesions, tiny], 2 / 3)):
        config, figure = choose(examples, START)
        assert figure == pytest.approx(wanted) and config.safety.enabled
        found = about(examples)
        assert set(found["sets"]) == {e.set for e in examples} and explain(found)
    assert about([*lesions, tiny])["sets"]["c"]["result_missed"] == 1
    assert "coarse_dice" not in about(normals)["sets"]["a"]


# --- whole checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_clean_folder) -> list[Path]:
    root = tmp_path_factory.mktemp("clean")
    return [write_clean_folder(root / name, 8, seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("saved") / "best.safetensors"
    config = SystemConfig(coarse=COARSE, sam=SAM, safety=SafetyConfig(enabled=False))
    return save_system(path, config, build_coarse(COARSE), build_sam(SAM), {"data": "one+two"}, half=False)


def test_finish_writes_what_it_decided_by_set(folders: list[Path], saved: Path, tmp_path: Path) -> None:
    items = [i for folder in folders for i in read_index(folder)]
    config = finish(saved, tmp_path / "a.safetensors", items)
    got = read_checkpoint(tmp_path / "a.safetensors")
    assert got.config == config and config.safety.enabled  # too few images to do without
    told = got.meta["calibration"]
    assert told["images"] == 16 and set(told["sets"]) == {"one", "two"} and got.meta["data"] == "one+two"
    assert told["tissue_crops"] == sum(own["tissue_crops"] for own in told["sets"].values()) > 0
    assert told["gate"] in (0, 0.25, 0.5, 0.75, 1) and told["refiner_turned_down"] == config.gate.closed
    finish(saved, tmp_path / "b.safetensors", items)
    other = read_checkpoint(tmp_path / "b.safetensors")
    assert (other.config, other.meta) == (got.config, got.meta)
    # The result of a calibration is calibrated to the same again: nothing that was chosen binds.
    again = finish(tmp_path / "a.safetensors", tmp_path / "c.safetensors", items)
    assert (again.gate, again.safety, again.refiner) == (config.gate, config.safety, config.refiner)


def test_the_result_that_is_told_is_the_one_that_serves(folders: list[Path], saved: Path, tmp_path: Path) -> None:
    items = read_index(folders[0])
    finish(saved, tmp_path / "a.safetensors", items)
    system = load_system(tmp_path / "a.safetensors")
    told = system.meta["calibration"]["sets"]["one"]
    if system.meta["calibration"]["gate"] not in (0, 1):
        pytest.skip("mixed in another frame: equal to a few pixels only")
    predictor, dice = Predictor(system), []
    for item in items:
        if item.has_lesion:
            image = np.asarray(Image.open(item.image).convert("L"), dtype=np.float32) / 255
            dice.append(score(predictor.propose(image).mask, np.asarray(Image.open(item.mask)).astype(np.uint8)).dice)
    assert told["result_dice"] == pytest.approx(np.mean(dice), abs=5e-3)


def test_a_closed_gate_gives_the_coarse_mask_bit_by_bit_and_clicks_still_ask_the_refiner(saved: Path) -> None:
    open_system = with_options(load_system(saved), {"post.threshold": 0.4, "post.min_peak": 0.0})
    image = np.random.default_rng(0).random((45, 70), dtype=np.float32)
    closed = with_options(open_system, {"gate.mode": "confidence", "gate.g_max": 0.0, "refiner.self_click": True})
    coarse, found = Predictor(closed).coarse(image), Predictor(closed).propose(image)
    for name in ("mask", "final_prob", "coarse_prob"):
        assert np.array_equal(getattr(coarse, name), getattr(found, name))
    assert found.refiner == "trained" and found.safety_rule is None and found.iou_pred == coarse.iou_pred
    assert found.timings["encode"] == found.timings["decode"] == 0
    assert Predictor(open_system).propose(image).timings["decode"] > 0
    clicks = Clicks(((20, 20),))
    answers = [Predictor(s).interact(image, clicks) for s in (closed, open_system)]
    assert np.array_equal(answers[0].mask, answers[1].mask) and answers[0].timings["decode"] > 0


def test_a_gate_is_scaled_and_reopened() -> None:
    assert GateConfig().times(1) == GateConfig() and not GateConfig(g_max=0).closed  # off: nothing is gated
    half = GateConfig().times(0.5)
    assert (half.mode, half.g_min, half.g_max) == ("confidence", 0.5, 0.5) and half.reopened() == GateConfig()
    assert GateConfig().times(0).closed and GateConfig().times(0).reopened() == GateConfig()
    learned = GateConfig("learned", 0.2, 0.8)
    assert learned.times(0.5) == GateConfig("learned", 0.1, 0.4) and learned.reopened() == learned
    assert learned.times(0).closed and learned.times(0).reopened().mode == "learned"
    assert not learned.times(0).reopened().closed
