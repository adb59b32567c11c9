"""A simulated hospital: images that arrive patient by patient, and a radiologist made of rules who corrects each one.

What ``department.py``, ``strategies.py`` and ``poisoned.py`` share. The radiologist is the robot of
``ultrarefiner_monai/interaction/robot.py``: it clicks on the largest mistake until Dice is .9, 20 times at most, and then saves
the reference label itself, as a careful user who finishes by hand would. No human has done any of it.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.datasets.datalist import Item, read_index
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.interaction.robot import MOST_CLICKS, Click, play
from ultrarefiner_monai.masks.metrics import paired_bootstrap
from ultrarefiner_monai.masks.overlap import dice_of
from ultrarefiner_monai.pipeline.predictor import Predictor

CONTENT = 0.9  # the Dice at which the radiologist stops clicking
TEST_FOLD = "0"
CACHE_BYTES = 8 * 2**30


# --- who comes when ----------------------------------------------------------------------------------------------------


def arrivals(items: Sequence[Item], seed: int | str, test_fold: str = TEST_FOLD) -> list[Item]:
    """The images with a lesion outside the test fold, in the order of arrival: patients in the order of a seeded hash of
    their group, the images of one patient together, by id."""
    chosen = [i for i in items if i.has_lesion and i.fold not in (test_fold, "test")]
    return sorted(chosen, key=lambda i: (_hash(f"arrival {seed}: {i.group}"), i.group, i.id))


def write_few(data: Path, items: Sequence[Item], out: Path) -> None:
    """``items`` of a prepared folder as a prepared folder of their own, none of them in fold 0."""
    with (data / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    for item in items:
        shutil.copyfile(item.image, out / "images" / item.image.name)
        shutil.copyfile(item.mask, out / "masks" / item.mask.name)
    with (out / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[items[0].id]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[item.id] for item in items)


def tested(items: Sequence[Item], count: int, fold: str = TEST_FOLD) -> list[Item]:
    """``count`` lesion images of the test fold (0: all), always the same: the curves' points are measured on them."""
    chosen = sorted((i for i in items if i.has_lesion and i.fold == fold), key=lambda i: _hash(f"0:{i.id}"))
    return sorted(chosen[:count] if count else chosen, key=lambda i: i.id)


def _hash(name: str) -> str:
    """Not that of the labels' validation split, or the first to come would be those that validate."""
    return hashlib.sha256(name.encode()).hexdigest()


# --- the radiologist ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """One image read. dice: of the automatic result; clicks: how many were made until Dice .9; reached: whether it was;
    last: Dice after the last click; made: the clicks themselves, (x, y, positive)."""

    id: str
    dice: float
    clicks: int
    reached: bool
    last: float
    made: tuple[Click, ...] = ()

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "dice": f"{self.dice:.5f}",
            "clicks": self.clicks,
            "reached": int(self.reached),
            "last": f"{self.last:.5f}",
        }


def pixels(item: Item) -> tuple[np.ndarray, np.ndarray]:
    """image (H, W) float32 in [0, 1], label (H, W) bool."""
    return read_image_file(item.image).frame(0), read_mask(item.mask)[0].astype(bool)


def read(predictor: Predictor, item: Item, limit: int = MOST_CLICKS) -> Read:
    """The radiologist reads one image with this predictor's help. limit 0: the automatic result alone."""
    image, label = pixels(item)
    start = predictor.propose(image).mask
    if not limit:
        dice = dice_of(start, label)
        return Read(item.id, dice, 0, dice >= CONTENT, dice)
    game = play(lambda clicks: predictor.interact(image, clicks).mask, start, label, limit, until=CONTENT)
    needed = game.clicks_to(CONTENT)
    return Read(
        item.id, game.dice[0], limit if needed is None else needed, needed is not None, game.dice[-1], game.clicks
    )


def disk_cache(folder: Path) -> EmbeddingCache:
    """What depends on the image and on coarse network and encoder alone: computed once, fp16, as the server keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    return EmbeddingCache(256 * 2**20, folder, CACHE_BYTES)


def lesion_items(data: Path) -> list[Item]:
    return [i for i in read_index(data) if i.has_lesion]


# --- files and figures -----------------------------------------------------------------------------------------------------------


class Rows:
    """A CSV file that only grows: a row is there whole or not at all when the run is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def add(self, row: dict[str, Any]) -> None:
        new = not self.path.exists()
        if not new and not (text := self.path.read_text(encoding="utf-8")).endswith("\n"):
            self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last ``window`` values up to each one; of all so far where there are fewer."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return [float(x) for x in (total[ends] - total[starts]) / (ends - starts)]


def paired_table(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Two arms' figures by image -> means, difference, 95 % interval and p of those that both have, paired.

    Raises ValueError when they share no image.
    """
    ids = sorted(before.keys() & after.keys())
    if not ids:
        raise ValueError("the two arms share no image")
    return paired_bootstrap(np.array([before[i] for i in ids]), np.array([after[i] for i in ids])).to_dict()
