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
from ultrarefiner_monai.learning.quick.overlay import write_quick
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
    with pytest.raises(InputError, match="transunet-1 was served before"):
        registry.promote("transunet-2", by="slow")  # a training does not decide what nobody knows
    registry.promote("transunet-1")  # somebody chose: all is well again
    assert registry.pointer().problem == "" and registry.pointer().name == "transunet-1"


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1", "created": "", "facts": [1]}', "\0"])
def test_a_damaged_candidate_hides_no_other_one(registry: Registry, content: str) -> None:
    (registry.folder / "transunet-1.json").write_text(content)
    assert [c.name for c in registry.candidates()] == ["transunet-2"]
    with pytest.raises(InputError, match="no model 'transunet-1'"):
        registry.promote("transunet-1")
    assert registry.promote("transunet-2").name == "transunet-2"


def test_what_is_served_is_not_called_a_failure_for_want_of_room_behind_it(registry: Registry) -> None:
    """The pointer is in its place; only the file beside it cannot be written."""
    PointerFile(registry.folder).last.mkdir()
    assert registry.promote("transunet-1") == registry.pointer()
    assert registry.pointer().name == "transunet-1"


def test_no_pointer_is_no_problem_where_nobody_chose(registry: Registry) -> None:
    assert registry.pointer().problem == ""
    PointerFile(registry.folder).path.write_text("{")
    assert "is damaged" in registry.pointer().problem


def quick(registry: Registry, base: str, seed: int = 0, name: str = "") -> str:
    """A quick model that changes one weight of the coarse network."""
    name = name or registry.free_quick()
    key = "coarse.head.bias"
    value = read_checkpoint(registry.get("transunet-1").path).tensors[key].float() + 1 + seed
    return write_quick(registry.folder / f"{name}.safetensors", {key: value}, base, {}).stem


def test_a_quick_model_stands_on_its_champion_alone(registry: Registry) -> None:
    registry.promote("transunet-1")
    base = registry.version_of("transunet-1")
    pointer = registry.set_quick(quick(registry, base), base)
    assert (pointer.name, pointer.quick, pointer.by) == ("transunet-1", "quick-1", "quick")
    assert registry.set_quick(quick(registry, base, 1), base).quick == "quick-2"
    assert [p.stem for p in registry.folder.glob("quick-*")] == ["quick-2"], "the older one is gone"
    back = registry.rollback()
    assert (back.name, back.quick, back.before) == ("transunet-1", "", (CONFIGURED,))
    assert registry.free_quick() == "quick-3", "no number is given twice"
    registry.set_quick(quick(registry, base), base)
    pointer = registry.promote("transunet-2", by="slow")
    assert (pointer.name, pointer.quick, pointer.by) == ("transunet-2", "", "slow")
    with pytest.raises(InputError, match="no longer what is served"):
        registry.set_quick(quick(registry, base), base)
    assert registry.promote("transunet-1").quick == "" == registry.rollback().quick


def test_quick_models_that_are_refused(registry: Registry) -> None:
    registry.promote("transunet-1")
    base, before = registry.version_of("transunet-1"), registry.pointer()
    for name, words in (
        ("../x", "is called quick-N"),
        ("transunet-2", "is called quick-N"),
        ("quick-9", "no quick model"),
    ):
        with pytest.raises(InputError, match=words):
            registry.set_quick(name, base)
    with pytest.raises(InputError, match="not on"):
        registry.set_quick(quick(registry, "0123456789ab"), base)
    (registry.folder / "quick-5.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match="damaged"):
        registry.set_quick("quick-5", base)
    with pytest.raises(InputError, match="letters"):
        registry.add("quick-7", registry.get("transunet-1").path)
    assert registry.pointer() == before


def test_a_promotion_over_another_model_than_was_compared(registry: Registry) -> None:
    compared = registry.pointer()
    registry.promote("transunet-2")
    with pytest.raises(InputError, match="transunet-2 is served now, no longer configured"):
        registry.promote("transunet-1", by="slow", over=compared)
    assert registry.pointer().name == "transunet-2"


def test_a_pointer_of_before_there_were_quick_models(registry: Registry) -> None:
    PointerFile(registry.folder).path.write_text('{"name": "transunet-2", "before": ["transunet-1", "configured"]}')
    assert registry.pointer() == Pointer("transunet-2", ("transunet-1", CONFIGURED))
    assert registry.rollback().name == "transunet-1" and registry.pointer().before == (CONFIGURED,)


def test_a_server_that_learns_for_years_does_not_fill_the_disk(registry: Registry, tmp_path: Path) -> None:
    source = write(tmp_path / "run.safetensors", 5)
    registry.promote("transunet-1")
    registry.promote("transunet-2")
    for n in range(1, 15):
        registry.add(f"sam_refiner-{n}", source)
    gone = registry.prune(["sam_refiner-2"])
    left = {c.name for c in registry.candidates()}
    assert len(gone) == 3 and "sam_refiner-2" in left and {"transunet-1", "transunet-2"} <= left and len(left) == 13
    assert {p.stem for p in registry.folder.glob("*.safetensors")} == left and registry.prune(["sam_refiner-2"]) == []


def test_commands(registry: Registry, tmp_path: Path) -> None:
    run, studies = CliRunner(), ["--studies", str(tmp_path)]

    def said(*words: str) -> str:
        return run.invoke(app, ["models", *words, *studies], catch_exceptions=False).output

    promoted = said("promote", "transunet-2")
    assert "warning: it was never compared" in promoted and "rollback` brings configured back" in promoted
    few = {"reasons": ["it is worse"], "groups": 3, "compared": [], "warnings": ["7 labels validate; 9 are needed"]}
    registry.note("transunet-1", gate={"passed": False, **few})
    told = said("promote", "transunet-1")
    assert "warning: the gate refused it: it is worse" in told
    assert "7 labels validate; 9 are needed for a promotion by itself" in told, "as the server's options said"
    listed = said("list")
    assert "refused" in listed and "served" in next(row for row in listed.splitlines() if "transunet-1" in row)
    shown = said("show")
    assert "by a person; before it: transunet-2, configured" in shown and "it is worse" in shown
    assert "it was not judged" in said("show", "transunet-2")
    said("rollback")
    said("rollback")
    stored = json.loads(PointerFile(registry.folder).path.read_text())
    assert (stored["name"], stored["before"], stored["by"]) == ("configured", [], "person")
    missing = run.invoke(app, ["models", "list", "--studies", str(tmp_path / "typo")])
    assert isinstance(missing.exception, InputError) and not (tmp_path / "typo").exists()


def test_export_writes_what_is_served(registry: Registry, tmp_path: Path) -> None:
    run, studies, out = CliRunner(), ["--studies", str(tmp_path)], tmp_path / "mine.safetensors"
    nothing = run.invoke(app, ["models", "export", str(out), *studies])
    assert isinstance(nothing.exception, InputError) and "--weights" in str(nothing.exception) and not out.exists()
    registry.promote("transunet-1")
    base = registry.version_of("transunet-1")
    registry.set_quick(quick(registry, base), base)
    assert "serves it" in run.invoke(app, ["models", "export", str(out), *studies], catch_exceptions=False).output
    alone, merged = (load_system(path).coarse.state_dict() for path in (registry.get("transunet-1").path, out))
    assert torch.equal(merged["head.bias"], alone["head.bias"] + 1)
    assert all(torch.equal(merged[k], alone[k]) for k in alone if k != "head.bias")
    assert isinstance(run.invoke(app, ["models", "export", str(out), *studies]).exception, InputError), "it exists"
    registry.quick_path("quick-1").write_bytes(b"half")
    damaged = run.invoke(app, ["models", "export", str(tmp_path / "other.safetensors"), *studies])
    assert isinstance(damaged.exception, InputError) and not (tmp_path / "other.safetensors").exists()
    registry.rollback()
    other = tmp_path / "other.safetensors"
    run.invoke(app, ["models", "export", str(other), *studies], catch_exceptions=False)
    assert all(torch.equal(v, alone[k]) for k, v in load_system(other).coarse.state_dict().items())
