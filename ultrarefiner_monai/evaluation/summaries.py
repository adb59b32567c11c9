"""Summaries of an evaluation: of all images, of each set, of each scanner, and of two results on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ultrarefiner_monai.datasets.datalist import sets_of
from ultrarefiner_monai.evaluation.cases import Case
from ultrarefiner_monai.evaluation.comparison import paired_figures, paired_games
from ultrarefiner_monai.interaction.robot import Game, summarise_games
from ultrarefiner_monai.masks.metrics import FIGURES, NORMAL_LIMIT, bootstrap_interval

UNKNOWN_DEVICE = "not known"


def summarise(cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """Mean, median and 95 % bootstrap interval of each figure on lesion images; false alarms on the others.

    Where a refiner answered also ``refined_against_coarse``, where the robot played also ``robot``.
    """
    lesions = [c for c in cases if c.item.has_lesion]
    normals = [c for c in cases if not c.item.has_lesion]
    found = [c.scores.hd95_px for c in lesions if c.scores.marked > 0]
    summary: dict[str, Any] = {"lesion_images": {"count": len(lesions)}, "normal_images": {"count": len(normals)}}
    if lesions:
        summary["lesion_images"] |= {
            name: _spread([getattr(c.scores, name) for c in lesions], seed) for name in FIGURES
        }
        summary["lesion_images"] |= {"hd95_px_found": _spread(found, seed)} if found else {}
        summary["lesion_images"]["missed"] = sum(c.scores.dice == 0 for c in lesions)
        summary["lesion_images"]["coarse_dice_mean"] = round(float(np.mean([c.coarse.dice for c in lesions])), 4)
        summary["by_class"] = {
            category: round(float(np.mean([c.scores.dice for c in lesions if c.item.category == category])), 4)
            for category in sorted({c.item.category for c in lesions})
        }
    if normals:
        marked = np.array([c.scores.marked for c in normals])
        summary["normal_images"] |= {
            "false_alarms": int((marked > NORMAL_LIMIT).sum()),
            "false_alarm_rate": round(float((marked > NORMAL_LIMIT).mean()), 4),
            "mean_marked": round(float(marked.mean()), 5),
        }
    if any(c.coarse_mask is not None for c in cases):
        lesion = [c.item.has_lesion for c in cases]
        summary["refined_against_coarse"] = paired_figures([c.coarse for c in cases], [c.scores for c in cases], lesion)
    if any(c.game is not None for c in cases):
        summary["robot"] = summarise_games(games_of(cases))
    return summary


def by_origin(cases: Sequence[Case]) -> dict[str, Any]:
    """``by_set``: each set's figures as for the whole, where there are several. ``by_device``: a short line for each scanner
    of a set whose index names some; called SET/DEVICE where there are several sets."""
    sets = sets_of([c.item for c in cases])
    found: dict[str, Any] = {}
    if len(sets) > 1:
        found["by_set"] = {name: summarise([c for c in cases if c.item.set == name]) for name in sets}
    devices: dict[str, dict[str, Any]] = {}
    for name in sets:
        own = [c for c in cases if c.item.set == name]
        for device in sorted({c.item.device for c in own}) if any(c.item.device for c in own) else ():
            label = device or UNKNOWN_DEVICE
            label = f"{name}/{label}" if len(sets) > 1 else label
            devices[label] = _short([c for c in own if c.item.device == device])
    return {**found, **({"by_device": devices} if devices else {})}


def _short(cases: Sequence[Case]) -> dict[str, Any]:
    lesions = [c for c in cases if c.item.has_lesion]
    normals = [c for c in cases if not c.item.has_lesion]
    line: dict[str, Any] = {"lesion_images": len(lesions), "normal_images": len(normals)}
    if lesions:
        means = {
            "dice": [c.scores.dice for c in lesions],
            "coarse_dice": [c.coarse.dice for c in lesions],
            "boundary_f": [c.scores.boundary_f for c in lesions],
            "coarse_boundary_f": [c.coarse.boundary_f for c in lesions],
        }
        line |= {name: round(float(np.mean(values)), 4) for name, values in means.items()}
        line["missed"] = sum(c.scores.dice == 0 for c in lesions)
    if normals:
        line["false_alarms"] = sum(c.scores.marked > NORMAL_LIMIT for c in normals)
    return line


def _spread(values: Sequence[float], seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(np.array(values), seed)
    return {
        "mean": round(float(np.mean(values)), 4),
        "median": round(float(np.median(values)), 4),
        "ci95": [round(low, 4), round(high, 4)],
    }


def games_of(cases: Sequence[Case]) -> list[Game]:
    """The robot's results, for the images that it corrected."""
    return [c.game for c in cases if c.game is not None]


def paired(before: Sequence[Case], after: Sequence[Case]) -> dict[str, Any]:
    """Two results on the same images: every figure before, after, and the difference; with games also those."""
    lesion = [c.item.has_lesion for c in before]
    figures = paired_figures([c.scores for c in before], [c.scores for c in after], lesion)
    games = paired_games(games_of(before), games_of(after))
    return {**figures, **({"robot": games} if games else {})}
