"""README's picture: ``python benchmarks/result_picture.py --out docs/images/result.png``.

Computer-made images, not those of patients: two proposals as they come, and the proposal of ``--count`` that two clicks of
the robot user mend most, before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ultrarefiner_monai.cli.options import shipped
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.interaction.robot import Click, as_clicks, play
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor

CLICKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args()
    predictor = Predictor(load_system(shipped()))
    found = []
    for k in range(options.count):
        phantom = make_phantom(np.random.default_rng([11, k]), 300, 400, ("benign", "malignant")[k % 2])  # type: ignore[arg-type]
        image = phantom.image.astype(np.float32) / 255
        mask = predictor.propose(image).mask
        game = play(lambda clicks, image=image: predictor.interact(image, clicks).mask, mask, phantom.mask > 0, CLICKS)
        found.append((dice_of(mask, phantom.mask > 0), game.dice[-1], image, mask, game.clicks))
    good = sorted(found, key=lambda f: -f[0])
    helped = max(found, key=lambda f: f[1] - f[0])
    after = predictor.interact(helped[2], as_clicks(helped[4])).mask
    panels = [("proposal", *f[2:4], ()) for f in (good[len(good) // 4], good[len(good) // 2])]
    panels += [("proposal", *helped[2:4], ()), (f"after {len(helped[4])} clicks", helped[2], after, helped[4])]
    draw(panels, options.out)
    print(f"Dice {helped[0]:.2f} -> {helped[1]:.2f} after {len(helped[4])} clicks; {options.out}")


def draw(panels: list[tuple[str, np.ndarray, np.ndarray, tuple[Click, ...]]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(12.8, 2.8), layout="constrained")
    for ax, (title, image, mask, clicks) in zip(axes, panels, strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        if mask.any():
            ax.contour(mask, [0.5], colors="orange", linewidths=1.6)
        for x, y, positive in clicks:
            style = {"marker": "P" if positive else "X", "color": "limegreen" if positive else "red"}
            ax.scatter([x], [y], s=70, edgecolors="black", **style)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main()
