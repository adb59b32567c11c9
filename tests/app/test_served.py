"""Which model answers whom, without a server: what is promoted, decided by a person, or cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from app_server import eventually, picture, save_tiny_system
from PIL import Image
from served_desk import Desk

from lib.routes.metrics import Looked
from lib.tasks.infers import LesionTask
from ultrarefiner_monai.config import CoarseConfig, SystemConfig
from ultrarefiner_monai.core.files import sha256_of
from ultrarefiner_monai.learning.pointer import Pointer
from ultrarefiner_monai.learning.registry import CONFIGURED
from ultrarefiner_monai.models.checkpoints import load_system, write_checkpoint
from ultrarefiner_monai.studies.training_folder import write_json


@pytest.fixture
def desk(tmp_path: Path, checkpoint: Path) -> Desk:
    return Desk(tmp_path, checkpoint)


def test_what_learning_promotes_leaves_an_image_in_hand_alone(desk: Desk) -> None:
    assert desk.of_image("anna", "a") == desk.base
    desk.set_quick(-2)
    first = desk.follow()
    assert first.startswith(f"{desk.base}+")
    assert desk.of_image("anna", "a") == desk.base and desk.of_image("berta", "b") == first
    # A training's model and a quick one on top of it, before anybody asked in between.
    desk.registry.add("sam_refiner-1", desk.checkpoint)
    desk.registry.promote("sam_refiner-1", by="slow")
    desk.set_quick(-3)
    assert desk.follow() not in (first, desk.base)
    assert desk.of_image("anna", "a") == desk.base and desk.of_image("berta", "b") == first


def test_a_persons_decision_counts_from_the_next_request_on_whatever_is_promoted_after_it(desk: Desk) -> None:
    desk.of_image("anna", "a")
    desk.set_quick(-2)
    bad = desk.follow()
    assert desk.of_image("berta", "b") == bad
    desk.registry.rollback()
    desk.set_quick(-3)  # it was under way when the person decided
    assert desk.of_image("berta", "b") not in (bad, desk.base)
    assert desk.of_image("anna", "a") != desk.base


def test_a_request_that_came_before_a_persons_decision_pins_nothing(desk: Desk) -> None:
    desk.set_quick(-2)
    pins, before = desk.served._pins, desk.served.latest()
    generation = pins.generation
    desk.registry.rollback()
    assert desk.of_image("anna", "other") == desk.base  # another request, in between
    assert pins.predictor("anna", "a", before, generation) is before
    assert desk.of_image("anna", "a") == desk.base


def test_an_upload_is_known_by_its_content(desk: Desk, tmp_path: Path) -> None:
    task = LesionTask("sam_refiner", "interact", desk.engine, "")

    def ask(name: str, seed: int) -> str:
        Image.fromarray(picture(seed)).save(tmp_path / name)
        request = {"image": str(tmp_path / name), "image_id": "", "client_id": "anna", "foreground": [[60, 40]]}
        return str(task.outline(request).reply["version"])

    assert ask("upload1.png", 1) == desk.base
    desk.set_quick(-2)
    after = desk.follow()
    assert ask("upload2.png", 1) == desk.base and ask("upload3.png", 2) == after


def test_a_seg_file_of_an_image_in_hand_holds_what_its_user_sees(desk: Desk, tmp_path: Path) -> None:
    task = LesionTask("sam_refiner", "interact", desk.engine, "")
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    request = {"image": str(tmp_path / "a.png"), "image_id": "a", "client_id": "anna", "foreground": [[60, 40]]}
    seen = task.outline(request)
    desk.set_quick(-3)
    desk.follow()
    sent = task.outline(request, as_file=False)
    assert sent.reply["version"] == seen.reply["version"]
    np.testing.assert_array_equal(sent.mask, seen.mask)


@pytest.mark.parametrize("by", ["person", "slow"])
def test_a_model_that_the_memory_does_not_hold_leaves_the_one_before(desk: Desk, by: Any) -> None:
    before = desk.served.latest()
    huge = SystemConfig(
        coarse=CoarseConfig(arch="compact", image_size=64, hidden_size=32, num_heads=2, mlp_dim=1 << 40)
    )
    desk.work.models.mkdir(exist_ok=True)
    path = write_checkpoint(desk.work.models / "sam_refiner-7.safetensors", {}, huge, {})
    write_json(path.with_suffix(".json"), {"version": sha256_of(path)[:12], "created": "2026", "facts": {}})
    desk.registry._file.write(Pointer("sam_refiner-7", (CONFIGURED,), by=by, at="2026"))
    if by == "person":
        assert desk.served.latest() is before
    desk.served.now()
    assert eventually(lambda: "sam_refiner-7 cannot be served" in desk.served.problem)
    assert desk.served.latest() is before and desk.served.now() is before


def test_a_damaged_quick_model_leaves_the_champion_alone_and_is_said(desk: Desk) -> None:
    name = desk.set_quick(-2)
    desk.follow()
    later = desk.registry.quick_path(desk.registry.free_quick())
    later.write_bytes(desk.registry.quick_path(name).read_bytes())
    desk.registry.set_quick(later.stem, desk.base)
    later.write_bytes(b"nothing")
    for served in (desk.served, desk.again()):  # as it runs, and after a restart
        served.now()
        assert eventually(lambda found=served: "damaged" in found.problem)
        assert served.latest().system.version == desk.base and served.quick == ""


def test_a_quick_model_of_another_champion_is_refused(desk: Desk, tmp_path: Path) -> None:
    desk.set_quick(-2)
    desk.checkpoint = save_tiny_system(tmp_path / "other.safetensors", 2)
    served = desk.again()
    assert served.latest().system.version == load_system(desk.checkpoint).version
    assert "was tuned on" in served.problem and served.quick == ""


def test_switched_off_the_champion_alone_answers(desk: Desk) -> None:
    desk.set_quick(-2)
    assert desk.again().latest().system.version != desk.base
    assert desk.again(quick=False).latest().system.version == desk.base


def test_quick_models_make_no_new_series_of_metrics(desk: Desk) -> None:
    desk.set_quick(-2)
    desk.follow()
    info = next(iter(Looked(SimpleNamespace(served=desk.served))._models()))  # type: ignore[arg-type]
    assert info.samples[0].labels == {"name": CONFIGURED, "version": desk.base}
