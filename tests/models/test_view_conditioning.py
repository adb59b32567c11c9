"""View conditioning: what is added to the embedding, what learns, and what a checkpoint holds of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from app_server import save_tiny_system

from ultrarefiner_monai.config import ConfigError, SystemConfig, from_dict
from ultrarefiner_monai.core.types import Clicks, InputError
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, save_system, with_options
from ultrarefiner_monai.models.views import ViewEmbedding
from ultrarefiner_monai.pipeline.predictor import Predictor

VIEWS = ("radial", "anti-radial")


def with_views(folder: Path, scale: float = 3.0) -> Path:
    """A tiny system whose radial view changes the answers."""
    system = load_system(save_tiny_system(folder / "plain.safetensors"))
    assert system.refiner is not None
    table = ViewEmbedding(VIEWS)
    with torch.no_grad():
        table.table[0] = scale * torch.randn(256, generator=torch.Generator().manual_seed(0))  # type: ignore[index]
    config = replace(system.config, views=VIEWS)
    path = folder / "views.safetensors"
    save_system(path, config, system.coarse, system.refiner.sam, half=False, views=table)  # type: ignore[arg-type]
    return path


def test_untrained_vectors_change_nothing() -> None:
    embedding = torch.rand(3, 256, 4, 4)
    assert torch.equal(ViewEmbedding(VIEWS)(embedding, ["radial", "", "other"]), embedding)
    assert ViewEmbedding(())(embedding, []) is embedding


def test_each_image_has_its_own_and_only_that_learns() -> None:
    views = ViewEmbedding(VIEWS)
    with torch.no_grad():
        views.table.copy_(torch.tensor([[1.0], [2.0]]).expand(2, 256))  # type: ignore[union-attr]
    embedding = torch.zeros(3, 256, 2, 2)
    out = views(embedding, ["anti-radial", "nothing", "radial"])
    assert out[:, 0, 0, 0].tolist() == [2.0, 0.0, 1.0]
    out[1:].sum().backward()
    assert views.table is not None and views.table.grad is not None
    assert (views.table.grad[0] != 0).all() and (views.table.grad[1] == 0).all()
    with pytest.raises(ValueError, match="3 views"):
        views(embedding, ["radial"])


def test_a_predictor_is_shown_one_view_after_another(tmp_path: Path) -> None:
    predictor = Predictor(load_system(with_views(tmp_path)))
    image = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    click = Clicks(((40.0, 30.0),))
    plain = predictor.interact(image, click)
    radial = predictor.seen_as("radial").interact(image, click)
    assert not np.array_equal(plain.final_prob, radial.final_prob)
    assert np.array_equal(predictor.seen_as("anti-radial").interact(image, click).final_prob, plain.final_prob), "zeros"
    assert predictor.seen_as("oblique") is predictor and predictor.seen_as("radial").seen_as("").view == ""
    assert np.array_equal(predictor.interact(image, click).final_prob, plain.final_prob), "nothing stays behind"
    kept = predictor.seen_as("radial").features(image).image_embedding
    added = kept.astype(np.float32) - predictor.features(image).image_embedding.astype(np.float32)
    table = read_checkpoint(tmp_path / "views.safetensors").part("views")["table"][0].numpy()
    assert np.allclose(added[0], table[:, None, None], atol=2e-2)


def test_a_checkpoint_keeps_them_and_options_do_not_change_them(tmp_path: Path) -> None:
    path = with_views(tmp_path)
    system = with_options(load_system(path), {"safety.enabled": False})
    assert system.refiner is not None and system.refiner.views.table.abs().max() > 0  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="and views"):
        with_options(system, {"views": ["radial"]})
    with pytest.raises(ValueError, match="vectors of its views"):
        save_system(tmp_path / "x.safetensors", system.config, system.coarse, system.refiner.sam)  # type: ignore[arg-type]
    stored = read_checkpoint(path)
    from ultrarefiner_monai.models.checkpoints import write_checkpoint

    other = {k: v for k, v in stored.tensors.items() if k != "views.table"}
    write_checkpoint(tmp_path / "lost.safetensors", other, stored.config)
    with pytest.raises(InputError, match=r"\(views\) does not fit"):
        load_system(tmp_path / "lost.safetensors")


def test_what_is_kept_of_a_view_goes_with_its_vectors(tmp_path: Path) -> None:
    """Quick learning's kept features hold them; the vectors of the pool of images do not."""
    from ultrarefiner_monai.learning.quick.store import SampleStore
    from ultrarefiner_monai.learning.sampling.scores import _vector

    image = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    keys, vectors = set(), []
    for k, scale in enumerate((1.0, 5.0)):
        (tmp_path / str(k)).mkdir()
        predictor = Predictor(load_system(with_views(tmp_path / str(k), scale)))
        keys.add(SampleStore(tmp_path / str(k), predictor).key)
        vectors += [_vector(predictor, image), _vector(predictor.seen_as("radial"), image)]
    assert len(keys) == 2 and all(np.array_equal(vectors[0], v) for v in vectors)
    plain = Predictor(load_system(save_tiny_system(tmp_path / "p.safetensors")))
    assert SampleStore(tmp_path, plain).key.count("-") == 2, "without views as before"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"views": ["Radial"], "sam": {}}, "'radial'"),
        ({"views": ["radial", "radial"], "sam": {}}, "twice"),
        ({"views": ["radial"]}, "whole image"),
        ({"views": ["radial"], "sam": {}, "refiner": {"roi": True}}, "refiner.roi must be off"),
        ({"views": [""], "sam": {}}, "not written"),
    ],
)
def test_impossible_views_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(SystemConfig, values)
