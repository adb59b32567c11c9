"""What a calibration decided and why: plain values for the checkpoint, plain words for the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ultrarefiner_monai.training.calibration.choosing import (
    ENOUGH_LESIONS,
    ENOUGH_SETS,
    MOST_MARKED,
    Chosen,
    Table,
    wiped,
)

_KINDS = ("dice", "boundary_f", "wiped_out")


Figures = tuple[np.ndarray, np.ndarray]  # (n,) each: Dice, or 1 and 0 of a lesion-free image; boundary F


def report(table: Table, chosen: Chosen, clicked: Figures | None = None) -> dict[str, Any]:
    """``meta["calibration"]``: figures of each set for the coarse mask, the whole refiner (g = 1) and the result, all with
    the chosen post-processing; the gate and whether the refiner was turned down; for every share of
    the refiner the figure and the harm; the protections that are off.

    clicked: the result where it is that of ``refiner.self_click``, which no gate weakens.
    """
    share, refiner = table.grid.shares[chosen.share], len(table.grid.shares) > 1
    about: dict[str, Any] = {
        "select": round(chosen.figure, 4),
        "tissue_crops": int(sum(len(i) for i in table.sets.tissue)),
        "safety_net": chosen.net,
        "protections_off": list(chosen.relaxed),
        "enough_sets": table.sets.several,
    }
    if refiner:
        share = 1.0 if clicked else share
        about |= {"gate": share, "refiner_turned_down": share == 0, "harm": _harm(table, chosen, 0)}
        about["shares"] = {str(g): _share(table, chosen, j) for j, g in enumerate(table.grid.shares)}
    if clicked is not None:
        about |= {"self_click": True, "select": round(float(table.sets.figure(clicked[0])), 4)}
    result = table.result(chosen) if clicked is None else clicked
    about["sets"] = {name: _set(table, chosen, k, result, refiner) for k, name in enumerate(table.sets.names)}
    return about


def _harm(table: Table, chosen: Chosen, share: int) -> dict[str, list[str]]:
    """What that share of the refiner would do with the same post-processing and the safety net: set -> kinds of harm."""
    coarse = table.result(replace(chosen, share=len(table.grid.shares) - 1, net=True, bar=0.0))
    harms = table.harms(*table.result(replace(chosen, share=share, net=True, bar=0.0)), *coarse)
    names = [name for name, i in zip(table.sets.names, table.sets.lesions) if len(i)]
    return {
        name: [kind for kind, there in zip(_KINDS, harms[:, k]) if there]
        for k, name in enumerate(names)
        if harms[:, k].any()
    }


def _share(table: Table, chosen: Chosen, share: int) -> dict[str, Any]:
    figure = table.sets.figure(table.result(replace(chosen, share=share, net=True))[0])
    return {"select": round(float(figure), 4), "harm": _harm(table, chosen, share)}


def _set(table: Table, chosen: Chosen, k: int, result: Figures, refiner: bool) -> dict[str, Any]:
    sets = table.sets
    lesions, normals, tissue = sets.lesions[k], sets.normals[k], sets.tissue[k]
    coarse = table.result(replace(chosen, share=len(table.grid.shares) - 1))
    own = {"coarse": coarse, "result": result}
    if refiner:
        own["refined"] = table.result(replace(chosen, share=0, net=True))
    out: dict[str, Any] = {"images": len(lesions) + len(normals), "lesions": len(lesions)}
    for name, (figures, edges) in own.items():
        if len(lesions):
            out[f"{name}_dice"] = round(float(figures[lesions].mean()), 4)
            out[f"{name}_boundary_f"] = round(float(edges[lesions].mean()), 4)
            out[f"{name}_missed"] = int(np.count_nonzero(figures[lesions] == 0))
        if name != "coarse" and len(lesions):
            out[f"{name}_wiped_out"] = int(np.count_nonzero(wiped(figures, coarse[0])[lesions]))
    bare = table.result(replace(chosen, bar=0.0))[0]
    out["hidden"] = int(np.count_nonzero((bare[lesions] > 0) & (table.presence[lesions] < chosen.bar)))
    for name, group in (("normals", normals), ("tissue_crops", tissue)):
        out[name] = len(group)
        out[f"{name}_marked"] = int(np.count_nonzero(result[0][group] == 0))
    return out


def explain(about: dict[str, Any]) -> list[str]:
    """Sentences for the log: the refiner's part, the protections, and sets where too much lesion-free tissue is marked."""
    lines = []
    if "gate" in about:
        lines.append(_refiner_line(about))
    if about["protections_off"]:
        lines.append(f"protections off, as no set is worse for it: {', '.join(about['protections_off'])}")
    elif not about["enough_sets"]:
        lines.append(
            f"all protections stay on: to do without one takes {ENOUGH_SETS} sets with {ENOUGH_LESIONS} lesion images each"
        )
    for name, own in about["sets"].items():
        for kind in ("normals", "tissue_crops"):
            if own[f"{kind}_marked"] > MOST_MARKED * own[kind]:
                lines.append(
                    f"{name or 'the set'}: {own[f'{kind}_marked']} of {own[kind]} {kind.replace('_', ' ')} stay marked"
                )
    return lines


def _refiner_line(about: dict[str, Any]) -> str:
    if about.get("self_click"):
        return "the refiner works with a click of its own in each finding; it harms no set"
    share = about["gate"]
    if share == 1:
        return "the refiner stands alone (g = 1): it harms no set"
    reasons = []
    for name, kinds in about["harm"].items():
        own = about["sets"][name]
        words = {
            "dice": f"Dice {own['coarse_dice']:.3f} to {own['refined_dice']:.3f}",
            "boundary_f": f"boundary F {own['coarse_boundary_f']:.3f} to {own['refined_boundary_f']:.3f}",
            "wiped_out": "lesions wiped out",
        }
        reasons.append(f"{name or 'the set'} ({', '.join(words[k] for k in kinds)})")
    why = f"alone it harms {'; '.join(reasons)}" if reasons else "that is better than the refiner alone"
    if share == 0:
        return f"the refiner is turned down for automatic results (g = 0), clicks still use it: {why}"
    return f"the refiner counts for {share:.0%} beside the coarse network (g = {share}): {why}"
