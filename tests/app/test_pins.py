"""An image under a hand keeps its model, whoever else asks for whatever; only so many models are kept for that."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
from app_server import APP  # noqa: F401 (puts lib on the path)
from small_champion import champion

from lib.tasks.pins import MINUTES, Pins
from ultrarefiner_monai.learning.quick.overlay import with_tensors
from ultrarefiner_monai.pipeline.predictor import Predictor


class Hand:
    """Pins under a clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pins = Pins(lambda: self.seconds)

    def wait(self, minutes: float) -> None:
        self.seconds += 60 * minutes


@pytest.fixture(scope="module")
def model() -> Predictor:
    return Predictor(champion())


def quick(model: Predictor, number: int) -> Predictor:
    """A quick model on top of ``model``: networks of its own but for the encoder."""
    return model.with_decoder(with_tensors(model.system, {}, f"{model.system.version}+{number:012x}"))


def test_users_who_are_one_client_keep_the_models_of_their_images(model: Predictor) -> None:
    hand, later = Hand(), quick(model, 1)
    ask = hand.pins.predictor
    assert ask("user-xyz", "a", model) is model and ask("user-xyz", "b", model) is model
    for _ in range(3):  # they click in turns while a quick model is promoted
        hand.wait(MINUTES / 2)
        assert ask("user-xyz", "a", later) is model and ask("user-xyz", "b", later) is model
    assert ask("user-xyz", "c", later) is later and ask("", "a", later) is later
    hand.wait(MINUTES + 1)
    assert ask("user-xyz", "a", later) is later, "nobody asked for it in a long time"


def test_the_image_that_a_client_asked_for_last_is_in_its_hand_for_hours(model: Predictor) -> None:
    hand, later = Hand(), quick(model, 1)
    ask = hand.pins.predictor
    ask("anna", "a", model)
    ask("", "a", model)
    hand.wait(300)
    assert ask("anna", "a", later) is model
    assert ask("", "a", later) is later, "whose hand it is in is not known"
    hand.pins.clear()
    assert ask("anna", "a", later) is later


def test_only_so_many_models_are_kept(model: Predictor) -> None:
    hand = Hand()
    seen = []
    for n in range(40):  # each save makes a quick model, each client goes away with one image in hand
        newest = quick(model, n)
        seen.append(weakref.ref(newest))
        assert hand.pins.predictor(f"client {n}", "a", newest) is newest
    del newest
    gc.collect()
    kept = [n for n, found in enumerate(seen) if found() is not None]
    assert kept == list(range(40 - len(kept), 40)) and 6 <= len(kept) <= 18, kept

    hand, whole = Hand(), []
    for n in range(9):
        newest = Predictor(replace(champion(n), version=f"{n:012x}"))
        whole.append(weakref.ref(newest))
        hand.pins.predictor(f"client {n}", "a", newest)
    del newest
    gc.collect()
    assert sum(found() is not None for found in whole) <= 5, "whole models are large"
    for n in range(300):
        hand.pins.predictor("", f"upload {n}", model)
    assert len(hand.pins._pins) <= 200
