"""Configuration: every shipped file loads, round trips, and mistakes are refused in the words of the option."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest
import yaml

from ultrarefiner_monai.config import (
    CoarseConfig,
    ConfigError,
    LoraConfig,
    PromptConfig,
    SamConfig,
    SystemConfig,
    TrainConfig,
    from_dict,
    load_yaml,
    read_yaml,
    to_dict,
)

# Recipes are of another kind: test_recipe.py.
CONFIGS = sorted(
    path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if not path.name.startswith("recipe_")
)


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads_and_round_trips(path: Path) -> None:
    config = load_yaml(TrainConfig, path)
    assert from_dict(TrainConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_optional_groups_round_trip() -> None:
    config = SystemConfig(sam=SamConfig(arch="compact", image_size=256))
    assert from_dict(SystemConfig, to_dict(config)) == config
    assert from_dict(SystemConfig, to_dict(SystemConfig())).sam is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epohcs": 3}, "unknown option epohcs"),
        ({"system": {"coarse": {"arhc": "compact"}}}, "unknown option system.coarse.arhc"),
        ({"epochs": "many"}, "epochs: expected int"),
        ({"epochs": True}, "epochs: expected int"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"system": {"coarse": {"arch": "resnet"}}}, "system.coarse.arch: expected one of"),
        ({"system": {"coarse": {"image_size": 100}}}, "coarse.image_size must be a multiple of 16"),
        ({"system": {"safety": {"area_ratio": [3, 1]}}}, "safety.area_ratio"),
        ({"system": {"gate": {"g_min": 0.9, "g_max": 0.1}}}, "gate"),
        ({"system": []}, "system: expected a mapping of options, got list"),
        ([], "TrainConfig: expected a mapping of options, got list"),
        ({"zeal": 1, "epohcs": 3, "epochs": "many"}, "unknown option epohcs, zeal; known here: amp, batch_size,"),
        ({"system": {"sam": {"arhc": 1}}}, "unknown option system.sam.arhc; known here: arch,"),
        ({"epochs": 3.0}, "epochs: expected int, got 3.0"),
        ({"epochs": None}, "epochs: expected int, got None"),
        ({"init": 3}, "init: expected str, got 3"),
        ({"system": {"flip_tta": 1}}, "system.flip_tta: expected bool, got 1"),
        ({"optimiser": {"lr": "fast"}}, "optimiser.lr: expected float, got 'fast'"),
        ({"system": {"coarse": {"stem": "x"}}}, "system.coarse.stem: expected one of 'lite0', 'lite2', got 'x'"),
        ({"system": {"tta_scales": 0.5}}, "system.tta_scales: expected a list, got 0.5"),
        ({"system": {"tta_scales": [0.5, "x"]}}, r"system.tta_scales\[1\]: expected float, got 'x'"),
        ({"system": {"safety": {"area_ratio": [1]}}}, r"system.safety.area_ratio: expected 2 values, got \[1\]"),
        ({"system": {"safety": {"area_ratio": [1, 2, 3]}}}, "system.safety.area_ratio: expected 2 values"),
        ({"refine": {"corruption": {"kinds": 1}}}, "refine.corruption.kinds: expected a mapping, got 1"),
        ({"init": "imagenet"}, "init: imagenet is for"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr must be positive"),
        ({"data": None}, "data: expected a mapping of options, got nothing; leave the line out"),
        ({"init": date(2020, 1, 1)}, r"init: expected str, got datetime.date\(2020, 1, 1\)"),
        ({"init": b"none"}, "init: expected str, got b'none'"),
        ({"init": Path("a.npz")}, "init: expected str, got PosixPath"),
        ({"loss": {"teachers": {"a"}}}, r"loss.teachers: expected a list, got \{'a'\}"),
        ({"system": {"safety": {"area_ratio": {1, 2}}}}, r"system.safety.area_ratio: expected a list, got \{1, 2\}"),
        ({"data": {"augment": "\udcfc"}}, r"data.augment: expected one of .*, got '\\udcfc'"),
        ({"epochs": "\udcfc"}, r"epochs: expected int, got '\\udcfc'"),
        ({"\udcfc": 1}, r"unknown option \\udcfc; known here"),
        ({1: 2}, "unknown option 1; known here"),
        ({"optimiser": {"lr": date(2020, 1, 1)}}, "optimiser.lr: expected float, got datetime.date"),
    ],
)
def test_mistakes_are_named(values: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(TrainConfig, values)


def test_a_path_that_is_not_utf8_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 4\n")
    name = os.fsdecode(b"M\xfcller.safetensors")  # as Python gives the command line's
    options = {"init": name, "loss.teachers": [name], "refine.corruption.kinds": {name: 1}}
    values = {"init": name, "loss": {"teachers": (name,)}}
    config = from_dict(TrainConfig, values)
    assert (config.init, config.loss.teachers) == (name, (name,)) and from_dict(TrainConfig, to_dict(config)) == config
    assert load_yaml(TrainConfig, tmp_path / "c.yaml", {"init": name}).init == name
    with pytest.raises(ConfigError, match=r"corruption.*M\\udcfcller"):  # said by the option's own check
        load_yaml(TrainConfig, tmp_path / "c.yaml", options)


def test_overrides_win_and_reach_deep(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 4\nsystem:\n  prompts:\n    sharpen: true\n")
    config = load_yaml(TrainConfig, path, {"epochs": 7, "system.prompts.box": "minmax", "optimiser.lr": 1})
    assert (config.epochs, config.optimiser.lr) == (7, 1.0)
    assert config.system.prompts == PromptConfig(sharpen=True, box="minmax")
    with pytest.raises(ConfigError, match="epochs is a value"):
        load_yaml(TrainConfig, path, {"epochs.more": 1})
    made = load_yaml(TrainConfig, path, {"refine.lora.rank": 8, "refine.cache": "off"})
    assert made.refine.lora == LoraConfig(rank=8), "a group that is null begins with its defaults"


def test_a_base_is_filled_up_mapping_by_mapping(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "root.yaml").write_text("epochs: 4\nseed: 3\nloss: {teachers: [a, b], ce_weight: 0.3}\n")
    (tmp_path / "shared" / "middle.yaml").write_text("base: root.yaml\nsystem: {prompts: {sharpen: true}}\n")
    path = tmp_path / "c.yaml"
    path.write_text("base: shared/middle.yaml\nepochs: 9\nloss: {teachers: [c]}\nsystem: {prompts: {box: minmax}}\n")
    config = load_yaml(TrainConfig, path, {"seed": 5})
    assert (config.epochs, config.seed) == (9, 5)
    assert config.system.prompts == PromptConfig(sharpen=True, box="minmax")
    assert (config.loss.teachers, config.loss.ce_weight) == (("c",), 0.3)
    assert "base" not in read_yaml(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: none.yaml", "there is no file .*none.yaml; its name is read from the folder of c.yaml"),
        ("base: c.yaml", "in a circle: .*c.yaml, .*c.yaml"),
        ("base: other.yaml", "in a circle: .*c.yaml, .*other.yaml, .*c.yaml"),
        ("base: [other.yaml]", "base: expected the name of a YAML file"),
        ("base:", "base: expected the name of a YAML file"),
        ("base: broken.yaml", "^[^ ]*broken.yaml is not valid YAML"),
        ("base: day.yaml", "^[^ ]*day.yaml is not valid YAML: day is out of range"),
        ("base: latin.yaml", "^[^ ]*latin.yaml is not UTF-8 text"),
        ("base: list.yaml", "^[^ ]*list.yaml: expected a mapping of options, got list"),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(f"{text}\nepochs: 2\n")
    (tmp_path / "other.yaml").write_text("base: c.yaml\n")
    (tmp_path / "broken.yaml").write_text("epochs: [1")
    (tmp_path / "day.yaml").write_text("init: 2020-02-31")
    (tmp_path / "latin.yaml").write_bytes(b"init: M\xfcller.npz")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match=words):
        load_yaml(TrainConfig, tmp_path / "c.yaml")


def test_broken_yaml_is_refused_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_yaml(TrainConfig, path)


@pytest.mark.parametrize(
    ("base", "own", "words"),
    [
        ("epohcs: 3", "", r"^b.yaml: unknown option epohcs;"),
        ("epochs: 3", "epohcs: 3", "^c.yaml: unknown option epohcs;"),
        ("epohcs: 3", "zeal: 1", "^c.yaml over b.yaml: unknown option epohcs, zeal;"),
        ("data: {augment: x}", "data: {workers: 1}", "^b.yaml: data.augment: expected one of"),
        ("data: {augment: x}", "data: {augment: y}", "^c.yaml: data.augment: .*, got 'y'"),
        ("loss: {teachers: [a, 1]}", "loss: {ce_weight: 0.1}", r"^b.yaml: loss.teachers\[1\]: expected str"),
        (
            "data: {select_share: 0.2}",
            "data:",
            "^c.yaml: data: expected a mapping of options, got nothing; leave the line",
        ),
        ("optimiser: {lr: -1}", "epochs: 2", "^b.yaml: optimiser.lr must be positive"),
        ("optimiser: {lr: -1}", "optimiser: {clip_norm: 1}", "^c.yaml over b.yaml: optimiser.lr must be positive"),
        ("epochs: 0", "seed: 1", "^c.yaml over b.yaml: epochs must be at least 1"),
    ],
)
def test_a_mistake_is_said_with_the_file_that_it_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, own: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(base)
    Path("c.yaml").write_text(f"base: b.yaml\n{own}\n")
    with pytest.raises(ConfigError, match=words):
        load_yaml(TrainConfig, "c.yaml")


def test_what_the_command_line_says_is_no_mistake_of_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text("epochs: 3\ndata: {workers: 1}\n")
    Path("c.yaml").write_text("base: b.yaml\n")
    with pytest.raises(ConfigError, match="^c.yaml: epochs: expected int, got 'x'"):
        load_yaml(TrainConfig, "c.yaml", {"epochs": "x"})
    with pytest.raises(ConfigError, match="^c.yaml: data.workers: expected int, got 'x'"):
        load_yaml(TrainConfig, "c.yaml", {"data.workers": "x"})


def test_the_networks_are_said_in_words() -> None:
    shipped = SystemConfig(CoarseConfig("compact"), SamConfig("compact", 512, "lite2"))
    assert shipped.networks() == (
        "compact CNN and ViT of TransUNet's design, 224 px; SAM's prompt encoder and mask decoder over a small CNN, 512 px"
    )
    assert SystemConfig().networks() == "TransUNet R50-ViT-B_16, 224 px; no refiner"
    assert SystemConfig(sam=SamConfig()).networks().endswith("; SAM ViT-B, 1024 px")
    assert SystemConfig(sam=SamConfig("sam3", 1008)).networks().endswith("over SAM 3's vision tower, 1008 px")
