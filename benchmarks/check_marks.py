"""Whether a network looks for burned-in marks such as caliper crosses:
``python benchmarks/check_marks.py --model compact --data DIR --data DIR --fold 0``.

In BUSI and BUS-BRA calipers, dotted lines and letters stand beside many lesions. A network that has learnt them loses the
lesion when they are painted over, and finds one where they are drawn around nothing. Measured for each set, on images of
one fold, with the predictor that serves:

- Dice as they are, with the marks painted over (found as thin, sharp and bright; filled from their surroundings), and with
  more marks drawn anywhere; apart for the images in which marks were found within or beside the lesion; ``lost``: images
  whose Dice falls from above 0 to 0;
- false alarms on lesion-free crops of lesion images and on lesion-free images: as they are, painted over, and with calipers
  drawn around tissue; ``at calipers``: of the latter, those whose mask lies for the greater part within the calipers.

The table goes to the screen, the same figures and those of each image to --out (JSON). Nothing is changed in the data.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from ultrarefiner_monai.cli.options import build_predictor
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import Item, read_index
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.masks.metrics import NORMAL_LIMIT, bootstrap_interval
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.data.marks import Box, with_calipers, with_marks
from ultrarefiner_monai.training.data.tissue import tissue_pairs

THIN = 7  # pixels of a 500 pixel image: marks are thinner
# How far a mark stands out (above the opened image, and above the darkest of 3 pixels on both sides) and its least
# brightness; stricter for images of more contrast, in which the first finds more than LARGEST of the image.
STRICTNESS = ((0.17, 0.35), (0.22, 0.4), (0.3, 0.55))
LARGEST = 0.03


# --- marks found and painted over --------------------------------------------------------------------------------------


def find_marks(image: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W) bool: burned-in crosses, dots, dashes and letters.

    White top-hat (brighter than anything as wide as ``THIN``); then, unlike a bright fibre, a mark falls off sharply on
    both sides: its neighbours at 3 pixels in a direction are much darker. What lies around is taken with it (blurred edges).
    """
    scale = max(1.0, max(image.shape) / 500)
    width, reach = round(THIN * scale), max(2, round(3 * scale))
    hat = image - ndimage.grey_opening(image, (width, width))
    sides = [np.minimum(_drop(image, reach, axis, -1), _drop(image, reach, axis, 1)) for axis in (0, 1)]
    for stands_out, bright in STRICTNESS:
        core = (hat > stands_out) & (image > bright) & (np.maximum(*sides) > stands_out)
        core = _sharp_all_around(core, sides, stands_out, 40 * scale)
        near = ndimage.binary_dilation(core, iterations=max(2, round(2 * scale)))
        if near.mean() <= LARGEST:
            return near
    return np.zeros_like(near)


def _sharp_all_around(core: np.ndarray, sides: list[np.ndarray], least: float, longest: float) -> np.ndarray:
    """The pieces that fall off in both directions somewhere: a fibre does above and below only, a cross or a letter both."""
    pieces, count = ndimage.label(core, np.ones((3, 3)))
    if not count:
        return core
    numbers = np.arange(1, count + 1)
    sharp = [np.asarray(ndimage.maximum(side, pieces, numbers)) > least for side in sides]
    small = [max(b[0].stop - b[0].start, b[1].stop - b[1].start) <= longest for b in ndimage.find_objects(pieces)]
    return np.concatenate([[False], sharp[0] & sharp[1] & small])[pieces]


def _drop(image: np.ndarray, reach: int, axis: int, sign: int) -> np.ndarray:
    """How much darker the darkest pixel within ``reach`` on one side is."""
    lowest = image
    for step in range(1, reach + 1):
        lowest = np.minimum(lowest, ndimage.shift(image, (sign * step, 0) if axis == 0 else (0, sign * step), order=0))
    return image - lowest


def paint_over(image: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The marks filled with a smooth mean of what is around them, with the speckle of a neighbouring place."""
    if not marks.any():
        return image
    known = (~marks).astype(np.float32)
    smooth, weight = (ndimage.gaussian_filter(values, 4) for values in (image * known, known))
    base = smooth / np.maximum(weight, 1e-6)
    # Grain: what a shifted copy of the image differs from its own mean by, where that copy is no mark.
    grain = np.zeros_like(image)
    for _ in range(8):
        move = tuple(int(n) for n in rng.integers(8, 16, 2) * rng.choice([-1, 1], 2))
        free = np.roll(known, move, (0, 1)) > 0
        grain = np.where(free & (grain == 0), np.roll(image - base, move, (0, 1)), grain)
    filled = np.clip(base + np.clip(grain, -0.2, 0.2), 0, 1)
    return np.where(marks, filled, image).astype(np.float32)


# --- measured ---------------------------------------------------------------------------------------------------------


class Check:
    """One checkpoint; its answers to an image and to what was made of it."""

    def __init__(self, predictor: Predictor, coarse_only: bool, show: Path | None) -> None:
        self.predictor, self.coarse_only, self.show = predictor, coarse_only, show

    def mask(self, image: np.ndarray) -> np.ndarray:
        answer = self.predictor.coarse(image) if self.coarse_only else self.predictor.propose(image)
        return answer.mask > 0

    def lesion(self, item: Item) -> dict[str, Any]:
        image, label = read_image_file(item.image).frame(0), read_mask(item.mask)[0] > 0
        rng = np.random.default_rng(zlib.crc32(item.key.encode()))
        marks = find_marks(image)
        painted = paint_over(image, marks, rng)
        drawn = with_marks(image, rng, None, count=4)
        beside = ndimage.binary_dilation(label, iterations=max(3, round(0.03 * max(label.shape)))) & marks
        self.picture(item.key, image, painted, drawn)
        dice = {k: dice_of(self.mask(v), label) for k, v in (("as_is", image), ("painted", painted), ("drawn", drawn))}
        return {"id": item.key, "marks": float(marks.mean()), "beside": bool(beside.any()), **dice}

    def normal(self, key: str, image: np.ndarray) -> dict[str, Any]:
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        box = tissue_box(image.shape, rng)
        painted, drawn = paint_over(image, find_marks(image), rng), with_calipers(image, rng, box)
        self.picture(key, image, painted, drawn)
        answers = {k: self.mask(v) for k, v in (("as_is", image), ("painted", painted), ("drawn", drawn))}
        alarms: dict[str, Any] = {k: bool(m.mean() > NORMAL_LIMIT) for k, m in answers.items()}
        left, top, right, bottom = (max(0, round(side)) for side in box)
        within = answers["drawn"][top : bottom + 1, left : right + 1].sum() > 0.5 * answers["drawn"].sum()
        return {"id": key, **alarms, "at_calipers": bool(alarms["drawn"] and within)}

    def picture(self, key: str, *images: np.ndarray) -> None:
        if self.show is not None:
            row = np.concatenate(images, axis=1)
            Image.fromarray((row * 255).astype(np.uint8)).save(self.show / f"{key.replace('/', '_')}.png")


def tissue_box(shape: tuple[int, ...], rng: np.random.Generator) -> Box:
    """A box as calipers measure one, within the image."""
    height, width = shape[0], shape[1]
    w = width * rng.uniform(0.2, 0.4)
    h = min(w * rng.uniform(0.6, 1.0), 0.7 * height)
    left, top = rng.uniform(0.05 * width, 0.95 * width - w), rng.uniform(0.1 * height, 0.9 * height - h)
    return left, top, left + w, top + h


def of_lesions(rows: list[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"images": len(rows)}
    if not rows:
        return figures
    for kind in ("as_is", "painted", "drawn"):
        figures[kind] = round(float(np.mean([r[kind] for r in rows])), 4)
    for kind in ("painted", "drawn"):
        change = np.array([r[kind] - r["as_is"] for r in rows])
        figures[f"{kind}_difference"] = round(float(change.mean()), 4)
        figures[f"{kind}_ci95"] = [round(v, 4) for v in bootstrap_interval(change, 0)]
        figures[f"{kind}_lost"] = sum(r["as_is"] > 0 and r[kind] == 0 for r in rows)
    return figures


def of_normals(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {"images": len(rows), **{k: sum(r[k] for r in rows) for k in ("as_is", "painted", "drawn", "at_calipers")}}


def check_set(check: Check, data: Path, fold: str, count: int) -> dict[str, Any]:
    """Figures of one data folder; ``count`` images of each kind at most, drawn with a fixed seed (0: all)."""
    items = [i for i in read_index(data) if i.fold == fold]
    order = np.random.default_rng(0).permutation(len(items))
    lesions = [items[k] for k in order if items[k].has_lesion]
    normals = [items[k] for k in order if not items[k].has_lesion]
    lesions, normals = (part[: count or None] for part in (lesions, normals))
    rows = [check.lesion(item) for item in lesions]
    crops = [check.normal(key, crop) for key, crop, _ in tissue_pairs(lesions, 0)]
    free = [check.normal(i.key, read_image_file(i.image).frame(0)) for i in normals]
    return {
        "dice": of_lesions(rows),
        "dice_marks_beside_lesion": of_lesions([r for r in rows if r["beside"]]),
        "tissue_crops": of_normals(crops),
        "normal_images": of_normals(free),
        "rows": {"lesions": rows, "tissue_crops": crops, "normal_images": free},
    }


def show_table(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name}")
    print(f"  {'Dice':34s} images   as is  painted   (lost)  drawn   (lost)")
    for key, words in (("dice", "lesion images"), ("dice_marks_beside_lesion", "with marks at the lesion")):
        f = figures[key]
        if f["images"]:
            painted = f"{f['painted']:.3f} {f['painted_difference']:+.3f} ({f['painted_lost']})"
            drawn = f"{f['drawn']:.3f} {f['drawn_difference']:+.3f} ({f['drawn_lost']})"
            print(f"  {words:34s} {f['images']:6d}   {f['as_is']:.3f}  {painted}  {drawn}")
    print(f"  {'false alarms':34s} images   as is  painted  with calipers  at calipers")
    for key, words in (("tissue_crops", "lesion-free crops"), ("normal_images", "lesion-free images")):
        f = figures[key]
        if f["images"]:
            print(
                f"  {words:34s} {f['images']:6d} {f['as_is']:7d} {f['painted']:8d} {f['drawn']:14d} {f['at_calipers']:12d}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact", help="a checkpoint; compact is the shipped one")
    parser.add_argument("--data", type=Path, action="append", required=True, help="a data folder; may be given again")
    parser.add_argument("--fold", default="0", help="the fold to look at: 0 to 4, or test; what the training held out")
    parser.add_argument(
        "--task",
        choices=("ultrarefiner", "transunet"),
        default="ultrarefiner",
        help="the automatic result, or the coarse network alone",
    )
    parser.add_argument("--count", type=int, default=0, help="images of each kind and set at most; 0: all")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")
    parser.add_argument("--out", type=Path, default=Path("runs/check_marks.json"), help="the figures (JSON)")
    parser.add_argument("--show", type=Path, help="a folder for pictures of what was painted over and drawn")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.show is not None:
        args.show.mkdir(parents=True, exist_ok=True)
    try:
        check_sets(args)
    except InputError as error:
        parser.exit(1, f"error: {error}\n")


def check_sets(args: argparse.Namespace) -> None:
    """All data folders: the tables to the screen, everything to --out."""
    predictor = build_predictor(args.model, None, args.device)
    check = Check(predictor, args.task == "transunet", args.show)
    found: dict[str, Any] = {"version": predictor.system.version, "fold": args.fold, "task": args.task, "sets": {}}
    for data in args.data:
        figures = check_set(check, data, args.fold, args.count)
        found["sets"][data.resolve().name] = figures
        show_table(data.resolve().name, figures)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out, "w") as file:
        json.dump(found, file, indent=1)
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
