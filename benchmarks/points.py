"""Points that propose themselves, on images never seen: ``python benchmarks/points.py --model MODEL --data DIR --fold 0``.

MODEL holds a point proposal network (`ultrarefiner train ppn`). For each lesion image of the fold, Dice of

- points: what the network's points alone say, no click, no coarse network (the task ``ppn_refiner``);
- random: as many points at random places of the image, as many of them called foreground, and no coarse network;
- oracle: points drawn from the label as the training draws them, and no coarse network: what better points could bring;
- automatic: the automatic result, prompts derived from the coarse network (the task ``ultrarefiner``);

and the share of foreground points that lie in the lesion. Differences are paired by image. Images without a lesion: the
share that stays unmarked.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from hospital import disk_cache, paired_table, pixels

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.phases.points import target_points


def drawn(shape: tuple[int, int], like: Clicks, rng: np.random.Generator) -> Clicks:
    """As many points as ``like`` has of each kind, anywhere in an image of ``shape`` (H, W)."""
    count = len(like.foreground_xy) + len(like.background_xy)
    places = rng.choice(shape[0] * shape[1], size=count, replace=False)
    xy = [(float(p % shape[1]), float(p // shape[1])) for p in places]
    n = len(like.foreground_xy)
    return Clicks(tuple(xy[:n]), tuple(xy[n:]))


def from_label(label: np.ndarray, inside: int, count: int, margin: float) -> Clicks:
    """Points drawn from a label (H, W), as the training draws them."""
    found = target_points(label, inside, count, margin)
    assert found is not None
    kinds = [tuple((float(x), float(y)) for (x, y), k in zip(*found) if k == kind) for kind in (1, 0)]
    return Clicks(kinds[0], tuple(set(kinds[1]) - set(kinds[0])))


def measure(predictor: Predictor, data: Path, fold: str, most: int, seed: int) -> None:
    ppn = predictor.system.config.ppn
    if ppn is None:
        raise SystemExit("this model proposes no points: `ultrarefiner train ppn` makes one that does")
    rng, found = np.random.default_rng(seed), defaultdict(dict)
    inside: list[float] = []
    unmarked: list[bool] = []
    items = sorted((i for i in read_index(data) if i.fold == fold), key=lambda i: i.id)
    chosen = [items[k] for k in sorted(rng.permutation(len(items))[: most or None])]
    for item in chosen:
        image, label = pixels(item)
        points, _ = predictor.points(image)
        mask = predictor.interact(image, points, blind=True).mask
        if not label.any():
            unmarked.append(bool(mask.mean() <= NORMAL_LIMIT))
            continue
        inside += [float(label[int(y), int(x)]) for x, y in points.foreground_xy]
        found["points"][item.id] = dice_of(mask, label)
        found["automatic"][item.id] = dice_of(predictor.propose(image).mask, label)
        for name, clicks in (
            ("random", drawn(label.shape, points, rng)),
            ("oracle", from_label(label, min(4, ppn.points), ppn.points, 0.06)),
        ):
            found[name][item.id] = dice_of(predictor.interact(image, clicks, blind=True).mask, label)
    print(f"{predictor.system.version} on {data.name} fold {fold}, {len(found['points'])} lesion images\n")
    print("| Prompts | Mean Dice | Median | Points against it (95 %) |\n| --- | --- | --- | --- |")
    for name in ("points", "random", "oracle", "automatic"):
        values = list(found[name].values())
        pair = "" if name == "points" else paired_table(found[name], found["points"])
        said = f"{pair['difference']:+.4f} {pair['ci95']}" if pair else ""
        print(f"| {name} | {np.mean(values):.4f} | {np.median(values):.4f} | {said} |")
    print(f"\nforeground points in the lesion: {np.mean(inside):.3f} of {len(inside)}")
    if unmarked:
        print(f"images without a lesion that stay unmarked: {sum(unmarked)} of {len(unmarked)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `ultrarefiner prepare`")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--images", type=int, default=0, help="so many of the fold, seeded; 0: all")
    parser.add_argument("--cache", type=Path, help="a folder for what depends on the image alone")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache = disk_cache(args.cache) if args.cache else None
    measure(Predictor(load_system(args.model), cache), args.data, args.fold, args.images, args.seed)


if __name__ == "__main__":
    main()
