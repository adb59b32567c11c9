"""Several sets in one run: trained, left out, proposed for, joined and evaluated together, and what a checkpoint has seen."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ultrarefiner_monai.cli import command as cli
from ultrarefiner_monai.config import (
    CoarseConfig,
    DataConfig,
    OptimiserConfig,
    RefineConfig,
    SamConfig,
    SystemConfig,
    TrainConfig,
)
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_sets, split_sets
from ultrarefiner_monai.datasets.seen import digests_of, unpack
from ultrarefiner_monai.evaluation.figures import evaluate, tissue_figures
from ultrarefiner_monai.models.checkpoints import load_system, read_checkpoint, write_checkpoint
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.check_data import copies_in_report
from ultrarefiner_monai.training.data.loaders import training_samples
from ultrarefiner_monai.training.data.predictions import read_proposals, write_proposal
from ultrarefiner_monai.training.joining import join
from ultrarefiner_monai.training.proposals import nested_proposals
from ultrarefiner_monai.training.run import train
from ultrarefiner_monai.training.sequence import train_all

COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)
CONFIG = TrainConfig(
    system=SystemConfig(coarse=COARSE, flip_tta=False),
    data=DataConfig(select_share=0.3, balance=1.0),
    optimiser=OptimiserConfig(name="adamw", lr=1e-3),
    epochs=1,
    batch_size=4,
    tracking="none",
    overlays=0,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_clean_folder) -> list[Path]:
    """Three sets with the same ids, groups and folds, but other images."""
    root = tmp_path_factory.mktemp("sets")
    return [write_clean_folder(root / name, 12, seed) for seed, name in enumerate(("ann", "bob", "cid"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory, folders: list[Path]) -> Path:
    """Trained on ann and bob; cid is left out."""
    out = tmp_path_factory.mktemp("run") / "r"
    train(CONFIG, folders, 0, out, device="cpu", leave_out=["cid"])
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory, folders: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("alone") / "r"
    train(CONFIG, folders[2], 0, out, device="cpu")
    return out


def test_a_run_says_what_it_was_trained_on(run: Path, folders: list[Path]) -> None:
    meta = read_checkpoint(run / "model.safetensors").meta
    assert (meta["data"], meta["left_out"], meta["fold"]) == ("ann+bob+cid", "cid", "0")
    split = json.loads((run / "split.json").read_text())
    assert {name.split("/")[0] for name in split["train"] + split["select"]} == {"ann", "bob"}
    assert sum(name.startswith("cid/") for name in split["report"]) == 12
    items = {i.key: i for i in read_sets(folders)}
    assert unpack(meta) == digests_of(items[k] for k in split["train"] + split["select"])


def test_the_selection_figure_is_the_mean_over_the_sets(run: Path) -> None:
    [row] = csv.DictReader((run / "history.csv").open())
    own = [float(row[f"select[{name}]"]) for name in ("ann", "bob")]
    assert float(row["select"]) == pytest.approx(sum(own) / 2, abs=1e-5)
    assert {"coarse_dice[ann]", "coarse_dice[bob]"} <= set(row) and "select[cid]" not in row


def test_one_set_keeps_its_plain_names(alone: Path) -> None:
    assert not any("[" in name for name in next(csv.reader((alone / "history.csv").open())))
    split = json.loads((alone / "split.json").read_text())
    assert all("/" not in name for part in split.values() for name in part)
    meta = read_checkpoint(alone / "model.safetensors").meta
    assert meta["data"] == "cid" and "left_out" not in meta and "seen_before" not in meta


def test_what_was_seen_is_told_by_the_images(run: Path, alone: Path, folders: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "another_name")
    predictor = Predictor(load_system(run / "model.safetensors"))
    seen = evaluate(predictor, tmp_path / "another_name", 1, tmp_path / "a")
    assert seen["seen_in_training"] is True and seen["seen_images"] == seen["lesion_images"]["count"] + 1
    for k, (data, fold) in enumerate(((folders[0], 0), (folders[2], 1))):
        unseen = evaluate(predictor, data, fold, tmp_path / f"u{k}")
        assert unseen["seen_in_training"] is False and unseen["seen_images"] == 0


@pytest.mark.parametrize("told_by_images", [True, False])
def test_a_start_that_has_seen_what_is_reported_is_refused(
    run: Path, alone: Path, folders: list[Path], tmp_path: Path, told_by_images: bool
) -> None:
    files = {}
    for name, path in (("joint", run), ("cid", alone)):
        stored = read_checkpoint(path / "model.safetensors")
        meta = {k: v for k, v in stored.meta.items() if k != "digests" or told_by_images}
        files[name] = str(write_checkpoint(tmp_path / f"{name}.safetensors", stored.tensors, stored.config, meta))
    with pytest.raises(InputError, match="cid"):
        train(replace(CONFIG, init=files["cid"]), folders, 0, tmp_path / "r", leave_out=["cid"])
    with pytest.raises(InputError, match="has seen fold 1"):
        train(replace(CONFIG, init=files["joint"]), folders, 1, tmp_path / "r")
    refine = RefineConfig(sam_init=files["cid"])
    with pytest.raises(InputError, match="refine.sam_init.*cid"):
        train(replace(CONFIG, refine=refine), folders, 0, tmp_path / "r", leave_out=["cid"])
    with pytest.raises(InputError, match="bob"):
        join([files["joint"]], [], folders, 0, tmp_path / "j.safetensors", leave_out=["bob"])
    train(replace(CONFIG, init=files["joint"]), folders[2], 1, tmp_path / "s", device="cpu")
    meta = read_checkpoint(tmp_path / "s" / "model.safetensors").meta
    own = unpack(read_checkpoint(run / "model.safetensors").meta)
    assert own is not None
    if told_by_images:
        assert own < (unpack(meta) or set()) and "seen_before" not in meta
    else:
        assert meta["seen_before"] == [{"data": "ann+bob+cid", "fold": "0", "left_out": "cid"}]
        with pytest.raises(InputError, match="has seen fold 1"):
            train(replace(CONFIG, init=str(tmp_path / "s" / "model.safetensors")), folders[:2], 1, tmp_path / "t")


def test_joined_weights_have_seen_what_any_of_them_has(
    run: Path, alone: Path, folders: list[Path], tmp_path: Path
) -> None:
    parts = [run / "model.safetensors", alone / "model.safetensors"]
    join(parts, [], folders, 0, tmp_path / "j.safetensors", select_share=0.3)
    seen = [unpack(read_checkpoint(p).meta) or set() for p in (*parts, tmp_path / "j.safetensors")]
    assert seen[2] == seen[0] | seen[1] and len(seen[2]) == len(seen[0]) + len(seen[1])


def test_proposals_of_several_sets_lie_in_folders_of_their_names(folders: list[Path], tmp_path: Path) -> None:
    count = nested_proposals(CONFIG, folders, 0, tmp_path / "p", 2, "cpu", leave_out=["cid"])
    items = read_sets(folders)
    assert count == sum((tmp_path / "p" / f"{i.key}.png").is_file() for i in items if i.set != "cid") > 0
    assert not (tmp_path / "p" / "cid").exists()
    written = [i for i in items if (tmp_path / "p" / f"{i.key}.png").is_file()]
    assert all(read_proposals([tmp_path / "p"], i) for i in written)
    one = written[0]
    shutil.copy(tmp_path / "p" / f"{one.key}.png", tmp_path / f"{one.id}.png")  # as a single set's lie
    assert (read_proposals([tmp_path], one)[0] == read_proposals([tmp_path / "p"], one)[0]).all()


def test_a_prediction_is_not_taken_for_another_sets_image_of_that_name(folders: list[Path], tmp_path: Path) -> None:
    ann, bob = (read_sets(folder) for folder in folders[:2])
    for item in ann:  # as a single set's
        write_proposal(tmp_path / "p", item.id, np.ones((8, 8), np.float32))
    config = replace(CONFIG, refine=RefineConfig(proposals=str(tmp_path / "p")))
    assert {i.id for i in ann} == {i.id for i in bob}
    assert all(s.proposals for s in training_samples(config, ann))
    assert all(s.proposals for s in training_samples(config, [*ann, *ann]))  # shown twice
    with pytest.raises(InputError, match="holds no prediction"):
        training_samples(config, [*ann, *bob])


def test_crops_are_counted_for_each_set_even_where_one_has_no_room(run: Path, folders: list[Path]) -> None:
    predictor = Predictor(load_system(run / "model.safetensors"))
    figures = tissue_figures(predictor, [i for i in read_sets(folders[:2]) if i.set == "ann" or not i.has_lesion])
    assert set(figures["by_set"]) == {"ann", "bob"}
    assert figures["by_set"]["bob"] == {"count": 0, "false_alarms": 0}
    assert figures["by_set"]["ann"]["count"] == figures["count"]


def test_pictures_that_stand_in_two_sets_are_told(folders: list[Path], tmp_path: Path, caplog) -> None:
    copy = Path(shutil.copytree(folders[0], tmp_path / "copy"))
    assert copies_in_report(split_sets(read_sets(folders), 0, 0.3)) == 0 and not caplog.records
    away = split_sets(read_sets([folders[0], copy]), 0, 0.3, leave_out=["copy"])
    assert copies_in_report(away) > 0 and "are two data folders copies" in caplog.text.lower()


def test_a_set_without_lesions_is_predicted_too_and_one_that_leaves_none_is_refused(
    folders: list[Path], tmp_path: Path
) -> None:
    healthy = Path(shutil.copytree(folders[2], tmp_path / "healthy"))
    with (healthy / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "normal"]
    with (healthy / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    count = nested_proposals(CONFIG, [*folders[:2], healthy], 0, tmp_path / "p", device="cpu", by_set=True)
    assert count and list((tmp_path / "p" / "healthy").glob("*.png"))
    with pytest.raises(InputError, match="without part ann no image with a lesion is left"):
        nested_proposals(CONFIG, [folders[0], healthy], 0, tmp_path / "q", device="cpu", by_set=True, only="ann")


def test_proposals_by_set_come_from_networks_that_never_saw_it(folders: list[Path], tmp_path: Path) -> None:
    count = nested_proposals(CONFIG, folders[:2], 0, tmp_path / "p", device="cpu", by_set=True)
    for name in ("ann", "bob"):
        split = json.loads((tmp_path / "p" / f"without_{name}" / "split.json").read_text())
        other = {"ann": "bob", "bob": "ann"}[name]
        used = [i for i in read_sets(folders) if i.set == other]
        meta = read_checkpoint(tmp_path / "p" / f"without_{name}" / "best.safetensors").meta
        assert unpack(meta) <= digests_of(used) and len(split["report"]) == count / 2
        assert len(list((tmp_path / "p" / name).glob("*.png"))) == count / 2
    with pytest.raises(InputError, match="at least two data sets"):
        nested_proposals(CONFIG, folders[:2], 0, tmp_path / "q", device="cpu", by_set=True, leave_out=["ann"])


def test_one_part_is_made_alone_and_never_from_weights_that_have_seen_it(
    folders: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(CONFIG, folders[0], 0, tmp_path / "ann", device="cpu")
    config = replace(CONFIG, init=str(tmp_path / "ann" / "best.safetensors"))
    with caplog.at_level("INFO"):
        for name in ("ann", "bob"):
            nested_proposals(config, folders[:2], 0, tmp_path / "p", device="cpu", by_set=True, only=name)
    assert caplog.text.count("has seen images that are to be predicted; starts from imagenet") == 1
    seen = {
        n: unpack(read_checkpoint(tmp_path / "p" / f"without_{n}" / "best.safetensors").meta) for n in ("ann", "bob")
    }
    first = digests_of([i for i in read_sets(folders) if i.set == "ann"])
    assert not seen["ann"] & first and seen["bob"] <= first
    with pytest.raises(InputError, match="there is no part cid; there are ann, bob"):
        nested_proposals(config, folders[:2], 0, tmp_path / "p", device="cpu", by_set=True, only="cid")


def test_a_row_of_phases_over_several_sets(
    folders: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The refiner is given the proposals of every set that is learnt from, and starts from weights that held out the same."""
    sam = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,))
    second = replace(
        CONFIG,
        phase="phase2_refiner",
        system=SystemConfig(coarse=COARSE, sam=sam, flip_tta=False),
        refine=RefineConfig(max_clicks=1, proposals="nested", nested_parts=2),
    )
    with caplog.at_level("INFO"):
        model = train_all([("one", CONFIG), ("two", second)], folders, 0, tmp_path, device="cpu", leave_out=["cid"])
    split = json.loads((tmp_path / "two" / "split.json").read_text())
    count = len(split["train"])
    assert f"{count} of {count} training images have a real proposal" in caplog.text
    meta = read_checkpoint(model).meta
    assert (meta["data"], meta["left_out"]) == ("ann+bob+cid", "cid") and "seen_before" not in meta


def test_from_the_command_line(folders: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "system:\n  coarse: {arch: compact, image_size: 32, hidden_size: 16, num_layers: 1, num_heads: 2, mlp_dim: 32,"
        " decoder_channels: [16, 8, 8]}\ndata: {select_share: 0.3}\nepochs: 1\nbatch_size: 4\n"
    )
    data = [a for folder in folders for a in ("--data", str(folder))]
    out, model = tmp_path / "r", tmp_path / "r" / "model.safetensors"
    commands = (
        ["train", "phase1_coarse", "--config", str(config), *data, "--leave-out", "bob", "--out", str(out)],
        ["weights", "join", str(tmp_path / "j.safetensors"), "--coarse", str(model), *data, "--fold", "0"]
        + ["--leave-out", "bob", "--select-share", "0.3"],
        ["evaluate", "--model", str(model), *data, "--leave-out", "bob", "--out", str(tmp_path / "e")],
    )
    for command in commands:
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == 0, done.output
    assert "by set and device" in done.output
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["data"] == "ann+bob+cid" and summary["left_out"] == "bob" and summary["seen_images"] == 0
    counts = {k: v["lesion_images"]["count"] + v["normal_images"]["count"] for k, v in summary["by_set"].items()}
    assert counts == {"ann": 4, "bob": 12, "cid": 4}
