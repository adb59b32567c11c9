"""The tables of a model card, as Markdown, from the results of a recipe's steps. Left-out hospitals come first: that is
what a new department will see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.recipe.steps import Job, Work

_COLUMNS = ("images", "Dice", "95 % interval", "median", "boundary F", "missed", "coarse Dice", "coarse boundary F")


def write_card(work: Work, jobs: Sequence[Job]) -> Path:
    """Write ``figures.md`` into the recipe's folder, from the summaries of its evaluations; returns its path."""
    path = work.out / "figures.md"
    with replacing(path, "w") as file:
        file.write("\n".join(_lines(jobs)) + "\n")
    return path


def _lines(jobs: Sequence[Job]) -> Iterator[str]:
    found = [(job, _summary(job)) for job in jobs if job.step.command == "evaluate"]
    away = [(job, summary) for job, summary in found if job.away]
    if away:
        yield from ("## A hospital that training never saw", "")
        yield "Trained without the set, reported on all of it."
        yield from ("", _row("set left out", *_COLUMNS), _rule(1 + len(_COLUMNS)))
        for job, summary in away:
            name = job.left_out[-1]  # before it stands what the whole recipe leaves out
            yield _row(name, *_figures(_of_set(summary, name)))
        yield ""
    for job, summary in found:
        if job.away:
            continue
        yield from (f"## {summary['data']}, fold {summary['fold']}, version {summary['version']}", "")
        if job.left_out:
            yield from (f"Trained without {', '.join(job.left_out)}: reported on all of it.", "")
        yield from (_row("set", *_COLUMNS), _rule(1 + len(_COLUMNS)))
        names = list(summary.get("by_set", {})) or [summary["data"]]
        for name in names:
            yield _row(name, *_figures(_of_set(summary, name)))
        yield ""
        yield from _devices(summary)
        yield from _clicks(summary, names)
        yield from _marked(summary, names)


def _summary(job: Job) -> dict[str, Any]:
    return json.loads((job.out / "summary.json").read_text(encoding="utf-8"))


def _of_set(summary: dict[str, Any], name: str) -> dict[str, Any]:
    return summary.get("by_set", {}).get(name, summary)


def _figures(block: dict[str, Any]) -> Iterator[str]:
    lesions = block["lesion_images"]
    if not lesions["count"]:
        yield "0"
        return
    before = block.get("refined_against_coarse", {}).get("lesion_images", {})
    dice, boundary = lesions["dice"], lesions["boundary_f"]
    yield str(lesions["count"])
    yield _number(dice["mean"])
    yield " - ".join(_number(v) for v in dice["ci95"])
    yield _number(dice["median"])
    yield _number(boundary["mean"])
    yield str(lesions["missed"])
    yield _number(before["dice"]["before"]) if before else ""
    yield _number(before["boundary_f"]["before"]) if before else ""


def _devices(summary: dict[str, Any]) -> Iterator[str]:
    rows = summary.get("by_device", {})
    if not rows:
        return
    yield from (_row("scanner", "images", "Dice", "coarse Dice", "boundary F", "missed"), _rule(6))
    for name, row in rows.items():
        if row["lesion_images"]:
            dice, coarse, boundary = (_number(row[k]) for k in ("dice", "coarse_dice", "boundary_f"))
            yield _row(name, str(row["lesion_images"]), dice, coarse, boundary, str(row["missed"]))
    yield ""


def _clicks(summary: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    games = [(name, _of_set(summary, name).get("robot")) for name in names]
    if not any(game for _, game in games):
        return
    yield from (_row("set", "Dice after 1, 3, 5 clicks", "NoC@85", "NoC@90", "never .90"), _rule(5))
    for name, game in games:
        if game and game["images"]:
            after = ", ".join(_number(game["dice_after"][k]["mean"]) for k in ("1", "3", "5"))
            at = game["noc"]
            yield _row(name, after, f"{at['85']['mean']:.2f}", f"{at['90']['mean']:.2f}", f"{at['90']['failed']:.0%}")
    yield ""


def _marked(summary: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    yield from (_row("set", "lesion-free images marked", "lesion-free crops marked"), _rule(3))
    for name in names:
        block = _of_set(summary, name)
        cells = []
        crops = summary.get("tissue_images", {})
        for part in (block["normal_images"], crops.get("by_set", {}).get(name, crops)):
            cells.append(f"{part['false_alarms']} of {part['count']}" if part.get("count") else "none")
        yield _row(name, *cells)
    yield ""


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + " --- |" * columns
