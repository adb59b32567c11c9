"""Pictures of docs/research/training.md: ``python benchmarks/method_pictures.py points --model RUN/model.safetensors --out FILE``
(points that propose themselves; a checkpoint with such a network) and ``… boxes --out FILE`` (learning from boxes; the shipped weights).

Computer-made images, not those of patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultrarefiner_monai.cli.options import shipped
from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.boxes import derived
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.phases.contrast import ring_points

PANELS, COUNT, POINTS = 3, 24, 10


def phantoms() -> list[tuple[np.ndarray, np.ndarray]]:
    """(image (H, W) in [0, 1], lesion (H, W) bool)."""
    made = [
        make_phantom(np.random.default_rng([23, k]), 300, 400, ("benign", "malignant")[k % 2])  # type: ignore[arg-type]
        for k in range(COUNT)
    ]
    return [(p.image.astype(np.float32) / 255, p.mask > 0) for p in made]


def points(predictor: Predictor, axes: Any) -> None:
    """Proposed points, and what they say alone: a third, a half and two thirds of the way from the worst to the best."""
    found = []
    for image, lesion in phantoms():
        clicks, _ = predictor.points(image)
        mask = predictor.interact(image, clicks, blind=True).mask
        found.append((dice_of(mask, lesion), image, mask, clicks))
    found.sort(key=lambda f: f[0])
    for ax, share in zip(axes, (0.33, 0.5, 0.67), strict=True):
        dice, image, mask, clicks = found[int(share * COUNT)]
        draw(ax, image, f"points alone: Dice {dice:.2f}")
        outline(ax, mask, "orange")
        scatter(ax, clicks.foreground_xy, "P", "limegreen")
        scatter(ax, clicks.background_xy, "X", "red")


def boxes(predictor: Predictor, axes: Any) -> None:
    """Boxes and points between them, the teacher's mask, and the places whose features are compared: of the image whose teacher
    errs most and still finds half of the lesion."""
    found = []
    for k, (image, lesion) in enumerate(phantoms()):
        pair = derived(lesion, jitter=0.05, seed=k)
        if pair is None:
            continue
        xy = ring_points([pair.big], [pair.small], POINTS, torch.Generator().manual_seed(k))[0]
        clicks = Clicks(tuple((float(x), float(y)) for x, y in xy))
        mask = predictor.interact(image, clicks, blind=True).mask > 0
        found.append((dice_of(mask, lesion), image, mask, pair, clicks))
    _, image, mask, pair, clicks = min((f for f in found if f[0] > 0.5), key=lambda f: f[0])
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    big, small = (
        (columns >= x1) & (columns <= x2) & (rows >= y1) & (rows <= y2) for x1, y1, x2, y2 in (pair.big, pair.small)
    )
    for ax, title in zip(axes, ("two boxes, points between them", "the teacher's mask of these", "features compared")):
        draw(ax, image, title)
        for x1, y1, x2, y2 in (pair.big, pair.small):
            ax.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="deepskyblue", linewidth=1.4)
    scatter(axes[0], clicks.foreground_xy, "P", "limegreen")
    outline(axes[1], mask, "orange")
    shown = np.zeros((*image.shape, 4), np.float32)
    for where, colour in (
        (mask & small, (0.2, 0.8, 0.2)),
        (small & ~mask, (0.9, 0.2, 0.2)),
        (mask & ~big, (0.9, 0.2, 0.2)),
    ):
        shown[where] = (*colour, 0.55)
    axes[2].imshow(shown)


def draw(ax: Any, image: np.ndarray, title: str) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=9)
    ax.axis("off")


def outline(ax: Any, mask: np.ndarray, colour: str) -> None:
    if mask.any():
        ax.contour(mask, [0.5], colors=colour, linewidths=1.6)


def scatter(ax: Any, xy: Any, marker: str, colour: str) -> None:
    if xy:
        ax.scatter(*zip(*xy), s=60, marker=marker, color=colour, edgecolors="black")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["points", "boxes"])
    parser.add_argument("--model", type=Path, help="default: the shipped weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    predictor = Predictor(load_system(args.model or shipped()))
    figure, axes = plt.subplots(1, PANELS, figsize=(10.2, 2.8), layout="constrained")
    {"points": points, "boxes": boxes}[args.what](predictor, axes)
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
