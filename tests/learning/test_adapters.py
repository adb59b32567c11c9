"""Adapters as models: merged into what they were trained over, promoted and rolled back, refused on anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from app_server import save_tiny_system
from test_registry import write
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.config import LoraConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.adapters import add_adapter
from ultrarefiner_monai.learning.registry import CONFIGURED, Registry
from ultrarefiner_monai.models.adapter_file import write_adapter
from ultrarefiner_monai.models.checkpoints import in_half_precision, load_system, read_checkpoint
from ultrarefiner_monai.models.lora import inject, lora_parameters
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.work_folder import WorkFolder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(WorkFolder.of(tmp_path))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A whole system in half precision, as models are shipped."""
    return in_half_precision(write(tmp_path / "single.safetensors", 1, sam=True), tmp_path / "whole.safetensors")


def adapter(weights: Path, out: Path, seed: int = 0) -> Path:
    """What a training over ``weights`` might leave."""
    system, config = load_system(weights), LoraConfig(rank=2)
    sam = system.refiner.sam
    inject(sam.image_encoder, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in lora_parameters(sam.image_encoder):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return write_adapter(out, sam, config, {"data": f"site {seed}"})


def embedding(path: Path) -> np.ndarray:
    picture = np.random.default_rng(0).random((40, 56), dtype=np.float32)
    return Predictor(load_system(path)).features(picture).image_embedding


def test_several_are_kept_and_one_answers(
    registry: Registry, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, studies = CliRunner(), ["--studies", str(tmp_path)]
    for n in (1, 2):
        file = adapter(weights, tmp_path / f"adapter{n}.safetensors", n)
        command = ["models", "adapt", str(file), "--name", f"site-{n}", "--weights", str(weights), *studies]
        assert (
            f"`ultrarefiner models promote site-{n}` serves it"
            in run.invoke(app, command, catch_exceptions=False).output
        )
    paths = [weights, *(registry.get(f"site-{n}").path for n in (1, 2))]
    found = [embedding(path) for path in paths]
    assert len({f.tobytes() for f in found}) == 3
    plain, one = (read_checkpoint(path).tensors for path in paths[:2])
    changed = {k for k in plain if not torch.equal(plain[k], one[k])}
    assert changed and all(k.startswith("sam.image_encoder.blocks.") for k in changed)
    assert all(one[k].dtype == (torch.float32 if k in changed else plain[k].dtype) for k in plain)
    registry.promote("site-1")
    assert registry.promote("site-2").before == ("site-1", CONFIGURED)
    assert registry.rollback().name == "site-1"
    assert embedding(registry.get("site-1").path).tobytes() == found[1].tobytes()
    shown = run.invoke(app, ["models", "show", "site-2", *studies], catch_exceptions=False).output
    assert "adapter of rank 2" in shown and "started from: configured" in shown
    for _ in range(2):
        registry.add(registry.free_name("transunet"), weights)
    monkeypatch.setattr("ultrarefiner_monai.learning.registry._MOST_OTHERS", 1)
    assert registry.prune() == ["transunet-1"], "what a person added stays"


def test_over_a_candidate(registry: Registry, weights: Path, tmp_path: Path) -> None:
    registry.add("sam_refiner-1", write(tmp_path / "other.safetensors", 7, sam=True))
    registry.add("sam_refiner-2", weights)
    file = adapter(registry.get("sam_refiner-1").path, tmp_path / "a.safetensors")
    assert add_adapter(registry, file, "mine").facts["start"] == "sam_refiner-1"


def test_points_go_and_a_damaged_model_keeps_nobody_from_the_others(registry: Registry, tmp_path: Path) -> None:
    whole = save_tiny_system(tmp_path / "points.safetensors", points=True)
    registry.add("broken", whole)
    registry.get("broken").path.write_bytes(b"half")
    registry.add("base", whole)
    made = add_adapter(registry, adapter(whole, tmp_path / "a.safetensors"), "mine")
    assert made.facts["start"] == "base"
    assert load_system(made.path).ppn is None, "they read the encoder as it was"


def test_what_fits_nothing_is_refused_and_nothing_is_left(registry: Registry, weights: Path, tmp_path: Path) -> None:
    file = adapter(weights, tmp_path / "a.safetensors")
    other = write(tmp_path / "other.safetensors", 7, sam=True)
    coarse = write(tmp_path / "coarse.safetensors", 7)
    for path in (None, other, coarse):
        with pytest.raises(InputError, match="fits only the weights"):
            add_adapter(registry, file, "mine", path)
    with pytest.raises(InputError, match="is no adapter"):
        add_adapter(registry, weights, "mine", weights)
    add_adapter(registry, file, "mine", weights)
    with pytest.raises(InputError, match="already"):
        add_adapter(registry, file, "mine", weights)
    for name in ("quick-1", "configured", "a/b", ""):
        with pytest.raises(InputError, match="name"):
            add_adapter(registry, file, name, weights)
    assert sorted(p.name for p in registry.folder.glob("*.safetensors")) == ["mine.safetensors"]
    assert not list(registry.folder.glob(".adapted*"))
