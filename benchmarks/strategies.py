"""Which images to label: how many labels does a strategy need for the Dice that random ones reach?
``python benchmarks/strategies.py --data DIR --start WEIGHTS --out DIR --seeds 0 1 2``.

For each seed the first ``--pool`` images that arrive (``hospital.py``) are the pool. A strategy chooses one after another, by
the scores that the start model gives them; after each number of labels in ``--points`` the mask decoder is tuned on the
chosen ones (quick learning's ``tune``, always from the start model), and the automatic Dice of the test images is measured.
``random`` is foreground-aware: it draws among the images in which something is found, and one of ten times among the others,
as ``recommended`` does. What is shortened: scores are those of the start model throughout (a server renews them after a
promotion), only the decoder learns, and nothing validates. Runs that are in OUT/strategies.csv are not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hospital import Rows, arrivals, disk_cache, lesion_items, paired_table, pixels, read, tested

from ultrarefiner_monai.config import LearningConfig
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.learning.quick.overlay import with_tensors
from ultrarefiner_monai.learning.quick.samples import Sample, sample_of
from ultrarefiner_monai.learning.quick.tuning import tune
from ultrarefiner_monai.learning.sampling.scores import score_frame
from ultrarefiner_monai.learning.sampling.strategies import choose, draws
from ultrarefiner_monai.learning.sampling.table import ScoreTable
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

BLANK_SHARE = 0.1


def score_table(predictor: Predictor, items: Sequence[Item]) -> ScoreTable:
    """The pool's scores, as the server computes them in the background."""
    scores = [score_frame(predictor, pixels(item)[0]) for item in items]
    names = sorted({i.group for i in items})
    return ScoreTable.of(
        [i.id for i in items],
        np.stack([s.vector for s in scores]),
        [names.index(i.group) for i in items],
        [s.disagreement for s in scores],
        [s.boundary_entropy for s in scores],
        [float(s.found) for s in scores],
        [np.nan if s.presence is None else s.presence for s in scores],
    )


def sequence(strategy: str, table: ScoreTable, count: int, seed: int) -> list[int]:
    """Rows in the order in which they are labelled."""
    if strategy == "random":
        return foreground_random(table.found > 0, count, np.random.default_rng(seed))
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(int(choose(strategy, table, chosen, rng=draws(len(chosen), seed))[0]))
    return chosen


def foreground_random(found: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` of the rows: those in which something is found in random order, a blank one in place of one in ten.

    found: (N,) bool. When one kind is used up the other goes on.
    """
    full, blank = (list(rng.permutation(np.flatnonzero(found == kind))) for kind in (True, False))
    out = []
    while len(out) < count and (full or blank):
        share = min(BLANK_SHARE, len(blank) / (len(full) + len(blank)))
        from_blank = not full or (bool(blank) and rng.random() < share)
        out.append(int((blank if from_blank else full).pop()))
    return out


def report(rows: Rows, target: int) -> str:
    """Test Dice by strategy and labels, and the fewest labels with at least the Dice of random with ``target``."""
    table: dict[tuple[str, int], dict[str, float]] = {}
    for r in rows.all():
        table.setdefault((r["strategy"], int(r["labels"])), {})[f"{r['seed']} {r['id']}"] = float(r["dice"])
    names = sorted({name for name, _ in table})
    points = sorted({n for _, n in table})
    lines = ["| Strategy | " + " | ".join(map(str, points)) + " |", "| --- |" + " --- |" * len(points)]
    for name in names:
        cells = [f"{np.mean(list(table[name, n].values())):.4f}" if (name, n) in table else "" for n in points]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if ("random", target) in table:
        goal = float(np.mean(list(table["random", target].values())))
        lines.append(f"\nrandom with {target} labels: {goal:.4f}.")
        for name in names:
            enough = [n for n in points if (name, n) in table and np.mean(list(table[name, n].values())) >= goal]
            lines.append(f"{name}: {f'{enough[0]} labels' if enough else 'never'}")
            if name != "random" and (name, target) in table:
                pair = paired_table(table["random", target], table[name, target])
                lines.append(f"  at {target} against random: {pair['difference']:+.4f} {pair['ci95']}, p {pair['p']}")
    return "\n".join(lines)


def measure(args: argparse.Namespace, seed: int, strategy: str, rows: Rows, start: Predictor) -> None:
    items = lesion_items(args.data)
    pool, test = arrivals(items, seed)[: args.pool], tested(items, args.test_images)
    done = {(r["labels"], r["id"]) for r in rows.all() if r["seed"] == str(seed) and r["strategy"] == strategy}
    left = [n for n in args.points if any((str(n), i.id) not in done for i in test)]
    if not left:
        return
    order = sequence(strategy, score_table(start, pool), max(args.points), seed)
    kept: dict[int, Sample] = {}
    for labels in left:
        for k in order[:labels]:
            kept[k] = kept.get(k) or sample_of(start, pool[k].id, pool[k].group, *pixels(pool[k]))
        samples = [kept[k] for k in order[:labels]]
        tensors = tune(start.system, samples, [], LearningConfig(), steps=args.steps, seed=seed)
        tuned = start.with_decoder(with_tensors(start.system, tensors, f"{strategy}-{seed}-{labels}"))
        for item in test:
            if (str(labels), item.id) not in done:
                dice = f"{read(tuned, item, 0).dice:.5f}"
                rows.add({"strategy": strategy, "seed": seed, "labels": labels, "id": item.id, "dice": dice})
        print(f"{strategy}, seed {seed}, {labels} labels", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--start", type=Path, required=True, help="the checkpoint that everything starts from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strategies", nargs="*", default=["random", "recommended", "diverse"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--points", type=int, nargs="*", default=[25, 50, 100, 150, 200])
    parser.add_argument("--steps", type=int, default=80, help="of the decoder's tuning, the same for all")
    parser.add_argument("--test-images", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(args.out / "strategies.csv")
    start = Predictor(load_system(args.start), disk_cache(args.out / "cache"))
    for seed in args.seeds:
        for strategy in args.strategies:
            measure(args, seed, strategy, rows, start)
    print(report(rows, max(args.points)))


if __name__ == "__main__":
    main()
