"""A batch of labels that are noise: ``python benchmarks/poisoned.py --data DIR --start WEIGHTS --out DIR``.

``--noise`` real images get random blobs as their labels, on top of ``--good`` right ones; some of both validate, as the split
will have it. Then: does quick learning refuse what it learnt, or is that not worse on images of the test fold? Does the gate
refuse what a training on these labels made, or is that not worse there? Refused, the candidate is promoted by hand all the
same. At last all is rolled back: are the masks the very same as before? Exits with 1 where an answer is no.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from department_learning import Department, Settings
from hospital import arrivals, disk_cache, lesion_items, paired_table, pixels, read, tested
from scipy import ndimage
from served import png

from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.pipeline.predictor import Predictor


def blobs(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: noise, smoothed and cut so that some 15 % are marked."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), min(shape) / 12)
    return field > np.quantile(field, 0.85)


def fill(department: Department, good: list[Item], noise: list[Item], folder: Path) -> None:
    """Save the labels: right ones first, then blobs."""
    masks = folder / "noise"
    masks.mkdir(exist_ok=True)
    labels = department.studies / "labels" / "final"
    for item in [*good, *noise]:
        shutil.copyfile(item.image, department.studies / f"{item.id}.png")
        if item in noise:
            rng = np.random.default_rng(int(hashlib.sha256(item.id.encode()).hexdigest()[:8], 16))
            (masks / f"{item.id}.png").write_bytes(png(blobs(pixels(item)[1].shape, rng)))
            item = dataclasses.replace(item, mask=masks / f"{item.id}.png")
        shutil.copyfile(item.mask, labels / f"{item.id}.png")
        department.predictor.prepare(pixels(item)[0])
        department.remember(item)
    department.write_index()


def dices(predictor: Predictor, test: list[Item]) -> dict[str, float]:
    return {i.id: read(predictor, i, 0).dice for i in test}


def masks_of(predictor: Predictor, test: list[Item]) -> list[bytes]:
    return [predictor.propose(pixels(i)[0]).mask.tobytes() for i in test]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--start", type=Path, required=True, help="the checkpoint that is served first")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--good", type=int, default=40)
    parser.add_argument("--noise", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="of the slow training")
    parser.add_argument("--least", type=int, default=20, help="so many validating patients suffice for the gate")
    parser.add_argument("--test-images", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = lesion_items(args.data)
    order, test = arrivals(items, args.seed), tested(items, args.test_images)
    folder = args.out / f"poisoned-{args.good}-{args.noise}-{args.seed}"
    folder.mkdir(parents=True)
    settings = Settings(True, True, slow_epochs=args.epochs, slow_parts=("refiner",), least=args.least)
    department = Department(folder, args.start, disk_cache(args.out / "cache"), settings)
    fill(department, order[: args.good], order[args.good : args.good + args.noise], folder)
    start = department.predictor
    before, masks = dices(start, test), masks_of(start, test)
    quick, served = department.quick(), department.predictor
    change = paired_table(before, dices(served, test)) if quick["accepted"] else None
    print(f"quick: {'served' if quick['accepted'] else 'refused'}: {quick['why']}; test Dice {json.dumps(change)}")
    slow = department.slow()
    print(f"slow: {'promoted' if slow['accepted'] else 'refused'}: {slow['why']}")
    if not slow["accepted"]:
        department.registry.promote(department.registry.candidates()[-1].name)
        department.load()
    poisoned = paired_table(before, dices(department.predictor, test))
    print(f"{'' if slow['accepted'] else 'promoted by hand all the same: '}test Dice {json.dumps(poisoned)}")
    while department.registry.pointer().name != "configured":
        department.registry.rollback()
    department.load()
    same = masks_of(department.predictor, test) == masks
    print(f"rolled back: {len(test)} masks {'bit for bit as before' if same else 'DIFFER'}")
    served_ones = [change, poisoned if slow["accepted"] else None]
    harmless = all(c is None or c["difference"] >= -department.options.margin for c in served_ones)
    return 0 if harmless and same else 1


if __name__ == "__main__":
    sys.exit(main())
