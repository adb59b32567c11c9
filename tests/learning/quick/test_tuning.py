"""Tuning the mask decoder on kept features: the same for equal arguments, near the champion, and the champion untouched."""

from __future__ import annotations

import pytest
import torch
from small_champion import champion, samples

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.quick.overlay import with_tensors
from ultrarefiner_monai.learning.quick.tuning import Recipe, tune
from ultrarefiner_monai.models.checkpoints import System

OPTIONS = LearningConfig()


@pytest.fixture(scope="module")
def system() -> System:
    return champion()


def test_same_arguments_same_tensors_and_the_champion_is_left_alone(system: System) -> None:
    learnt, before = samples(system, 3), {k: v.clone() for k, v in system.refiner.state_dict().items()}  # type: ignore[union-attr]
    first = tune(system, learnt, [], OPTIONS, steps=3, seed=1)
    second = tune(system, learnt, [], OPTIONS, steps=3, seed=1)
    assert first and all(name.startswith("sam.mask_decoder.") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in first)
    after = system.refiner.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    other = tune(system, learnt, [], OPTIONS, steps=3, seed=2)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_anchor_holds_it_near(system: System) -> None:
    learnt, start = samples(system, 2), system.refiner.state_dict()  # type: ignore[union-attr]

    def moved(anchor: float) -> float:
        tuned = tune(system, learnt, [], OPTIONS, steps=4, recipe=Recipe(("decoder",), 1e-2, anchor))
        return sum(float((tuned[name] - start[name]).square().sum()) for name in tuned)

    assert moved(50.0) < 0.7 * moved(0.0)


def test_the_clock_ends_it_and_replayed_images_are_drawn(system: System) -> None:
    learnt = samples(system, 2)
    start = system.refiner.state_dict()  # type: ignore[union-attr]
    hardly = tune(system, learnt, [], OPTIONS, seconds=0.0, steps=1000)
    assert all(torch.equal(hardly[name], start[name]) for name in hardly)
    alone = tune(system, learnt[:1], [], OPTIONS, steps=2)
    mixed = tune(system, learnt[:1], learnt[1:], LearningConfig(replay_share=1.0), steps=2)
    assert any(not torch.equal(alone[name], mixed[name]) for name in alone)


def test_what_cannot_be_tuned_is_refused(system: System) -> None:
    with pytest.raises(InputError, match="no correction"):
        tune(system, [], [], OPTIONS, steps=1)
    with pytest.raises(InputError, match="no refiner"):
        tune(champion(sam=False), samples(system, 1), [], OPTIONS, steps=1)
    with pytest.raises(InputError, match="does not fit"):
        with_tensors(system, {"sam.mask_decoder.unknown": torch.zeros(1)}, "x")


def test_a_tuned_system_shares_what_it_leaves_alone(system: System) -> None:
    tuned = with_tensors(system, tune(system, samples(system, 1), [], OPTIONS, steps=1), "a+b")
    assert tuned.coarse is system.coarse and tuned.version == "a+b"
    own, old = tuned.refiner.sam, system.refiner.sam  # type: ignore[union-attr]
    assert own.image_encoder is old.image_encoder
    assert own.mask_decoder is not old.mask_decoder
