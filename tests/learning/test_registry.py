"""The registry: candidates, the pointer there and back, what is refused, and the commands over it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.config import CoarseConfig, PostConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.learning.pointer import CONFIGURED, Pointer, PointerFile
from ultrarefiner_monai.learning.registry import Registry
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, save_system
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.studies.work_folder import WorkFolder

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
SAM = SamConfig(
    arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, window_size=2, global_attn_indexes=(0,)
)


def write(path: Path, seed: int, sam: bool = False, threshold: float = 0.5, broken: bool = False) -> Path:
    torch.manual_seed(seed)
    coarse = build_coarse(COARSE)
    if broken:
        with torch.no_grad():
            next(coarse.parameters()).fill_(float("nan"))
    config = SystemConfig(coarse=COARSE, sam=SAM if sam else None, post=PostConfig(threshold=threshold))
    return save_system(path, config, coarse, build_sam(SAM) if sam else None, half=False)


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    return WorkFolder.of(tmp_path)


@pytest.fixture
def registry(work: WorkFolder, tmp_path: Path) -> Registry:
    """Two candidates."""
    registry = Registry(work)
    for n in (1, 2):
        registry.add(registry.free_name("transunet"), write(tmp_path / "run.safetensors", n), facts={"start": "x"})
    return registry


def test_there_and_back_and_the_one_before_stays(registry: Registry) -> None:
    assert [c.name for c in registry.candidates()] == ["transunet-1", "transunet-2"]
    assert registry.pointer() == Pointer() and registry.state() == ()
    registry.promote("transunet-1")
    before = registry.state()
    pointer = registry.promote("transunet-2")
    assert pointer == registry.pointer() and pointer.by == "person" and pointer.at
    assert (pointer.name, pointer.before) == ("transunet-2", ("transunet-1", CONFIGURED))
    assert registry.state() != before
    assert registry.rollback().name == "transunet-1" and registry.get("transunet-2").path.is_file()
    back = registry.rollback()
    assert (back.name, back.before) == (CONFIGURED, ())
    with pytest.raises(InputError, match="nothing was before"):
        registry.rollback()


def test_a_coarse_candidate_keeps_the_refiner_it_was_served_with(registry: Registry, tmp_path: Path) -> None:
    base = write(tmp_path / "base.safetensors", 7, sam=True)
    tuned = write(tmp_path / "tuned.safetensors", 8, threshold=0.6)
    found = registry.add("transunet-3", tuned, base)
    system, whole = load_system(found.path), read_checkpoint(base)
    assert system.refiner is not None and system.config.post.threshold == 0.6 and system.version == found.version
    stored = read_checkpoint(found.path)
    for part, source in (("sam", whole), ("coarse", read_checkpoint(tuned))):
        assert all(torch.equal(v, stored.part(part)[k]) for k, v in source.part(part).items())


def test_what_cannot_be_served_is_refused_and_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    registry.promote("transunet-1")
    with pytest.raises(InputError, match="not finite"):
        registry.add("broken", write(tmp_path / "b.safetensors", 3, broken=True))
    assert not list(registry.folder.glob("broken*"))
    path = registry.get("transunet-2").path
    whole = path.read_bytes()
    for content, words in ((whole[: len(whole) // 2], "readable"), (b"", "readable"), (None, "no checkpoint")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            registry.promote("transunet-2")
    write(path, 9)
    with pytest.raises(InputError, match="changed since"):
        registry.promote("transunet-2")
    for name in ("../transunet-1", "nothing", "current", ""):
        with pytest.raises(InputError, match=r"known: configured, transunet-1"):
            registry.promote(name)
    with pytest.raises(InputError, match="already"):
        registry.promote("transunet-1")
    assert (registry.pointer().name, registry.pointer().before) == ("transunet-1", (CONFIGURED,))


def test_names_are_never_given_twice(registry: Registry) -> None:
    assert registry.free_name("transunet", {"transunet-7", "sam_refiner-9"}) == "transunet-8"
    assert registry.free_name("sam_refiner") == "sam_refiner-1"


@pytest.mark.parametrize("content", ["{ half of it", "[]", '{"name": 5}', "\0" * 40, None])
def test_a_pointer_that_is_damaged_or_gone_is_said(registry: Registry, content: str | None) -> None:
    registry.promote("transunet-1")
    PointerFile(registry.folder).path.unlink() if content is None else PointerFile(registry.folder).path.write_text(
        content
    )
    found = registry.pointer()
    assert (
        found.name == CONFIGURED
        and "transunet-1 was served before" in found.problem
        and "models promote" in found.problem
    )
    registry.promote("transunet-1")  # somebody chose: all is well again
    assert registry.pointer().problem == "" and registry.pointer().name == "transunet-1"


def test_no_pointer_is_no_problem_where_nobody_chose(registry: Registry) -> None:
    assert registry.pointer().problem == ""
    PointerFile(registry.folder).path.write_text("{")
    assert "is damaged" in registry.pointer().problem


def test_commands(registry: Registry, tmp_path: Path) -> None:
    run, studies = CliRunner(), ["--studies", str(tmp_path)]
    assert "rollback" in run.invoke(app, ["models", "promote", "transunet-2", *studies], catch_exceptions=False).output
    listed = run.invoke(app, ["models", "list", *studies], catch_exceptions=False).output
    assert "transunet-1" in listed and "served" in next(row for row in listed.splitlines() if "transunet-2" in row)
    run.invoke(app, ["models", "rollback", *studies], catch_exceptions=False)
    stored = json.loads(PointerFile(registry.folder).path.read_text())
    assert (stored["name"], stored["before"], stored["by"]) == ("configured", [], "person")
    missing = run.invoke(app, ["models", "list", "--studies", str(tmp_path / "typo")])
    assert isinstance(missing.exception, InputError) and not (tmp_path / "typo").exists()
