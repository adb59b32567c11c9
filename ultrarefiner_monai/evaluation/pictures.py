"""Pictures of an evaluation: outlines on the best, median and worst images, and how Dice rises click by click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.evaluation.cases import Case
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.interaction.robot import LEVELS, Game
from ultrarefiner_monai.masks.metrics import bootstrap_interval

GREEN, ORANGE, BLUE = "#35d07f", "#ffb000", "#4aa3ff"


def write_overlays(cases: Sequence[Case], folder: Path, count: int = 4) -> list[Path]:
    """Contact sheets of the best, median and worst lesion images and of the worst lesion-free ones.

    Where a refiner answered also of the lesion images that it helped and harmed most, with the outline before it.
    """
    lesions = sorted((c for c in cases if c.item.has_lesion), key=lambda c: c.scores.dice)
    normals = sorted((c for c in cases if not c.item.has_lesion), key=lambda c: -c.scores.marked)
    gains = sorted(
        (c for c in lesions if c.coarse_mask is not None), key=lambda c: c.scores.dice - c.coarse.dice, reverse=True
    )
    middle = max(0, len(lesions) // 2 - count // 2)
    sheets = {
        "worst": lesions[:count],
        "median": lesions[middle : middle + count],
        "best": lesions[-count:],
        "normal": normals[:count],
        "helped": [c for c in gains[:count] if c.scores.dice > c.coarse.dice],
        "harmed": [c for c in gains[: -count - 1 : -1] if c.scores.dice < c.coarse.dice],
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [_sheet(part, folder / f"{name}.png") for name, part in sheets.items() if part]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _sheet(cases: Sequence[Case], path: Path) -> Path:
    figure = _figure(4 * len(cases), 4.2)
    for k, case in enumerate(cases):
        axes = figure.add_subplot(1, len(cases), k + 1)
        axes.imshow(read_image_file(case.item.image).frame(0), cmap="gray", vmin=0, vmax=1)
        outlines = [(read_mask(case.item.mask)[0], GREEN), (case.proposal.mask, ORANGE)]
        if case.coarse_mask is not None:
            outlines.insert(1, (case.coarse_mask, BLUE))
        # Without a single pixel there is no contour to draw; matplotlib would warn.
        for mask, colour in outlines:
            if mask.any():
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.5)
        axes.set_axis_off()
        axes.set_title(f"{case.item.id}\n{_caption(case)}", fontsize=10)
    before = ", blue: before the refiner" if any(c.coarse_mask is not None for c in cases) else ""
    figure.suptitle(f"green: label, orange: proposal{before}", fontsize=9)
    figure.savefig(path, dpi=80)
    return path


def _caption(case: Case) -> str:
    if not case.item.has_lesion:
        return f"{100 * case.scores.marked:.2f} % marked"
    before = f"{case.coarse.dice:.3f} to " if case.coarse_mask is not None else ""
    return f"Dice {before}{case.scores.dice:.3f}"


def write_curves(games: Mapping[str, Sequence[Game]], path: Path) -> Path:
    """Name -> the robot's games: mean Dice (with its 95 % interval) and share of images at each level, by clicks."""
    figure = _figure(10, 4)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for k, (name, played) in enumerate(games.items()):
        dice = np.array([game.dice for game in played])
        clicks = np.arange(dice.shape[1])
        low, high = np.array([bootstrap_interval(column) for column in dice.T]).T
        left.plot(clicks, dice.mean(axis=0), marker=".", color=f"C{k}", label=name)
        left.fill_between(clicks, low, high, color=f"C{k}", alpha=0.2, linewidth=0)
        for level, style in zip(LEVELS, (":", "--", "-")):
            reached = np.maximum.accumulate(dice >= level, axis=1).mean(axis=0)
            right.plot(clicks, 100 * reached, style, color=f"C{k}", label=f"{name}, Dice {level:.2f}")
    left.set(xlabel="clicks", ylabel="mean Dice", title=f"{len(played)} lesion images, 95 % interval of the mean")
    right.set(xlabel="clicks", ylabel="% of images", title="share that reached a Dice", ylim=(0, 101))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="lower right", fontsize=8)
    right.legend(loc="lower right", fontsize=7)
    figure.savefig(path, dpi=100)
    return path
