from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.evaluation.comparison import compare_runs, paired_figures, paired_games
from ultrarefiner_monai.interaction.robot import Game
from ultrarefiner_monai.masks.metrics import Scores

GOOD = Scores(dice=0.9, iou=0.82, precision=0.9, recall=0.9, hd95_px=10.0, boundary_f=0.5, marked=0.1)
MISSED = Scores(0.0, 0.0, 0.0, 0.0, hd95_px=700.0, boundary_f=0.0, marked=0.0)
CLEAN = Scores(1.0, 1.0, 1.0, 1.0, 0.0, 1.0, marked=0.0)


def test_missing_masks_count_in_one_hd95_and_not_in_the_other() -> None:
    before = [GOOD, GOOD, MISSED, GOOD]
    after = [replace(GOOD, hd95_px=5.0), MISSED, GOOD, replace(GOOD, hd95_px=7.0)]
    figures = paired_figures(before, after, [True] * 4)["lesion_images"]
    assert figures["hd95_px"]["images"] == 4 and figures["hd95_px"]["before"] == 730 / 4
    found = figures["hd95_px_found"]
    assert (found["images"], found["before"], found["after"], found["relative"]) == (2, 10, 6, -0.4)
    assert figures["missed"] == {"before": 1, "after": 1}
    assert (figures["dice"]["higher"], figures["dice"]["lower"]) == (1, 1)


def test_images_without_a_lesion_count_as_false_alarms_only() -> None:
    marked = replace(MISSED, marked=0.05)
    figures = paired_figures([GOOD, marked, CLEAN], [GOOD, CLEAN, CLEAN], [True, False, False])
    assert figures["lesion_images"]["count"] == 1 and figures["lesion_images"]["dice"]["before"] == 0.9
    assert figures["normal_images"]["false_alarms"] == {"before": 1, "after": 0}
    assert figures["normal_images"]["marked"]["difference"] == -0.025
    none = paired_figures([CLEAN], [marked], [False])
    assert none["lesion_images"] == {"count": 0} and none["normal_images"]["false_alarms"]["after"] == 1


def test_games_are_compared_by_dice_and_by_clicks_needed() -> None:
    slow, fast = Game((0.5, 0.6, 0.7, 0.9), ()), Game((0.5, 0.9, 0.9, 0.9), ())
    never = Game((0.1, 0.1, 0.1, 0.1), ())
    figures = paired_games([slow, never], [fast, never])
    assert figures["dice_after"]["1"]["difference"] == pytest.approx(0.15)
    assert (figures["noc"]["85"]["before"], figures["noc"]["85"]["after"]) == (3, 2)


def run(folder: Path, dice: dict[str, float], fold: str = "0") -> Path:
    folder.mkdir()
    lesions = {"count": len(dice), "dice": {"mean": sum(dice.values()) / len(dice), "median": 0.5, "ci95": [0, 1]}}
    summary = {"version": folder.name, "fold": fold, "lesion_images": lesions, "normal_images": {"count": 0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = "".join(f"{name},{value},1\n" for name, value in dice.items())
    (folder / "metrics.csv").write_text("id,dice,lesion\n" + rows + "normal,1,0\n")
    return folder


def test_runs_are_paired_by_image_and_only_where_the_images_are_the_same(tmp_path: Path) -> None:
    first = run(tmp_path / "first", {"a": 0.5, "b": 0.7, "c": 0.9})
    better = run(tmp_path / "better", {"c": 0.95, "a": 0.6, "b": 0.75})
    other = run(tmp_path / "other", {"a": 0.5, "b": 0.7, "d": 0.9}, fold="1")
    rows = compare_runs([first, f"mine={better}", other])
    assert [row["run"] for row in rows] == [f"{tmp_path.name}/first", "mine", f"{tmp_path.name}/other"]
    assert rows[1]["difference"] == pytest.approx(0.2 / 3, abs=1e-4) and rows[1]["difference_low"] > 0
    assert rows[0]["difference"] is rows[2]["difference"] is None and rows[2]["dice"] == pytest.approx(0.7)


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    broken = run(tmp_path / "x", {"a": 0.5})
    (broken / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="evaluate again"):
        compare_runs([broken])
    with pytest.raises(InputError, match="expected a folder written by"):
        compare_runs([tmp_path / "nothing"])
