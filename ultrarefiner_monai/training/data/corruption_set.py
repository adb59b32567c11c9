"""A fixed set of corrupted masks on disk, for those who want one: sharded, resumable, with its statistics and a picture.

A shard depends on (seed, its number) alone, so that a run that was stopped goes on where it was, in any number of
processes. Files of a set:

    set.json             what was asked for; a run with other options refuses to add to it
    labels.npz           labels (L, size, size) uint8 0 or 1, ids (L,)
    shard_00000.npz, …   corrupted (n, size, size) uint8 (probability times 255, above 127 where it is above one half),
                         label (n,) row in labels.npz, dice (n,), asked (n, 2) or NaN, kind (n,) text
    statistics.json      share of requests in their band, histograms of Dice by kind
    contact_sheet.png    all kinds on one label
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ultrarefiner_monai.config import CorruptionConfig, to_dict
from ultrarefiner_monai.core.files import replacing
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.imaging.readers import read_mask
from ultrarefiner_monai.training.data.corruptions import KINDS, Corruptor

BATCH = 50


def write_set(
    data: str | Path,
    out: str | Path,
    samples: int,
    size: int = 224,
    seed: int = 0,
    shard: int = 1000,
    workers: int = 1,
    config: CorruptionConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Corrupt the labels of the clean folder ``data``, each about as often, into ``out``; returns the statistics.

    Shards that are there are kept. Raises InputError where ``out`` holds a set made with other options, where the folder
    has no lesion, or where a number makes no sense.
    """
    for name, value, least in (
        ("samples", samples, 1),
        ("size", size, 16),
        ("shard", shard, 1),
        ("workers", workers, 1),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    config, out = config or CorruptionConfig(), Path(out)
    items = read_index(data)
    out.mkdir(parents=True, exist_ok=True)
    asked = {"ids": [i.id for i in items], "samples": samples, "size": size, "seed": seed, "shard": shard}
    _claim(out / "set.json", {**asked, "corruption": to_dict(config)})
    labels = np.stack([_label(item.mask, size) for item in items])
    if not labels.any():
        raise InputError(f"{data}: no mask holds a lesion, there is nothing to corrupt")
    _save(out / "labels.npz", labels=labels, ids=np.array(asked["ids"]))
    numbers = range(-(-samples // shard))
    missing = [k for k in numbers if not _shard(out, k).is_file()]
    jobs = [(out, k, min(shard, samples - k * shard), shard, seed, config) for k in missing]
    for done, _ in enumerate(_run(jobs, workers), len(numbers) - len(missing) + 1):
        progress(min(done * shard, samples), samples)
    largest = labels[int(labels.sum((1, 2)).argsort()[len(labels) * 3 // 4])].astype(bool)
    with replacing(out / "contact_sheet.png") as file:
        contact_sheet(largest, config, seed).save(file, format="PNG")
    figures = statistics([_shard(out, k) for k in numbers])
    with replacing(out / "statistics.json", "w") as file:
        json.dump(figures, file, indent=2)
    return figures


def statistics(shards: list[Path]) -> dict[str, Any]:
    """samples, requests (those with a band), in_band (share of them), and per kind count, mean Dice and a histogram of
    ten bins of .1."""
    parts = []
    for path in shards:
        with np.load(path) as stored:
            parts.append((stored["dice"], stored["asked"], stored["kind"]))
    dice, asked, kind = (np.concatenate(column) for column in zip(*parts))
    wanted = ~np.isnan(asked[:, 0])
    inside = (dice >= asked[:, 0] - 1e-6) & (dice <= asked[:, 1] + 1e-6)
    kinds = {
        str(name): {
            "count": int((kind == name).sum()),
            "mean_dice": float(dice[kind == name].mean()),
            "histogram": np.histogram(dice[kind == name], 10, (0, 1))[0].tolist(),
        }
        for name in np.unique(kind)
    }
    share = float(inside[wanted].mean()) if wanted.any() else None
    return {"samples": len(dice), "requests": int(wanted.sum()), "in_band": share, "kinds": kinds}


def contact_sheet(label: np.ndarray, config: CorruptionConfig, seed: int = 0, columns: int = 6) -> Image.Image:
    """One picture of every kind on one label (H, W) bool: probability in grey, the label's outline in orange."""
    corruptor = Corruptor(config, seed)
    mask = torch.from_numpy(label)[None, None].float()
    batch = corruptor.as_kinds(mask.repeat(len(KINDS), 1, 1, 1), KINDS)
    inner = label.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(label, step, axis)
    tiles = [("label", label.astype(np.float32))]
    for name, prob, dice in zip(KINDS, batch.corrupted_prob[:, 0].cpu().numpy(), batch.dice.tolist()):
        tiles.append((f"{name}  {dice:.2f}", prob))
    height, width = label.shape[0] + 14, label.shape[1] + 4
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), (40, 40, 44))
    pen = ImageDraw.Draw(sheet)
    for k, (text, prob) in enumerate(tiles):
        x, y = k % columns * width + 2, k // columns * height
        rgb = np.repeat((prob * 255).round().astype(np.uint8)[..., None], 3, 2)
        rgb[label & ~inner] = (255, 150, 40)
        pen.text((x + 2, y + 1), text, fill=(235, 235, 235))
        sheet.paste(Image.fromarray(rgb), (x, y + 13))
    return sheet


# --- shards -----------------------------------------------------------------------------------------------------------


def _claim(path: Path, wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(k for k in wanted if there.get(k) != wanted[k])
        if other:
            raise InputError(f"{path.parent} holds a set made with other {', '.join(other)}: give another --out")
        return
    with replacing(path, "w") as file:
        json.dump(wanted, file, indent=1)


def _label(path: Path, size: int) -> np.ndarray:
    mask = torch.from_numpy(read_mask(path)[0].astype(np.float32))[None, None]
    return (Letterbox(mask.shape[2], mask.shape[3], size).apply(mask)[0, 0] >= 0.5).numpy().astype(np.uint8)


def _shard(out: Path, number: int) -> Path:
    return out / f"shard_{number:05d}.npz"


def _save(path: Path, **arrays: np.ndarray) -> None:
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _run(jobs: list[tuple], workers: int) -> Iterator[None]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_write_shard, jobs)
        return
    # Fresh processes: a fork of one that has used torch's threads may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(_write_shard, jobs)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write_shard(job: tuple[Path, int, int, int, int, CorruptionConfig]) -> None:
    out, number, count, shard, seed, config = job
    with np.load(out / "labels.npz") as stored:
        labels = torch.from_numpy(stored["labels"])[:, None]
    # The labels in a shuffled order, over and over: sample i of the set is row i of that.
    place = np.arange(number * shard, number * shard + count)
    rounds = {
        int(r): np.random.default_rng([seed, 1, int(r)]).permutation(len(labels)) for r in set(place // len(labels))
    }
    rows = np.array([rounds[int(p // len(labels))][p % len(labels)] for p in place])
    corruptor = Corruptor(config, int(np.random.SeedSequence([seed, 0, number]).generate_state(1)[0]))
    batches = [corruptor(labels[rows[i : i + BATCH]].float()) for i in range(0, count, BATCH)]
    _save(
        _shard(out, number),
        corrupted=np.concatenate([_eight_bits(batch.corrupted_prob[:, 0]) for batch in batches]),
        label=rows.astype(np.int32),
        dice=torch.cat([batch.dice for batch in batches]).numpy(),
        asked=torch.cat([batch.asked for batch in batches]).numpy(),
        kind=np.array([name for batch in batches for name in batch.kind]),
    )


def _eight_bits(prob: torch.Tensor) -> np.ndarray:
    """[0, 1] -> uint8, on the same side of one half as before."""
    scaled = (prob * 255).round()
    return torch.where(prob > 0.5, scaled.clamp(min=128), scaled.clamp(max=127)).to(torch.uint8).numpy()
