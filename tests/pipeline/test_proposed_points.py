"""Points that propose themselves: where they come to lie in the image, and what they say without a coarse network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from app_server import save_tiny_system
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.models.ppn import ProposedPoints
from ultrarefiner_monai.models.refiner import Refiner
from ultrarefiner_monai.pipeline.outline import frame_points, predict
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.pipeline.proposed_points import as_clicks


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor(load_system(save_tiny_system(tmp_path_factory.mktemp("w") / "w.safetensors", points=True)))


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


@given(st.integers(8, 300), st.integers(8, 300), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_points_come_back_to_their_pixel(height: int, width: int, seed: int) -> None:
    """A pixel of the image, through the letterbox and back."""
    rng, box = np.random.default_rng(seed), Letterbox(height, width, 512)
    pixels = np.stack([rng.integers(0, width, 7), rng.integers(0, height, 7)], axis=1).astype(np.float32)
    logits = torch.tensor([[1.0, 1, 1, 1, -1, -1, -1]])
    xy = (box.points(torch.from_numpy(pixels)) + 0.5) / 512
    clicks = as_clicks(ProposedPoints(xy[None], logits), box)
    inside, beside = ({tuple(p) for p in part.tolist()} for part in (pixels[:4], pixels[4:]))
    assert set(clicks.foreground_xy) == inside and set(clicks.background_xy) == beside - inside


@pytest.mark.parametrize("shape", [(96, 130), (130, 96), (8, 200), (300, 9)])
def test_points_lie_on_pixels_of_the_image(predictor: Predictor, shape: tuple[int, int]) -> None:
    found = predictor.points(image(*shape))[0]
    assert found.foreground_xy and found.background_xy and found.box_xyxy is None
    for x, y in (*found.foreground_xy, *found.background_xy):
        assert x == int(x) and y == int(y) and 0 <= x < shape[1] and 0 <= y < shape[0]
    assert found == predictor.points(image(*shape))[0]


def test_blind_the_coarse_network_has_no_say(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = image(96, 130)
    points, _ = predictor.points(picture)
    seeing = predictor.interact(picture, points)
    monkeypatch.setattr(Predictor, "_coarse", lambda *_: pytest.fail("the coarse network was asked"))
    found = predictor.interact(picture, points, blind=True)
    assert not found.coarse_prob.any() and found.presence is None and found.refiner == "trained"
    for x, y in points.foreground_xy:
        assert found.mask[int(y), int(x)], "a click is honoured"
    assert not np.array_equal(found.final_prob, seeing.final_prob)
    nothing = predictor.interact(picture, Clicks((), points.background_xy), blind=True)
    assert not nothing.mask.any() and nothing.iou_pred is None


def test_what_is_cached_serves_points_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = load_system(save_tiny_system(tmp_path / "w.safetensors", points=True))
    cache = EmbeddingCache(1 << 24)
    picture = image(64, 90)
    Predictor(system, cache).prepare(picture)
    alone, times = Predictor(system).points(picture)
    assert times["encode"] > 0 and not times["cached"]
    monkeypatch.setattr(Refiner, "embed", lambda *_: pytest.fail("the encoder ran again"))
    found, times = Predictor(system, cache).points(picture)
    assert found == alone and times["cached"] and not times["encode"]


def test_each_region_has_its_points(predictor: Predictor) -> None:
    picture = image(100, 220)
    regions = [(slice(10, 90), slice(5, 100)), (slice(10, 90), slice(110, 215))]
    points = frame_points(predictor, picture, regions).clicks
    alone = [predictor.points(np.ascontiguousarray(picture[region]))[0] for region in regions]
    expected = {(x + r[1].start, y + r[0].start) for p, r in zip(alone, regions) for x, y in p.foreground_xy}
    assert set(points.foreground_xy) == expected
    found = predict(predictor, picture, regions, points, blind=True)
    outside = np.ones(picture.shape, bool)
    for region in regions:
        outside[region] = False
    assert not found.mask[outside].any() and found.mask.any()


def test_a_model_without_points_says_so(tmp_path: Path) -> None:
    plain = Predictor(load_system(save_tiny_system(tmp_path / "w.safetensors")))
    with pytest.raises(InputError, match="proposes no points"):
        plain.points(image(64, 64))
