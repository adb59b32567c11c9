from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ultrarefiner_monai.cli import command as cli
from ultrarefiner_monai.cli import options as commands
from ultrarefiner_monai.config import CoarseConfig, SamConfig, SystemConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.evaluation.comparison import compare_runs
from ultrarefiner_monai.evaluation.figures import evaluate
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.interaction.robot import as_clicks
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT, score
from ultrarefiner_monai.models.build import build_coarse
from ultrarefiner_monai.models.checkpoints import load_system, save_system
from ultrarefiner_monai.models.sam.network import build_sam
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.data.tissue import tissue_pairs

SAM = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=1, num_heads=2, global_attn_indexes=(0,))
COARSE = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    coarse = build_coarse(COARSE)
    return save_system(tmp_path_factory.mktemp("w") / "tiny.safetensors", SystemConfig(coarse=COARSE), coarse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 12)


def test_the_figures_are_those_of_the_served_masks(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(load_system(checkpoint))
    summary = evaluate(predictor, folder, 0, tmp_path / "out")
    rows = {r["id"]: r for r in csv.DictReader((tmp_path / "out" / "metrics.csv").open())}
    items = [i for i in read_index(folder) if i.fold == "0"]
    assert sorted(rows) == [i.id for i in items]
    dice = []
    for item in items:
        mask = predictor.propose(read_image_file(item.image).frame(0)).mask
        expected = score(mask, read_mask(item.mask)[0])
        assert float(rows[item.id]["dice"]) == pytest.approx(expected.dice, abs=1e-4)
        dice += [expected.dice] if item.has_lesion else []
    assert summary["lesion_images"]["dice"]["mean"] == pytest.approx(np.mean(dice), abs=1e-3)
    low, high = summary["lesion_images"]["dice"]["ci95"]
    assert low <= summary["lesion_images"]["dice"]["mean"] <= high
    assert summary["normal_images"]["count"] == sum(not i.has_lesion for i in items)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert "Not a medical device" in summary["notice"]
    assert {p.name for p in (tmp_path / "out" / "overlays").iterdir()} == {
        "worst.png",
        "median.png",
        "best.png",
        "normal.png",
    }


@pytest.fixture(scope="module")
def refined(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    config = SystemConfig(coarse=COARSE, sam=SAM)
    return save_system(tmp_path_factory.mktemp("r") / "r.safetensors", config, build_coarse(COARSE), build_sam(SAM))


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def played(checkpoint: Path, refined: Path, folder: Path, tmp_path_factory) -> Path:
    """What an evaluation of the refined system against the coarse one leaves, with three clicks on each image."""
    out = tmp_path_factory.mktemp("played")
    one, other = (Predictor(load_system(path)) for path in (refined, checkpoint))
    evaluate(one, folder, 0, out, robot_clicks=3, against=other)
    return out


def test_the_robot_plays_the_path_that_serves(played: Path, refined: Path, folder: Path) -> None:
    games, metrics = table(played / "robot.csv"), table(played / "metrics.csv")
    items = {i.id: i for i in read_index(folder) if i.fold == "0"}
    assert set(games) == {i.id for i in items.values() if i.has_lesion} < set(metrics)
    predictor = Predictor(load_system(refined))  # without the cache that the games were played with
    for name, game in games.items():
        assert game["dice_0"] == metrics[name]["dice"]
        made = [(int(x), int(y), sign == "+") for x, y, sign in (c.split() for c in game["clicks"].split("; "))]
        image, label = read_image_file(items[name].image).frame(0), read_mask(items[name].mask)[0]
        assert all(bool(label[y, x]) == positive for x, y, positive in made)
        for k in (1, len(made)):
            dice = score(predictor.interact(image, as_clicks(made[:k])).mask, label).dice
            assert float(game[f"dice_{k}"]) == pytest.approx(dice, abs=1e-4)
    summary = json.loads((played / "summary.json").read_text())
    assert list(summary["robot"]["dice_after"]) == ["0", "1", "3"] and summary["robot"]["images"] == len(games)
    mean = np.mean([float(game["dice_3"]) for game in games.values()])
    assert summary["robot"]["dice_after"]["3"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert (played / "robot.png").stat().st_size > 5000


def test_coarse_and_refined_and_another_checkpoint_are_compared_image_by_image(played: Path) -> None:
    summary = json.loads((played / "summary.json").read_text())
    rows, others = table(played / "metrics.csv"), table(played / "against.csv")
    lesion = [name for name, row in rows.items() if row["lesion"] == "1"]
    for column, pair in (
        ("coarse_dice", summary["refined_against_coarse"]["lesion_images"]["dice"]),
        ("dice", summary["this_against_that"]["lesion_images"]["dice"]),
    ):
        source = rows if column == "coarse_dice" else others
        before = [float(source[name][column]) for name in lesion]
        after = [float(rows[name]["dice"]) for name in lesion]
        assert pair["images"] == len(lesion)
        assert (pair["before"], pair["after"]) == pytest.approx((np.mean(before), np.mean(after)), abs=1e-3)
        assert pair["difference"] == pytest.approx(np.mean(after) - np.mean(before), abs=1e-3)
    marked = [row["coarse_marked"] for row in rows.values() if row["lesion"] == "0"]
    alarms = summary["refined_against_coarse"]["normal_images"]["false_alarms"]
    assert alarms["before"] == sum(float(m) > 0.002 for m in marked)
    assert summary["against"]["refiner"] == "untrained" and "refined_against_coarse" not in summary["against"]
    assert summary["this_against_that"]["robot"]["dice_after"]["3"]["after"] == pytest.approx(
        summary["robot"]["dice_after"]["3"]["mean"], abs=1e-3
    )


def test_coarse_only_is_played_without_the_refiner(refined: Path, folder: Path, tmp_path: Path) -> None:
    system = load_system(refined)
    assert system.refiner is not None
    system.refiner.forward = system.refiner.interactive = system.refiner.embed = None  # type: ignore
    (tmp_path / "against.csv").write_text("from an earlier evaluation")
    summary = evaluate(Predictor(system), folder, 0, tmp_path, coarse_only=True, robot_clicks=1)
    assert not (tmp_path / "against.csv").exists() and (tmp_path / "robot.csv").exists()
    assert summary["refiner"] == "off" and summary["robot"]["images"] > 0
    assert "refined_against_coarse" not in summary


def test_an_empty_fold_is_refused(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image in fold 9"):
        evaluate(Predictor(load_system(checkpoint)), folder, 9, tmp_path)


def test_the_command_evaluates(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app,
        ["evaluate", "--data", str(folder), "--fold", "1", "--model", str(checkpoint), "--out", str(tmp_path / "o")],
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "o" / "summary.json").is_file() and "boundary_f" in result.output


def test_settings_can_be_changed_and_runs_compared(refined: Path, folder: Path, tmp_path: Path) -> None:
    def run(out: str, *options: str) -> str:
        arguments = ["evaluate", "--data", str(folder), "--model", str(refined), "--out", str(tmp_path / out), *options]
        result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    output = run("a", "--robot", "--clicks", "2", "--set", "post.min_area=0", "--against", str(refined))
    assert "NoC@85 (IoU)" in output and "refined against coarse" in output and "against.csv" in output
    assert "4 of 4 images" in output and " 0 s left" in output
    run("b", "--set", "safety.enabled=false", "--set", "post.threshold=0.3")
    runs = [f"first={tmp_path / 'a'}", str(tmp_path / "b")]
    result = CliRunner().invoke(cli.app, ["compare", *runs, "--out", str(tmp_path / "t" / "c.csv")])
    assert result.exit_code == 0, result.output
    with (tmp_path / "t" / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows][0] == "first" and rows[1]["run"].endswith("/b")
    assert rows[1]["options"] == "safety.enabled=False post.threshold=0.3" and rows[1]["dice_after_1"] == ""
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab"]
    dice = [s["lesion_images"]["dice"]["mean"] for s in summaries]
    assert [float(row["dice"]) for row in rows] == dice
    assert float(rows[1]["difference"]) == pytest.approx(dice[1] - dice[0], abs=2e-4) and rows[0]["difference"] == ""
    assert summaries[0]["against"]["options"] == {} and summaries[0]["options"] == {"post.min_area": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--data", "nowhere", "--out", "x", "--model", "nothing.safetensors"], "no checkpoint at"),
        (["compare", "nowhere"], "written by `ultrarefiner evaluate`"),
        (["train", "phase1_coarse", "--config", "none.yaml", "--data", "d", "--out", "o"], "no configuration at"),
        (["prepare", "FOO", "--raw", "r", "--out", "o"], "unknown dataset"),
        (["weights", "fetch", "nonsense"], "unknown weights"),
        (["weights", "add", "nothing.pth"], "no such file"),
        (["forget", "../x", "--studies", "s"], "expected an image id"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["ultrarefiner", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    error = capsys.readouterr().err
    assert caught.value.code == 1 and words in error and "Traceback" not in error and error.count("\n") == 1


def test_help_and_version_carry_the_notice() -> None:
    for arguments in (["--help"], ["--version"]):
        assert "Not a medical device" in " ".join(CliRunner().invoke(cli.app, arguments).output.split())


def test_overrides_read_numbers_as_numbers() -> None:
    assert commands.overrides(["optimiser.lr=1e-3", "ema=null", "init=none", "epochs=4"]) == {
        "optimiser.lr": 1e-3, "ema": None, "init": "none", "epochs": 4,
    }  # fmt: skip


def test_a_run_without_out_is_named_after_its_config(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "system:\n  coarse: {arch: compact, image_size: 32, hidden_size: 16, num_layers: 1, num_heads: 2, mlp_dim: 32,"
        " decoder_channels: [16, 8, 8]}\ndata: {select_share: 0.3}\nepochs: 1\nbatch_size: 4\n"
    )
    result = CliRunner().invoke(
        cli.app, ["train", "phase1_coarse", "--config", str(config), "--data", str(folder), "--fold", "1"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "tiny_fold1" / "model.safetensors").is_file()


# --- several sets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_clean_folder) -> list[Path]:
    """Two sets with the same ids; the index of the second names two scanners, and of some images none."""
    root = tmp_path_factory.mktemp("sets")
    folders = [write_clean_folder(root / name, 18, seed) for seed, name in enumerate(("plain", "scanned"))]
    index = folders[1] / "index.csv"
    rows = list(csv.DictReader(index.open()))
    for k, row in enumerate(rows):
        row["device"] = ("A", "B", "")[k // 6]
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folders


def test_sets_and_scanners_are_reported_in_sum_and_one_by_one(refined: Path, sets: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(load_system(refined))
    summary = evaluate(predictor, sets, 0, tmp_path / "both", robot_clicks=1)
    assert summary["data"] == "plain+scanned" and list(summary["by_set"]) == ["plain", "scanned"]
    for data in sets:
        alone = evaluate(predictor, data, 0, tmp_path / data.name, robot_clicks=1)
        blocks = summary["by_set"][data.name]
        assert {"lesion_images", "normal_images", "refined_against_coarse", "robot"} <= set(blocks)
        assert blocks == {k: v for k, v in alone.items() if k in blocks}
        assert "by_set" not in alone and ("by_device" in alone) == (data.name == "scanned")
    devices = summary["by_device"]
    assert list(devices) == ["scanned/not known", "scanned/A", "scanned/B"]
    own = summary["by_set"]["scanned"]["lesion_images"]
    counts = [line["lesion_images"] for line in devices.values()]
    assert sum(counts) == own["count"] and sum(line["missed"] for line in devices.values()) == own["missed"]
    dice = [line["dice"] for line in devices.values()]
    assert np.average(dice, weights=counts) == pytest.approx(own["dice"]["mean"], abs=1e-3)
    rows = list(csv.DictReader((tmp_path / "both" / "metrics.csv").open()))
    assert {(r["set"], r["id"]) for r in rows} == {
        (i.set, i.id) for data in sets for i in read_index(data) if i.fold == "0"
    }
    assert {r["device"] for r in rows if r["set"] == "plain"} == {""}
    assert "set" in next(csv.reader((tmp_path / "both" / "robot.csv").open()))
    header = next(csv.reader((tmp_path / "plain" / "metrics.csv").open()))
    assert "set" not in header and "device" not in header
    same, other = (
        compare_runs([tmp_path / "both", tmp_path / "both"])[1],
        compare_runs([tmp_path / "plain", tmp_path / "both"])[1],
    )
    assert same["difference"] == 0 and other["difference"] is None


def test_all_of_a_left_out_set_counts(checkpoint: Path, sets: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(load_system(checkpoint))
    summary = evaluate(predictor, sets, 0, tmp_path, leave_out=["plain"])
    counts = {k: v["lesion_images"]["count"] + v["normal_images"]["count"] for k, v in summary["by_set"].items()}
    assert counts == {"plain": 18, "scanned": 6} and summary["left_out"] == "plain"
    with pytest.raises(InputError, match="no such set"):
        evaluate(predictor, sets, 0, tmp_path, leave_out=["elsewhere"])


def test_lesion_free_crops_are_reported_apart(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """Always the same crops, each answered by the predictor that serves; the other figures do not know them."""
    predictor = Predictor(load_system(checkpoint))
    plain = evaluate(predictor, folder, 0, tmp_path / "a")
    summary = evaluate(predictor, folder, 0, tmp_path / "b", tissue=True, against=predictor)
    crops = list(tissue_pairs([i for i in read_index(folder) if i.fold == "0"], 0))
    masks = [predictor.propose(crop).mask for _, crop, _ in crops]
    alarms = sum(float((mask > 0).mean()) > NORMAL_LIMIT for mask in masks)
    figures = summary["tissue_images"]
    assert len(crops) > 0 and figures["count"] == len(crops) and figures["false_alarms"] == alarms
    assert figures["false_alarm_rate"] == pytest.approx(alarms / len(crops), abs=1e-4)
    assert summary["against"]["tissue_images"] == figures
    assert "tissue_images" not in plain and plain["normal_images"] == summary["normal_images"]
    assert plain["lesion_images"] == summary["lesion_images"]
