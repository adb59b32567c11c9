"""What is shipped works: the compact weights load, fit their model card, and outline the sample images."""

from __future__ import annotations

from pathlib import Path

import pytest

from ultrarefiner_monai.cli.options import shipped
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.masks.metrics import score
from ultrarefiner_monai.models.checkpoints import System, load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def system() -> System:
    return load_system(shipped())


def test_all_weights_together_are_small_enough_to_ship() -> None:
    assert sum(p.stat().st_size for p in shipped().parent.iterdir()) < 40e6


def test_the_model_card_is_about_this_file(system: System) -> None:
    for name in ("model-card.md", "benchmarks.md"):
        assert system.version in (ROOT / "docs" / "research" / name).read_text(encoding="utf-8")
    assert system.meta["fold"] == "0" and system.meta["data"] == "breast+busbra+busi"
    assert system.config.safety.enabled


@pytest.mark.parametrize("name", ["phantom_01.png", "phantom_02.png", "phantom_07.nii.gz"])
def test_sample_lesions_are_outlined(system: System, name: str) -> None:
    image_file = read_image_file(ROOT / "sample-data" / name)
    label = read_mask(ROOT / "sample-data" / "labels" / "final" / f"{name.split('.')[0]}.nii.gz", image_file)
    assert score(Predictor(system).propose(image_file.frame(0)).mask, label[0]).dice > 0.85


def test_a_sample_without_a_lesion_stays_empty(system: System) -> None:
    image_file = read_image_file(ROOT / "sample-data" / "phantom_03.png")
    assert not Predictor(system).propose(image_file.frame(0)).mask.any()
