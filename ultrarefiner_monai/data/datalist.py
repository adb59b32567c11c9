"""A clean data folder (images/, masks/, index.csv) as items, and the splits that a run needs.

A split is a column of index.csv: it is written once by ``prepare`` and only read here. The inner validation split of a
run is drawn from the training folds by whole groups, seeded, and independent of the order of the file.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.types import InputError

REQUIRED = ("id", "group", "fold")
# Folds besides "0".."4" and "test" (never used by a run): a selection part that the index itself fixes, and the name under
# which nothing is held out.
SELECT_FOLD = "select"
NO_FOLD = "none"


@dataclass(frozen=True)
class Item:
    """One image with its label. group: images that must stay together. fold: "0".."4", "test", or ``SELECT_FOLD``.

    set: the name of the data folder it is from, as a rule a hospital's. device: the scanner, "" where it is not known.
    """

    id: str
    image: Path
    mask: Path
    group: str
    fold: str
    category: str
    has_lesion: bool
    set: str = ""
    device: str = ""

    @property
    def key(self) -> str:
        """Its name among the images of several sets: SET/ID, the id alone where no set is named."""
        return f"{self.set}/{self.id}" if self.set else self.id


@dataclass(frozen=True)
class Split:
    """Three disjoint lists: trained on, used to select the checkpoint, and only reported."""

    train: tuple[Item, ...]
    select: tuple[Item, ...]
    report: tuple[Item, ...]


def read_index(data_dir: str | Path) -> list[Item]:
    """The items of a clean folder, sorted by id. Raises InputError when the folder or a file it names is missing."""
    data_dir = Path(data_dir)
    index = data_dir / "index.csv"
    if not index.is_file():
        raise InputError(f"no index.csv in {data_dir}: expected a folder made by `ultrarefiner prepare`")
    with index.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lacking = [c for c in REQUIRED if rows and c not in rows[0]]
    if not rows or lacking:
        raise InputError(f"{index}: {'lacks the column(s) ' + ', '.join(lacking) if lacking else 'has no rows'}")
    items = [_item(data_dir, row) for row in rows]
    missing = [str(p) for i in items for p in (i.image, i.mask) if not p.is_file()]
    if missing:
        raise InputError(f"{index} names files that are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    ids = [i.id for i in items]
    if len(set(ids)) != len(ids):
        raise InputError(f"{index}: ids are not unique: {sorted({i for i in ids if ids.count(i) > 1})[:3]}")
    return sorted(items, key=lambda i: i.id)


def _item(data_dir: Path, row: dict[str, str]) -> Item:
    fraction = row.get("lesion_fraction") or ""
    category = row.get("class") or ""
    try:
        share = float(fraction) if fraction else None
    except ValueError as error:
        raise InputError(f"index.csv, {row['id']}: lesion_fraction must be a number, got {fraction!r}") from error
    return Item(
        id=row["id"],
        image=data_dir / "images" / f"{row['id']}.png",
        mask=data_dir / "masks" / f"{row['id']}.png",
        group=row["group"] or row["id"],
        fold=row["fold"],
        category=category,
        has_lesion=share > 0 if share is not None else category != "normal",
        set=data_dir.resolve().name,
        device=(row.get("device") or "").strip(),
    )


def split_fold(items: list[Item], fold: str | int, select_share: float = 0.15, seed: int = 0) -> Split:
    """Hold out one fold for reporting; draw whole groups of the rest, about ``select_share``, for selection.

    The test split never enters. Where the index has images of the fold ``select``, they are the selection part, and
    nothing is drawn. ``fold`` "none" holds nothing out.
    """
    fold = str(fold)
    folds = sorted({i.fold for i in items})
    if fold not in folds and fold != NO_FOLD:
        raise InputError(f"fold {fold} does not exist; this data has {', '.join(folds)}")
    if not 0 < select_share < 1:
        raise ValueError(f"select_share must be between 0 and 1, got {select_share}")
    rest = [i for i in items if i.fold not in (fold, "test")]
    chosen = {i.group for i in rest if i.fold == SELECT_FOLD} or _draw(rest, select_share, seed)
    split = Split(
        train=tuple(i for i in rest if i.group not in chosen),
        select=tuple(i for i in rest if i.group in chosen),
        report=tuple(i for i in items if i.fold == fold),
    )
    _check(split, fold)
    return split


def _draw(items: list[Item], share: float, seed: int) -> set[str]:
    """Groups that hold about ``share`` of the items, in the order of a seeded hash of their names."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.group] = sizes.get(item.group, 0) + 1
    chosen: set[str] = set()
    taken = 0
    for group in sorted(sizes, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).hexdigest()):
        if taken >= share * len(items):
            break
        chosen.add(group)
        taken += sizes[group]
    return chosen


def _check(split: Split, fold: str) -> None:
    for name, part in (("training", split.train), ("selection", split.select)):
        if not any(i.has_lesion for i in part):
            raise InputError(f"the {name} part for fold {fold} holds no image with a lesion; check index.csv's folds")
    shared = {i.group for i in split.report} & {i.group for i in (*split.train, *split.select)}
    if shared:
        raise InputError(f"groups stand in several folds and would leak: {', '.join(sorted(shared)[:3])}")
