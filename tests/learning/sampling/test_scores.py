"""An image's scores are those of the formulas, from the predictor that serves, and what is computed is kept for a click."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import picture, save_tiny_system
from PIL import Image

from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.learning.labelled import patient_hash
from ultrarefiner_monai.learning.sampling.scores import (
    Scores,
    combined,
    encoder_key,
    score_frame,
    scored_frames,
    shown_picture,
)
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.masks.uncertainty import uncertainty
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_system(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def predictor(checkpoint: Path) -> Predictor:
    return Predictor(load_system(checkpoint), EmbeddingCache())


def frame(seed: int = 0, height: int = 96, width: int = 130) -> np.ndarray:
    return picture(seed, height, width).astype(np.float32) / 255


def test_the_figures_are_those_of_the_answers(predictor: Predictor) -> None:
    for seed in range(4):
        found = score_frame(predictor, frame(seed))
        coarse, automatic = predictor.coarse(frame(seed)), predictor.propose(frame(seed))
        assert found.found == coarse.mask.any() and found.presence == coarse.presence
        assert found.boundary_entropy == uncertainty(coarse.coarse_prob, coarse.mask)
        expected = 1.0 if automatic.safety_rule else 1 - dice_of(coarse.mask, automatic.mask)
        assert found.disagreement == expected


def test_the_vector_is_the_mean_embedding_without_the_padding(predictor: Predictor) -> None:
    found = score_frame(predictor, frame(1, 48, 128))
    embedding = predictor.features(frame(1, 48, 128)).image_embedding.astype(np.float32).reshape(256, 4, 4)
    sam = predictor.system.config.sam
    assert sam is not None
    rows = round(Letterbox(48, 128, sam.image_size).inner_hw[0] * 4 / sam.image_size)
    assert rows == 2 and found.vector.shape == (256,)
    np.testing.assert_allclose(found.vector, embedding[:, :rows].mean(axis=(1, 2)), atol=1e-4)
    other = score_frame(predictor, frame(2, 48, 128)).vector
    assert np.abs(found.vector - other).max() > 1e-3


def test_a_click_on_a_scored_image_is_answered_from_the_cache(predictor: Predictor) -> None:
    score_frame(predictor, frame(3))
    assert predictor.propose(frame(3)).timings["cached"] == 1.0


def test_without_a_refiner_the_thumbnail_stands_for_the_image(predictor: Predictor) -> None:
    plain = Predictor(replace(predictor.system, refiner=None), EmbeddingCache())
    found = score_frame(plain, frame(4))
    np.testing.assert_allclose(np.linalg.norm(found.vector), 1, atol=1e-5)
    assert found.disagreement == 0 and encoder_key(plain) == "thumbnail"


def test_the_encoders_key_changes_with_its_weights_alone(checkpoint: Path) -> None:
    system = load_system(checkpoint)
    key = encoder_key(Predictor(system))
    assert encoder_key(Predictor(load_system(checkpoint))) == key and system.refiner is not None
    for parameter in system.refiner.sam.mask_decoder.parameters():
        parameter.data += 1
    assert encoder_key(Predictor(system)) == key
    next(iter(system.refiner.sam.image_encoder.parameters())).data += 1
    assert encoder_key(Predictor(system)) != key


def test_regions_and_frames_make_one_image() -> None:
    parts = [
        Scores(np.array([0.0, 2.0], np.float32), 0.2, 0.9, False, None),
        Scores(np.array([4.0, 0.0], np.float32), 0.1, 0.3, True, 0.7),
        Scores(np.array([2.0, 1.0], np.float32), 0.3, 0.2, True, 0.4),
    ]
    whole = combined(parts)
    np.testing.assert_allclose(whole.vector, [2, 1])
    assert (whole.disagreement, whole.boundary_entropy, whole.found, whole.presence) == (0.3, 0.3, True, 0.7)
    nothing = combined(parts[:1])
    assert (nothing.boundary_entropy, nothing.found, nothing.presence) == (0.9, False, None)


def test_a_cine_has_three_scored_frames() -> None:
    assert [scored_frames(n) for n in (1, 2, 3, 60)] == [[0], [1], [1, 0, 2], [30, 10, 49]]
    assert all(len(set(scored_frames(n))) == 3 and max(scored_frames(n)) < n for n in range(3, 40))


def test_the_picture_and_patient_of_a_file(tmp_path: Path) -> None:
    Image.fromarray(picture(5)).save(tmp_path / "a.png")
    plain = read_image_file(tmp_path / "a.png")
    assert patient_hash(plain) == "" and shown_picture(plain).shape == (1024,)
    cine = np.stack([picture(10 + k) for k in range(5)])
    (tmp_path / "c.dcm").write_bytes(dicom_bytes(cine, 1, 0.08))
    moving = read_image_file(tmp_path / "c.dcm")
    assert len(patient_hash(moving)) == 12 and patient_hash(moving) not in moving.patient
    Image.fromarray(cine[2]).save(tmp_path / "m.png")
    middle = shown_picture(read_image_file(tmp_path / "m.png"))
    assert shown_picture(moving) @ middle > 0.999
