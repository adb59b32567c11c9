"""Corrupted masks per CPU-second, and the share of Dice requests met: ``python benchmarks/bench_corruption.py --data DIR``.

Counted is the time of the whole process over all its threads, from label to softened probability. Without --data the
labels are phantoms. ``two cores`` is twice the figure of one: the work is split between processes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from ultrarefiner_monai.config import CorruptionConfig
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.imaging.readers import read_mask
from ultrarefiner_monai.training.data.corruption_fields import field_cells, gaussian_field
from ultrarefiner_monai.training.data.corruptions import Corruptor

GOALS = {(0.0, 224): 1000, (0.0, 512): 200, (1.0, 224): 300}


def labels(data: Path | None, count: int, size: int) -> torch.Tensor:
    """(count, 1, size, size) of 0 and 1, letterboxed, all with a lesion."""
    rng = np.random.default_rng(0)
    if data is None:
        kinds = ("benign", "malignant")
        masks = [make_phantom(rng, size, size, kinds[k % 2]).mask for k in range(min(count, 64))]  # type: ignore[arg-type]
    else:
        items = [item for item in read_index(data) if item.has_lesion]
        masks = [read_mask(items[k].mask)[0] for k in rng.permutation(len(items))[:count]]
    made = []
    for k in range(count):
        mask = torch.from_numpy(masks[k % len(masks)].astype(np.float32))[None, None]
        made.append((Letterbox(mask.shape[2], mask.shape[3], size).apply(mask)[0] >= 0.5).float())
    return torch.stack(made)


def measure(masks: torch.Tensor, share_twelve: float, batch: int) -> tuple[float, float]:
    """Masks per CPU-second, and the share of requests in their band (nan without any)."""
    corruptor = Corruptor(CorruptionConfig(share_twelve=share_twelve), 0)
    corruptor(masks[:batch])
    start, met = time.process_time(), []
    for part in masks.split(batch):
        done = corruptor(part)
        asked = done.asked[~done.asked[:, 0].isnan()]
        dice = done.dice[~done.asked[:, 0].isnan()]
        met.append((dice >= asked[:, 0] - 1e-6) & (dice <= asked[:, 1] + 1e-6))
    return len(masks) / (time.process_time() - start), float(torch.cat(met).float().mean())


def lag_one(length: float, size: int = 224) -> float:
    """Autocorrelation between neighbouring pixels of the random field."""
    cells = field_cells(size, length)
    normals = torch.randn(64, cells, cells, generator=torch.Generator().manual_seed(0))
    field = gaussian_field(normals, (size, size), torch.full((64,), length))
    return float((field[:, :, 1:] * field[:, :, :-1]).mean() / field.square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("lag-1 autocorrelation of the field, length 20 px:", round(lag_one(20.0), 4), "  goal > .9")
    for size in (224, 512):
        masks = labels(args.data, args.count if size == 224 else args.count // 2, size)
        for share, name in ((0.0, "SDF kinds, Dice target"), (1.0, "twelve kinds")):
            rate, met = measure(masks, share, args.batch)
            goal = GOALS.get((share, size))
            text = f"{name:24s} {size}: {rate:6.0f} masks per CPU-second, two cores {2 * rate:6.0f}/s"
            text += "" if goal is None else f"  (goal {goal})"
            print(text + ("" if np.isnan(met) else f", in band {100 * met:.1f} %"))


if __name__ == "__main__":
    main()
