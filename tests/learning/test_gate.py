"""The gate: equal models pass, worse ones do not, each rule by itself, few labels, and what the report promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import save_tiny_system
from PIL import Image

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.learning.gate import BETTER, CLICKS, clicked_on, judge
from ultrarefiner_monai.learning.gate_power import Pair, power
from ultrarefiner_monai.models.checkpoints import load_system, with_options
from ultrarefiner_monai.pipeline.predictor import Predictor

OPTIONS = LearningConfig(validation_labels=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Predictor]:
    folder = tmp_path_factory.mktemp("models")
    systems = [load_system(save_tiny_system(folder / f"{seed}.safetensors", seed)) for seed in (6, 7)]
    return Predictor(systems[0]), Predictor(systems[1])


def item(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, group: str = "") -> Item:
    for kind, array in (("images", image), ("masks", mask.astype(bool))):
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / kind / f"{name}.png")
    paths = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
    return Item(name, *paths, group or name, "select", "", bool(mask.any()))


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory, models: tuple[Predictor, Predictor]) -> list[list[Item]]:
    """Images whose labels are what the first model says of them, and such with the second one's masks."""
    found = []
    for n, model in enumerate(models):
        folder = tmp_path_factory.mktemp(f"of model {n}")
        images = [make_phantom(np.random.default_rng(k), 48, 64, "benign").image for k in range(5)]
        masks = [model.propose(image.astype(np.float32) / 255).mask for image in images]
        assert all(mask.any() for mask in masks)
        found.append([item(folder, f"i{k}", image, mask) for k, (image, mask) in enumerate(zip(images, masks))])
    return found


def test_equal_models_pass_and_the_better_one(models: tuple[Predictor, Predictor], lists: list[list[Item]]) -> None:
    one, two = models
    same = judge(one, one, lists[0], OPTIONS)
    assert same.passed and not same.reasons and same.power_equal == same.power_better == 1
    assert [c.clicks for c in same.compared] == list(CLICKS) and same.compared[0].dice == (1, 1)
    better = judge(one, two, lists[1], OPTIONS)
    assert better.passed and better.figures(1)["dice"] == 1 > better.figures(0)["dice"]
    assert (better.champion, better.candidate) == (one.system.version, two.system.version)
    stored = json.loads(json.dumps(better.to_dict()))
    assert stored["passed"] and stored["compared"][0]["dice"][1] == 1 and stored["groups"] == 5


def test_a_worse_one_is_refused_with_the_reasons(models: tuple[Predictor, Predictor], lists: list[list[Item]]) -> None:
    report = judge(models[1], models[0], lists[1], OPTIONS)
    assert not report.passed and any("without clicks the mean Dice went from 1.000" in r for r in report.reasons)
    assert report.figures(0)["dice"] == 1 and report.compared[0].low < -OPTIONS.margin


def test_too_few_labels_promote_nothing_by_themselves(
    models: tuple[Predictor, Predictor], lists: list[list[Item]]
) -> None:
    options = replace(OPTIONS, validation_labels=6)
    report = judge(models[0], models[0], lists[0], options)
    assert not report.passed and report.reasons == ("5 label(s) with a lesion validate; 6 are needed",)
    by_hand = judge(models[0], models[0], lists[0], options, by_itself=False)
    assert by_hand.passed and by_hand.warnings == report.reasons


def test_labels_count_and_copies_and_frames_of_one_cine_once(
    models: tuple[Predictor, Predictor], lists: list[list[Item]]
) -> None:
    options = replace(OPTIONS, validation_labels=5)
    views = [replace(i, group=f"patient {k % 4}") for k, i in enumerate(lists[0])]
    report = judge(models[0], models[0], views, options)
    assert (report.labels, report.groups) == (5, 4), "two views of one patient are two labels"
    assert report.reasons == ("the labels that validate are of 4 patient(s); 5 are needed",)
    assert judge(models[0], models[0], views, replace(options, validation_labels=4)).passed
    copies = [replace(lists[0][0], id=f"copy {k}", group="one") for k in range(20)]
    report = judge(models[0], models[0], copies, options)
    assert (report.labels, report.groups) == (1, 1) and not report.passed, "many copies are one"
    frames = [replace(i, id=f"cine@{k}", group="one") for k, i in enumerate(lists[0])]
    assert judge(models[0], models[0], frames, options).labels == 1


def test_false_alarms_and_empty_labels(models: tuple[Predictor, Predictor], tmp_path: Path) -> None:
    """Lesion-free images: the candidate that marks more of them does not pass, whatever its Dice."""
    silent = Predictor(with_options(models[0].system, {"post.threshold": 0.999999}))
    images = [make_phantom(np.random.default_rng(k), 48, 64, "none").image for k in range(3)]
    empty = [item(tmp_path, f"n{k}", image, np.zeros((48, 64))) for k, image in enumerate(images)]
    lesions = [
        item(tmp_path, f"l{k}", image, models[0].propose(image / np.float32(255)).mask)
        for k, image in enumerate(images)
    ]
    report = judge(silent, models[0], empty + lesions, OPTIONS)
    assert not report.passed and any("3 of 3 lesion-free images are marked; 0 before" in r for r in report.reasons)
    assert report.figures(1) == {"dice": 1.0, "lesions": 3, "failures": 0, "false_alarms": 3, "normals": 3}
    nothing = judge(models[0], models[0], empty, OPTIONS)
    assert not nothing.passed and nothing.reasons == ("no label with a lesion validates",)
    assert judge(models[0], models[0], [], OPTIONS).figures(0)["dice"] is None


def test_the_robot_clicks_on_a_fixed_choice(tmp_path: Path) -> None:
    items = [Item(f"i{k}", tmp_path, tmp_path, f"g{k // 2}", "select", "", k % 4 < 2) for k in range(400)]
    chosen = clicked_on(items)
    assert chosen == clicked_on(items[::-1]) and len(chosen) == 80
    assert all(int(name[1:]) % 2 == 0 for name in chosen), "one of each group"


def pair(champion: list[float], candidate: list[float]) -> Pair:
    return Pair(np.array([champion, candidate]).T, np.arange(len(champion)), np.zeros((0, 2), dtype=bool))


def test_power_grows_with_labels_and_with_the_gain() -> None:
    rng = np.random.default_rng(0)
    found = {}
    for n in (20, 200):
        base = rng.uniform(0.75, 0.9, n)
        noisy = [pair(list(base), list(base + rng.normal(0, 0.03, n)))]
        found[n] = [power(noisy, OPTIONS, better) for better in (0.0, BETTER)]
    assert 0.1 < found[20][0] < found[200][0] < found[200][1] and found[20][1] > found[20][0]
    assert found[200][1] > 0.99
    # By the normal distribution: P(mean >= z * error - margin), error = .03 * sqrt(2) / sqrt(n) of symmetric differences.
    from statistics import NormalDist

    expected = 1 - NormalDist().cdf(NormalDist().inv_cdf(0.9) - OPTIONS.margin / (0.03 / np.sqrt(200)))
    assert found[200][0] == pytest.approx(expected, abs=0.06)


def test_a_failure_more_by_noise_alone_is_a_refusal_that_the_power_counts() -> None:
    """Two equal models that each lose another lesion: one of four plays ends with a failure more."""
    sides = [[0.9] * 18 + [0.2, 0.9], [0.9] * 18 + [0.9, 0.2]]
    wide = replace(OPTIONS, margin=0.5)
    assert 0.4 < power([pair(*sides)], wide, 0.0) < 0.9
    assert power([pair([0.9] * 20, [0.9] * 20)], wide, 0.0) == 1
