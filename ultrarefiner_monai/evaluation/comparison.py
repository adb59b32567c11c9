"""Two results on the same images, and several evaluations in one table: which is better, by how much, and how certain that is.

Everything is paired: image by image, resampled as pairs (``metrics.paired_bootstrap``). "before" is what is compared with.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.interaction.robot import LEVELS, REPORTED, Game, clicks_needed, reported
from ultrarefiner_monai.masks.metrics import FIGURES, NORMAL_LIMIT, Scores, paired_bootstrap

HD95_NOTE = (
    "pixels at the image's own size; hd95_px counts a missing mask as the image's diagonal, hd95_px_found leaves out the "
    "images where a mask is missing (in a comparison: either mask)"
)


def paired_figures(before: Sequence[Scores], after: Sequence[Scores], lesion: Sequence[bool]) -> dict[str, Any]:
    """Two results for the same images -> every figure before, after, and the difference with interval and p.

    lesion: whether the image has one. Lesion images carry the overlap and distance figures, the others what was marked.
    """
    with_lesion = [(b, a) for b, a, has in zip(before, after, lesion) if has]
    without = [(b, a) for b, a, has in zip(before, after, lesion) if not has]
    figures: dict[str, Any] = {"lesion_images": {"count": len(with_lesion)}, "normal_images": {"count": len(without)}}
    if with_lesion:
        figures["lesion_images"] |= {name: _paired(with_lesion, name) for name in FIGURES}
        figures["lesion_images"]["missed"] = _counts([(b.dice == 0, a.dice == 0) for b, a in with_lesion])
    found = [(b, a) for b, a in with_lesion if b.marked > 0 and a.marked > 0]
    if found:
        figures["lesion_images"]["hd95_px_found"] = _paired(found, "hd95_px")
    if without:
        figures["normal_images"] |= {
            "marked": _paired(without, "marked"),
            "false_alarms": _counts([(b.marked > NORMAL_LIMIT, a.marked > NORMAL_LIMIT) for b, a in without]),
        }
    return figures


def _paired(pairs: Sequence[tuple[Scores, Scores]], name: str) -> dict[str, Any]:
    values = np.array([[getattr(b, name), getattr(a, name)] for b, a in pairs], dtype=np.float64)
    return paired_bootstrap(values[:, 0], values[:, 1]).to_dict()


def _counts(pairs: Sequence[tuple[bool, bool]]) -> dict[str, int]:
    return {"before": sum(b for b, _ in pairs), "after": sum(a for _, a in pairs)}


def paired_games(before: Sequence[Game], after: Sequence[Game]) -> dict[str, Any]:
    """The robot's games on the same images: Dice after some clicks and NoC, before, after and the difference."""
    if not before:
        return {}
    first, second = (np.array([game.dice for game in games]) for games in (before, after))
    return {
        "dice_after": {
            str(k): paired_bootstrap(first[:, k], second[:, k]).to_dict() for k in reported(before[0].limit)
        },
        "noc": {
            f"{100 * level:.0f}": paired_bootstrap(clicks_needed(before, level), clicks_needed(after, level)).to_dict()
            for level in LEVELS
        },
    }


# --- several evaluations in one table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What ``evaluate`` left in a folder. dice: of each lesion image, by id, or SET/ID where it has several sets."""

    name: str
    summary: dict[str, Any]
    dice: dict[str, float]


def read_evaluation(given: str | Path) -> Compared:
    """``DIR`` or ``NAME=DIR``, a folder that ``evaluate`` wrote. Without a name it is called after its last two parts."""
    name, equals, rest = str(given).partition("=")
    folder = Path(rest) if equals and not Path(given).exists() else Path(given)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["lesion"] == "1"]
            dice = {"/".join(filter(None, (row.get("set"), row["id"]))): float(row["dice"]) for row in rows}
        if not {"lesion_images", "normal_images", "version"} <= set(summary):
            raise KeyError("lesion_images, normal_images or version")
    except OSError as error:
        raise InputError(f"expected a folder written by `ultrarefiner evaluate`, got {folder}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: summary.json or metrics.csv is not one of `ultrarefiner evaluate` ({error}); evaluate again"
        ) from error
    return Compared(name if folder != Path(given) else "/".join(folder.resolve().parts[-2:]), summary, dice)


def compare_runs(given: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One row for each evaluation, every row with the same columns; what a run does not hold is None.

    difference, low, high, p: Dice against the first run, paired; None where the lesion images are not the same ones.
    """
    runs = [read_evaluation(one) for one in given]
    if not runs:
        raise InputError("compare needs at least one folder written by `ultrarefiner evaluate`")
    return [_row(run, runs[0]) for run in runs]


def _row(one: Compared, first: Compared) -> dict[str, Any]:
    s = one.summary
    lesions, normals, robot = s["lesion_images"], s["normal_images"], s.get("robot", {})
    dice, hd95, found = (lesions.get(name) or {} for name in ("dice", "hd95_px", "hd95_px_found"))
    low, high = dice.get("ci95") or (None, None)
    row = {
        "run": one.name,
        "version": s["version"],
        "options": " ".join(f"{k}={v}" for k, v in (s.get("options") or {}).items()),
        "data": s.get("data"),
        "fold": s.get("fold"),
        "left_out": s.get("left_out"),
        "task": s.get("task"),
        "refiner": s.get("refiner"),
        "seen_in_training": s.get("seen_in_training"),
        "lesion_images": lesions["count"],
        "coarse_dice": lesions.get("coarse_dice_mean"),
        "dice": dice.get("mean"),
        "dice_low": low,
        "dice_high": high,
        "dice_median": dice.get("median"),
        **_against(one, first),
        "hd95_px": hd95.get("mean"),
        "hd95_px_found": found.get("mean"),
        "missed": lesions.get("missed"),
        "normal_images": normals["count"],
        "false_alarms": normals.get("false_alarms"),
    }
    row |= {f"dice_after_{k}": robot.get("dice_after", {}).get(str(k), {}).get("mean") for k in REPORTED}
    for level in (f"{100 * level:.0f}" for level in LEVELS):
        noc = robot.get("noc", {}).get(level, {})
        row |= {f"noc_{level}": noc.get("mean"), f"noc_{level}_failed": noc.get("failed")}
    return row


def _against(one: Compared, first: Compared) -> dict[str, float | None]:
    if one is first or not one.dice or one.dice.keys() != first.dice.keys():
        return dict.fromkeys(("difference", "difference_low", "difference_high", "p"))
    ids = sorted(one.dice)
    paired = paired_bootstrap(np.array([first.dice[i] for i in ids]), np.array([one.dice[i] for i in ids]))
    return {
        "difference": round(paired.difference, 4),
        "difference_low": round(paired.low, 4),
        "difference_high": round(paired.high, 4),
        "p": round(paired.p, 4),
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same columns -> a CSV file; None becomes an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
