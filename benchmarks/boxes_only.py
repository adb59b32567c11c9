"""What an image encoder learns from boxes alone: ``python benchmarks/boxes_only.py --before MODEL --after MODEL ... --data DIR``.

Each lesion image of the fold is asked with one foreground point in the lesion's deepest pixel, without the coarse network. The Dice
of the system before, and of those that went through phase weak_encoder (one for each seed), paired by image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from hospital import lesion_items, paired_table, pixels, tested

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.phases.points import target_points


def dices(model: Path, items: list[Item]) -> dict[str, float]:
    predictor, found = Predictor(load_system(model)), {}
    for item in items:
        image, label = pixels(item)
        target = target_points(label, 1, 1, 0.06)
        assert target is not None
        point = (float(target[0][0, 0]), float(target[0][0, 1]))
        found[item.id] = dice_of(predictor.interact(image, Clicks((point,)), blind=True).mask, label)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, nargs="+", required=True, help="one for each seed")
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--images", type=int, default=0, help="so many of the fold, always the same; 0: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = tested(lesion_items(args.data), args.images, args.fold)
    before = dices(args.before, items)
    print(f"{len(items)} lesion images, one point each; before: mean Dice {np.mean(list(before.values())):.4f}")
    print("| After | Mean Dice | Change (95 %) | p |\n| --- | --- | --- | --- |")
    for model in args.after:
        after = dices(model, items)
        pair = paired_table(before, after)
        mean = np.mean(list(after.values()))
        print(
            f"| {model.parent.name} | {mean:.4f} | {pair['difference']:+.4f} {pair['ci95']} | {pair['p']} |", flush=True
        )


if __name__ == "__main__":
    main()
