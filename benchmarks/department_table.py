"""What the arms of ``department.py`` reached, beside frozen: paired by image, as Markdown and as curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hospital import Rows, paired_table, running_mean

WINDOW = 40
COLOURS = {"frozen": "0.5", "quick": "tab:blue", "slow": "tab:orange", "both": "tab:green"}


def runs(out: Path) -> dict[str, dict[int, Path]]:
    """arm -> seed -> folder of its run, of those that have begun."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(out.glob("*-*/arrivals.csv")):
        arm, _, seed = path.parent.name.rpartition("-")
        found.setdefault(arm, {})[int(seed)] = path.parent
    return dict(sorted(found.items(), key=lambda pair: list(COLOURS).index(pair[0])))


def arriving(folder: Path, first: int, last: int, figure: str) -> dict[str, float]:
    """id -> clicks or dice of the images that arrived as number ``first`` to ``last``, counted from 1."""
    return {r["id"]: float(r[figure]) for r in Rows(folder / "arrivals.csv").all() if first <= int(r["n"]) <= last}


def on_test(folder: Path, labels: int, figure: str) -> dict[str, float]:
    """id -> clicks or dice of the test images after so many labels."""
    return {r["id"]: float(r[figure]) for r in Rows(folder / "test.csv").all() if int(r["labels"]) == labels}


def joined(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]]) -> dict[str, object]:
    """Several seeds as one paired table: an image stands once for each seed that both arms read it in."""
    names = [f"{k}" for k in range(len(before))]
    return paired_table(
        {f"{k} {i}": v for k, table in zip(names, before) for i, v in table.items()},
        {f"{k} {i}": v for k, table in zip(names, after) for i, v in table.items()},
    )


def report(out: Path) -> str:
    """The tables, as Markdown; beside it out/curves.png and out/figures.json."""
    found = runs(out)
    lines = [
        "| Arm, seeds | Images | Clicks per image, frozen | With the arm | Change (95 % interval) |",
        "| --- | --- | --- | --- | --- |",
    ]
    figures = []
    for arm, seeds in found.items():
        if arm == "frozen":
            continue
        both = [s for s in seeds if s in found.get("frozen", {})]
        lengths = [len(Rows(seeds[s] / "arrivals.csv").all()) for s in both]
        for first, last in ((1, 40), (41, 100), (1, 100), (101, 200), (201, 300)):
            have = [s for s, length in zip(both, lengths) if length >= last]
            if have:
                pair = joined(*([arriving(found[a][s], first, last, "clicks") for s in have] for a in ("frozen", arm)))
                figures.append({"arm": arm, "seeds": have, "arriving": [first, last], "clicks": pair})
                lines.append(f"| {arm}, {len(have)} | {first} to {last} | {_cells(pair, 2, True)} |")
    lines += [
        "",
        "| Arm, seeds | Labels | Test Dice, start | Then | Change (95 %) | Test clicks, start | Then | Change (95 %) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, seeds in found.items():
        points = sorted({int(r["labels"]) for s in seeds.values() for r in Rows(s / "test.csv").all()} - {0})
        for labels in points if arm != "frozen" else ():
            have = [s for s in seeds if _complete(seeds[s], labels)]
            if have:
                pairs = {
                    name: joined(*([on_test(seeds[s], n, name) for s in have] for n in (0, labels)))
                    for name in ("dice", "clicks")
                }
                figures.append({"arm": arm, "seeds": have, "labels": labels, **pairs})
                cells = f"{_cells(pairs['dice'], 4, False)} | {_cells(pairs['clicks'], 2, True)}"
                lines.append(f"| {arm}, {len(have)} | {labels} | {cells} |")
    (out / "figures.json").write_text(json.dumps(figures, indent=1))
    draw(out, found)
    return "\n".join(lines)


def _complete(folder: Path, labels: int) -> bool:
    return 0 < len(on_test(folder, 0, "dice")) == len(on_test(folder, labels, "dice"))


def _cells(pair: dict, digits: int, relative: bool) -> str:
    low, high = pair["ci95"]
    share = f"{100 * pair['relative']:+.0f} %, " if relative else ""
    change = f"{share}{pair['difference']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"{pair['before']:.{digits}f} | {pair['after']:.{digits}f} | {change}"


def draw(out: Path, found: dict[str, dict[int, Path]]) -> None:
    """Three curves against the number of labels: clicks of arriving images, test Dice, test clicks; thin: each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for arm, seeds in found.items():
        series: list[list[float]] = []
        for folder in seeds.values():
            series.append(running_mean([float(r["clicks"]) for r in Rows(folder / "arrivals.csv").all()], WINDOW))
            axes[0].plot(range(1, len(series[-1]) + 1), series[-1], color=COLOURS[arm], alpha=0.25, lw=0.7)
        length = min(map(len, series))
        mean = np.mean([s[:length] for s in series], axis=0)
        axes[0].plot(range(1, length + 1), mean, color=COLOURS[arm], lw=1.8, label=arm)
        for axis, name in zip(axes[1:], ("dice", "clicks")):
            points = sorted({int(r["labels"]) for s in seeds.values() for r in Rows(s / "test.csv").all()})
            values = [[_mean(on_test(s, n, name)) for s in seeds.values() if _complete(s, n)] for n in points]
            kept = [(n, float(np.mean(v))) for n, v in zip(points, values) if v]
            axis.plot(*zip(*kept), color=COLOURS[arm], marker="o", ms=3, lw=1.8, label=arm)
    titles = (f"clicks, mean of the last {WINDOW} that arrived", "test fold: automatic Dice", "test fold: clicks to .9")
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("labels saved", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(out / "curves.png", dpi=110)
    plt.close(figure)


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
