"""What is cached is known by what makes it: a tuned decoder uses all of it, other networks or options none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_champion import champion, pictures

from ultrarefiner_monai.core.cache import EmbeddingCache, ReadingCache, image_key
from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.learning.quick.overlay import with_tensors
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.pipeline.predictor import Predictor

IMAGE, CLICK = pictures(1)[0][0], Clicks(foreground_xy=((20, 20),))


def tuned(system: System) -> System:
    name = "sam.mask_decoder.iou_token.weight"
    return with_tensors(system, {name: system.refiner.state_dict()[name] + 5}, "tuned")  # type: ignore[union-attr]


def test_a_tuned_decoder_finds_what_the_champion_cached(tmp_path: Path) -> None:
    cache, system = EmbeddingCache(2**24, tmp_path / "e"), champion()
    first = Predictor(system, cache)
    answer = first.interact(IMAGE, CLICK)
    other = first.with_decoder(tuned(system))
    again = other.interact(IMAGE, CLICK)
    assert again.timings["cached"] == 1.0 and again.version == "tuned"
    assert not np.array_equal(again.final_prob, answer.final_prob)
    assert Predictor(tuned(system), cache).part_keys == first.part_keys
    np.testing.assert_array_equal(first.interact(IMAGE, CLICK).final_prob, answer.final_prob)
    assert first.forget(IMAGE) == 2 and not list((tmp_path / "e").iterdir())


def test_other_networks_and_options_of_the_networks_have_other_keys() -> None:
    system = champion()
    coarse, encoder = Predictor(system).part_keys
    plain = replace(system, config=replace(system.config, flip_tta=not system.config.flip_tta))
    assert Predictor(plain).part_keys[0] != coarse and Predictor(plain).part_keys[1] == encoder
    moved = champion()
    with torch.no_grad():
        next(moved.coarse.parameters()).add_(1)
        next(moved.refiner.sam.image_encoder.parameters()).add_(1)  # type: ignore[union-attr]
    assert Predictor(moved).part_keys[0] != coarse and Predictor(moved).part_keys[1] != encoder
    with pytest.raises(ValueError, match="shares"):
        Predictor(system).with_decoder(moved)


def test_a_reading_cache_leaves_the_disk_as_it_is(tmp_path: Path) -> None:
    system, folder = champion(), tmp_path / "e"
    reading = Predictor(system, ReadingCache(folder))
    computed = reading.features(IMAGE)
    assert not folder.exists()
    Predictor(system, EmbeddingCache(0, folder)).propose(IMAGE)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 2 and all(path.name.startswith(image_key(IMAGE)) for path in files)
    found = Predictor(system, ReadingCache(folder)).features(IMAGE)
    np.testing.assert_array_equal(found.image_embedding, computed.image_embedding)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
