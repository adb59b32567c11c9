"""Two or more models on the same images: ``python benchmarks/paired_models.py --before MODEL --after MODEL ... --data DIR``.

Dice on the lesion images of a fold, paired by image. ``--ask automatic`` (the default): the automatic result. ``--ask point``: one
foreground point in the lesion's deepest pixel, without the coarse network. ``--by device``: also each scanner's images by themselves.
For what learns beside the usual phases: LoRA, an adapter for each scanner, an image encoder that has seen boxes alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hospital import lesion_items, paired_table, pixels, tested

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.phases.points import target_points


def dices(model: Path, items: list[Item], ask: str) -> dict[str, float]:
    """id -> Dice. ask: automatic or point."""
    predictor, found = Predictor(load_system(model)), {}
    for item in items:
        image, label = pixels(item)
        if ask == "automatic":
            mask = predictor.propose(image).mask
        else:
            target = target_points(label, 1, 1, 0.06)
            assert target is not None
            point = (float(target[0][0, 0]), float(target[0][0, 1]))
            mask = predictor.interact(image, Clicks((point,)), blind=True).mask
        found[item.id] = dice_of(mask, label)
    return found


def rows(name: str, before: dict[str, float], after: dict[str, float], groups: dict[str, list[str]]) -> list[str]:
    """A row of the table for each group of images."""
    lines = []
    for group, ids in groups.items():
        old, new = ({i: d[i] for i in ids} for d in (before, after))
        pair: dict[str, Any] = paired_table(old, new)
        means = [np.mean(list(d.values())) for d in (old, new)]
        change = f"{pair['difference']:+.4f} {pair['ci95']} | {pair['p']}"
        lines.append(f"| {name} | {group} | {len(ids)} | {means[0]:.4f} | {means[1]:.4f} | {change} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--images", type=int, default=0, help="so many of the fold, always the same; 0: all")
    parser.add_argument("--ask", choices=("automatic", "point"), default="automatic")
    parser.add_argument("--by", choices=("device",), help="a column of index.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = tested(lesion_items(args.data), args.images, args.fold)
    groups = {"all": [i.id for i in items]}
    if args.by:
        for item in items:
            groups.setdefault(item.device or "not said", []).append(item.id)
    before = dices(args.before, items, args.ask)
    print(
        "| Model | Images | Number | Mean Dice before | After | Change (95 %) | p |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for model in args.after:
        print(*rows(model.parent.name, before, dices(model, items, args.ask), groups), sep="\n", flush=True)


if __name__ == "__main__":
    main()
