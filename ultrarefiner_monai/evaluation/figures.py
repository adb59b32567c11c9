"""Figures of a checkpoint on one fold of one or several sets, at the images' own size, with the very predictor that serves.

Lesion images and lesion-free ones are reported apart: Dice says nothing about the latter, what was marked does. A robot
user can play the lesion images (``robot``), and a second checkpoint can be measured on the same images (``comparison``).
Several sets are reported in sum and one by one, and so are the scanners where the index names them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import NOTICE, InputError
from ultrarefiner_monai.datasets.datalist import JOINT, DataDirs, Item, data_name, held_out, read_sets, sets_of
from ultrarefiner_monai.datasets.seen import count_seen, digest_of, name_records, seen
from ultrarefiner_monai.evaluation.cases import Case
from ultrarefiner_monai.evaluation.comparison import HD95_NOTE, write_rows
from ultrarefiner_monai.evaluation.pictures import write_curves, write_overlays
from ultrarefiner_monai.evaluation.summaries import by_origin, games_of, paired, summarise
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.interaction.robot import play
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT, score
from ultrarefiner_monai.masks.postprocess import prob_to_mask
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.data.tissue import tissue_pairs

log = logging.getLogger(__name__)
WRITTEN = (
    "metrics.csv",
    "overlays",
    "against.csv",
    "robot.csv",
    "against_robot.csv",
    "robot.png",
)  # beside the summary
PLAY_CACHE = 64 * 2**20  # bytes; the image that is being played is all that has to be kept


def evaluate(
    predictor: Predictor,
    data_dir: DataDirs,
    fold: str | int,
    out: str | Path,
    coarse_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
    robot_clicks: int = 0,
    tissue: bool = False,
    against: Predictor | None = None,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate one fold of each set; write metrics.csv, summary.json and overlays/ into ``out``; return the summary.

    data_dir: one data folder or several. leave_out: sets that were left out of the training: all their images count.
    coarse_only: the proposal of the coarse network (task ``transunet``), else the automatic one (``ultrarefiner``).
    robot_clicks: the maximum number of clicks with which a robot user corrects each lesion image, through the path that serves (with
    coarse_only: as a server without a refiner); robot.csv and robot.png come on top. 0: no robot user.
    tissue: one lesion-free crop of each lesion image counts as a normal image too, reported apart (``tissue_images``).
    against: a second checkpoint, measured on the same images; its figures and the paired differences (this one less the
    other) come into the summary, its own per-image figures into against.csv. Raises InputError for a set with an empty fold.
    """
    if robot_clicks < 0:
        raise InputError(f"the robot makes no or some clicks, got {robot_clicks}")
    items = held_out(read_sets(data_dir), fold, leave_out)
    columns = (*(["set"] if len(sets_of(items)) > 1 else []), *(["device"] if any(i.device for i in items) else []))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    predictors = [_for_play(p, coarse_only) if robot_clicks else p for p in (predictor, against) if p is not None]
    results: list[list[Case]] = [[] for _ in predictors]
    images = []
    for k, item in enumerate(items):
        image, label = _read(item)
        images.append(digest_of(image))
        for one, cases in zip(predictors, results):
            case = _evaluate_one(one, item, image, label, coarse_only, robot_clicks)
            cases.append(replace(case, columns=columns))
        if progress is not None:
            progress(k + 1, len(items))
    cases, others = results[0], results[1] if against is not None else None
    summary = {
        "notice": NOTICE,
        "data": data_name(items),
        "fold": str(fold),
        **({"left_out": JOINT.join(sorted(set(leave_out)))} if leave_out else {}),
        "task": "transunet" if coarse_only else "ultrarefiner",
        **_of_model(predictor, cases, images),
        "hd95": HD95_NOTE,
    }
    if against is not None and others is not None:
        summary["against"] = _of_model(against, others, images)
        summary["this_against_that"] = paired(others, cases)
    if tissue:
        summary["tissue_images"] = tissue_figures(predictor, items, coarse_only)
        if against is not None:
            summary["against"]["tissue_images"] = tissue_figures(against, items, coarse_only)
    _write(out, cases, others)
    with replacing(out / "summary.json", "w") as file:
        json.dump(summary, file, indent=1)
    return summary


def _of_model(predictor: Predictor, cases: Sequence[Case], images: Sequence[bytes]) -> dict[str, Any]:
    system, items = predictor.system, [c.item for c in cases]
    count = count_seen(system.meta, images)
    return {
        "version": system.version,
        "options": system.meta.get("options", {}),
        "refiner": cases[0].proposal.refiner,
        "seen_in_training": seen_in_training(system.meta, items, images),
        **({} if count is None else {"seen_images": count}),
        **summarise(cases),
        **by_origin(cases),
    }


def _for_play(predictor: Predictor, coarse_only: bool) -> Predictor:
    """The same with a cache of its own, so that a click does not run the encoder again."""
    system = replace(predictor.system, refiner=None) if coarse_only else predictor.system
    return Predictor(system, EmbeddingCache(ram_bytes=PLAY_CACHE), predictor.device)


def seen_in_training(meta: dict[str, Any], items: Sequence[Item], images: Sequence[bytes]) -> bool | None:
    """Whether the checkpoint has seen any of these images, so that its figures promise too much; None where it cannot be
    told.

    meta: the checkpoint's. images: the digests of the items' images (``datasets.seen``), which decide where the
    checkpoint has digests too; else by the names of its sets and the fold that training held out.
    """
    answer, count = seen(meta, items, images), count_seen(meta, images)
    folds = ", ".join(sorted({i.fold for i in items}))
    if count:
        log.warning("the checkpoint was trained on %d of these %d images: these figures mislead", count, len(items))
    elif answer:
        past = "; ".join(f"{r.get('data')}: {r.get('fold')}" for r in name_records(meta))
        log.warning("the checkpoint was trained on fold %s (held out was %s): these figures mislead", folds, past)
    elif answer is None:
        names = ", ".join(str(r["data"]) for r in name_records(meta) if "data" in r)
        log.warning(
            "the checkpoint was trained on a folder called %s: whether it has seen these images cannot be told; if they "
            "are of that dataset, these figures may mislead",
            names or "(not known)",
        )
    return answer


def _read(item: Item) -> tuple[np.ndarray, np.ndarray]:
    image = read_image_file(item.image).frame(0)
    label = read_mask(item.mask)[0]
    if label.shape != image.shape:
        raise InputError(f"{item.mask} is {label.shape[::-1]} pixels, its image {image.shape[::-1]}")
    return image, label


def _evaluate_one(
    predictor: Predictor, item: Item, image: np.ndarray, label: np.ndarray, coarse_only: bool, robot_clicks: int
) -> Case:
    predictor = predictor.seen_as(item.view)
    proposal = predictor.coarse(image) if coarse_only else predictor.propose(image)
    scores = score(proposal.mask, label)
    # Without a refiner both are one mask; with one, the coarse figure comes from the same pass.
    coarse, coarse_mask = scores, None
    if proposal.refiner == "trained":
        coarse_mask = prob_to_mask(proposal.coarse_prob, predictor.system.config.post)
        coarse = score(coarse_mask, label)
    game = None
    if robot_clicks and item.has_lesion and label.any():
        game = play(lambda clicks: predictor.interact(image, clicks).mask, proposal.mask, label, robot_clicks)
    none = np.zeros((0, 0), np.float32)  # the overlays need the masks alone; a fold's probabilities fill the memory
    return Case(item, scores, coarse, replace(proposal, final_prob=none, coarse_prob=none), coarse_mask, game)


# --- lesion-free crops ------------------------------------------------------------------------------------------------


def tissue_figures(predictor: Predictor, items: Sequence[Item], coarse_only: bool = False) -> dict[str, Any]:
    """False alarms on one lesion-free crop of each lesion image that has room for one (``training.data.tissue``), always the same
    crops: count, false_alarms, false_alarm_rate; of several sets also ``by_set``."""
    alarms: dict[str, list[bool]] = {name: [] for name in sets_of(items)}
    for _, crop, item in tissue_pairs(items, seed=0):
        proposal = predictor.coarse(crop) if coarse_only else predictor.seen_as(item.view).propose(crop)
        alarms[item.set].append(float(np.mean(proposal.mask > 0)) > NORMAL_LIMIT)
    figures = _alarm_figures([alarm for own in alarms.values() for alarm in own])
    return figures if len(alarms) < 2 else {**figures, "by_set": {k: _alarm_figures(v) for k, v in alarms.items()}}


def _alarm_figures(alarms: Sequence[bool]) -> dict[str, Any]:
    rate = {"false_alarm_rate": round(float(np.mean(alarms)), 4)} if alarms else {}
    return {"count": len(alarms), "false_alarms": int(sum(alarms)), **rate}


# --- files ------------------------------------------------------------------------------------------------------------


def _write(out: Path, cases: Sequence[Case], others: Sequence[Case] | None) -> None:
    # What an earlier evaluation left here and this one does not make would be taken for its own.
    for old in (*(out / name for name in WRITTEN if name != "overlays"), *(out / "overlays").glob("*.png")):
        old.unlink(missing_ok=True)
    write_rows(out / "metrics.csv", [c.row() for c in cases])
    write_overlays(cases, out / "overlays")
    if others is not None:
        write_rows(out / "against.csv", [c.row() for c in others])
    if games_of(cases):
        write_rows(out / "robot.csv", [c.robot_row(c.game) for c in cases if c.game is not None])
        curves = {cases[0].proposal.version: games_of(cases)}
        if others is not None:
            write_rows(out / "against_robot.csv", [c.robot_row(c.game) for c in others if c.game is not None])
            curves[f"against {others[0].proposal.version}"] = games_of(others)
        write_curves(curves, out / "robot.png")
