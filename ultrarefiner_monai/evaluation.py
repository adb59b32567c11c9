"""Figures of a checkpoint on one fold, at the images' own size, with the very predictor that serves.

Lesion images and lesion-free ones are reported apart: Dice says nothing about the latter, what was marked does.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.data.datalist import Item, read_index
from ultrarefiner_monai.data.readers import read_mask, read_study
from ultrarefiner_monai.files import replacing
from ultrarefiner_monai.inference import Predictor, Proposal
from ultrarefiner_monai.metrics import NORMAL_LIMIT, Scores, bootstrap_interval, score
from ultrarefiner_monai.types import NOTICE, InputError

log = logging.getLogger(__name__)
FIGURES = ("dice", "iou", "precision", "recall", "hd95_px", "boundary_f")


@dataclass
class Case:
    """One evaluated image."""

    item: Item
    scores: Scores
    coarse: Scores
    proposal: Proposal

    def row(self) -> dict[str, Any]:
        p = self.proposal
        own = {k: _short(v) for k, v in self.scores.to_dict().items()}
        return {
            "id": self.item.id,
            "class": self.item.category,
            "lesion": int(self.item.has_lesion),
            **own,
            "coarse_dice": _short(self.coarse.dice),
            "iou_pred": "" if p.iou_pred is None else _short(p.iou_pred),
            "uncertainty": _short(p.uncertainty),
            "safety_rule": p.safety_rule or "",
            "seconds": _short(p.timings.get("total", 0.0)),
        }


def _short(value: float) -> str:
    return f"{value:.5g}"


def evaluate(
    predictor: Predictor,
    data_dir: str | Path,
    fold: str | int,
    out: str | Path,
    coarse_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate one fold; write metrics.csv, summary.json and overlays/ into ``out``; return the summary.

    coarse_only: the proposal of the coarse network (task ``transunet``), else the automatic one (``ultrarefiner``).
    """
    items = [i for i in read_index(data_dir) if i.fold == str(fold)]
    if not items:
        raise InputError(f"{data_dir} has no image in fold {fold}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cases = []
    for k, item in enumerate(items):
        cases.append(_evaluate_one(predictor, item, coarse_only))
        if progress is not None:
            progress(k + 1, len(items))
    summary = {
        "notice": NOTICE,
        "data": Path(data_dir).name,
        "fold": str(fold),
        "task": "transunet" if coarse_only else "ultrarefiner",
        "version": predictor.system.version,
        "refiner": cases[0].proposal.refiner,
        "seen_in_training": seen_in_training(predictor.system.meta, data_dir, fold),
        **summarise(cases),
    }
    _write_csv(out / "metrics.csv", [c.row() for c in cases])
    with replacing(out / "summary.json", "w") as file:
        json.dump(summary, file, indent=1)
    write_overlays(cases, out / "overlays")
    return summary


def seen_in_training(meta: dict[str, Any], data_dir: str | Path, fold: str | int) -> bool | None:
    """Whether the checkpoint was trained on this fold, so that its figures promise too much; None where it cannot be told.

    meta: the checkpoint's, with the name of the data folder and the fold that training held out.
    """
    if meta.get("data") != Path(data_dir).name or "fold" not in meta:
        return None
    seen = str(fold) not in (meta["fold"], "test")
    if seen:
        log.warning(
            "the checkpoint was trained on fold %s (held out was %s): these figures mislead", fold, meta["fold"]
        )
    return seen


def _evaluate_one(predictor: Predictor, item: Item, coarse_only: bool) -> Case:
    image = read_study(item.image).frame(0)
    label = read_mask(item.mask)[0]
    if label.shape != image.shape:
        raise InputError(f"{item.mask} is {label.shape[::-1]} pixels, its image {image.shape[::-1]}")
    proposal = predictor.coarse(image) if coarse_only else predictor.propose(image)
    scores = score(proposal.mask, label)
    # Without a refiner both are one mask; with one, the coarse figure comes from the same pass.
    coarse = scores
    if not coarse_only and proposal.refiner == "trained":
        from ultrarefiner_monai.postprocess import prob_to_mask

        coarse = score(prob_to_mask(proposal.coarse_prob, predictor.system.config.post), label)
    none = np.zeros((0, 0), np.float32)  # the overlays need the mask alone; a fold's probabilities fill the memory
    return Case(item, scores, coarse, replace(proposal, final_prob=none, coarse_prob=none))


def summarise(cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """Mean, median and 95 % bootstrap interval of each figure on lesion images; false alarms on the others."""
    lesions = [c for c in cases if c.item.has_lesion]
    normals = [c for c in cases if not c.item.has_lesion]
    summary: dict[str, Any] = {"lesion_images": {"count": len(lesions)}, "normal_images": {"count": len(normals)}}
    for name in FIGURES if lesions else ():
        values = np.array([getattr(c.scores, name) for c in lesions])
        low, high = bootstrap_interval(values, seed)
        summary["lesion_images"][name] = {
            "mean": round(float(values.mean()), 4),
            "median": round(float(np.median(values)), 4),
            "ci95": [round(low, 4), round(high, 4)],
        }
    if lesions:
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
    return summary


# --- files ------------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_overlays(cases: Sequence[Case], folder: Path, count: int = 4) -> list[Path]:
    """Contact sheets of the best, median and worst lesion images and of the worst lesion-free ones."""
    lesions = sorted((c for c in cases if c.item.has_lesion), key=lambda c: c.scores.dice)
    normals = sorted((c for c in cases if not c.item.has_lesion), key=lambda c: -c.scores.marked)
    middle = max(0, len(lesions) // 2 - count // 2)
    sheets = {
        "worst": lesions[:count],
        "median": lesions[middle : middle + count],
        "best": lesions[-count:],
        "normal": normals[:count],
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [_sheet(part, folder / f"{name}.png") for name, part in sheets.items() if part]


def _sheet(cases: Sequence[Case], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(cases), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for k, case in enumerate(cases):
        axes = figure.add_subplot(1, len(cases), k + 1)
        axes.imshow(read_study(case.item.image).frame(0), cmap="gray", vmin=0, vmax=1)
        # Without a single pixel there is no contour to draw; matplotlib would warn.
        for mask, colour in ((read_mask(case.item.mask)[0], "#35d07f"), (case.proposal.mask, "#ffb000")):
            if mask.any():
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.5)
        axes.set_axis_off()
        text = f"Dice {case.scores.dice:.3f}" if case.item.has_lesion else f"{100 * case.scores.marked:.2f} % marked"
        axes.set_title(f"{case.item.id}\n{text}", fontsize=10)
    figure.suptitle("green: label, orange: proposal", fontsize=9)
    figure.savefig(path, dpi=80)
    return path
