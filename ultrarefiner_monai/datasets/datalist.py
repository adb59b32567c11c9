"""Clean data folders (images/, masks/, index.csv) as items, and the splits that a run needs.

A split is a column of index.csv: it is written once by ``prepare`` and only read here. The inner validation split of a
run is drawn from the training folds by whole groups, seeded, and independent of the order of the file. Several folders
make one list: each is a *set* with folds and groups of its own, as a rule the images of one hospital.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.core.views import canonical_view

REQUIRED = ("id", "group", "fold")
# Folds besides "0".."4" and "test" (never used by a run): a selection part that the index itself fixes, and the name under
# which nothing is held out.
SELECT_FOLD = "select"
NO_FOLD = "none"
# Between the names of several sets, in a checkpoint's meta and in tables.
JOINT = "+"
# One data folder, or several.
DataDirs = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Item:
    """One image with its label. group: images that must stay together. fold: "0".."4", "test", or ``SELECT_FOLD``.

    set: the name of the data folder it is from, as a rule a hospital's. device: the scanner, "" where it is not known. view:
    how the probe was held (``core.views``), "" where it is not known.
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
    view: str = ""

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
        view=canonical_view(row.get("view") or ""),
    )


def folders(data: DataDirs) -> list[Path]:
    """One path or several -> a list of paths."""
    return [Path(data)] if isinstance(data, str | Path) else [Path(d) for d in data]


def read_sets(dirs: DataDirs) -> list[Item]:
    """The items of all folders, sorted by key.

    Raises InputError for none, for several of one name (the name identifies their images), and what ``read_index`` raises.
    """
    paths = folders(dirs)
    if not paths:
        raise InputError("expected at least one data folder, got none")
    names = [p.resolve().name for p in paths]
    if len(set(names)) != len(names):
        raise InputError(f"several data folders need different names, got {', '.join(map(str, paths))}: rename one")
    if len(names) > 1 and any(JOINT in name for name in names):
        raise InputError(f"a data folder's name must not hold {JOINT!r} where there are several: {', '.join(names)}")
    return sorted((item for path in paths for item in read_index(path)), key=lambda i: i.key)


def sets_of(items: Sequence[Item]) -> list[str]:
    """The names of the sets that the items are from, sorted."""
    return sorted({i.set for i in items})


def data_name(items: Sequence[Item]) -> str:
    """What a checkpoint and a table call this data: the names of its sets, joined by +."""
    return JOINT.join(sets_of(items))


def names_of(items: Sequence[Item]) -> list[str]:
    """A unique name for each item: its id where all are of one set, else its key (SET/ID)."""
    several = len(sets_of(items)) > 1
    return [i.key if several else i.id for i in items]


def group_of(item: Item) -> str:
    """The group that it is balanced in: the images of its set and scanner. An unknown one is one group of the set."""
    return f"{item.set}/{item.device}"


def split_fold(items: Sequence[Item], fold: str | int, select_share: float = 0.15, seed: int = 0) -> Split:
    """Hold out one fold for reporting; draw whole groups of the rest, about ``select_share``, for selection.

    The test split never enters. Where the index has images of the fold ``select``, they are the selection part, and
    nothing is drawn. ``fold`` "none" holds nothing out.
    """
    split = _split_one(items, str(fold), select_share, seed, "this data")
    _check(split, str(fold))
    return split


def split_sets(
    items: Sequence[Item],
    fold: str | int,
    select_share: float = 0.15,
    seed: int = 0,
    leave_out: Sequence[str] = (),
) -> Split:
    """``split_fold`` of each set, put together: every set gives its fold ``fold`` and its own share for selection.

    A set is split as it would be alone. Sets in ``leave_out`` are reported as a whole, whatever their folds; nothing of
    them is trained on or selected by. Raises InputError for a set without the fold and for a left-out one that is not
    there.
    """
    fold, names = str(fold), sets_of(items)
    check_left_out(items, leave_out)
    if names and set(names) <= set(leave_out):
        raise InputError(
            f"--leave-out names every set ({', '.join(names)}): none is left to train on; give more --data"
        )
    parts: dict[str, list[Item]] = {"train": [], "select": [], "report": []}
    for name in names:
        own = [i for i in items if i.set == name]
        if name in leave_out:
            parts["report"] += own
            continue
        found = _split_one(own, fold, select_share, seed, name if len(names) > 1 else "this data")
        for part, chosen in vars(found).items():
            parts[part] += chosen
    split = Split(**{part: tuple(chosen) for part, chosen in parts.items()})
    _check(split, fold)
    return split


def held_out(items: Sequence[Item], fold: str | int, leave_out: Sequence[str] = ()) -> list[Item]:
    """What is reported of ``items``: the fold of each set, and all of a set that is left out.

    Raises InputError for a set that has nothing to report, and for a left-out one that is not there.
    """
    check_left_out(items, leave_out)
    found = [i for i in items if i.set in leave_out or i.fold == str(fold)]
    empty = sorted(set(sets_of(items)) - set(sets_of(found)))
    if empty:
        folds = sorted({i.fold for i in items if i.set == empty[0]})
        raise InputError(f"{empty[0]} has no image in fold {fold}; it has {', '.join(folds)}")
    return found


def check_left_out(items: Sequence[Item], leave_out: Sequence[str]) -> None:
    """Raise InputError when a set that is to be left out is not among the data."""
    names = sets_of(items)
    strange = sorted(set(leave_out) - set(names))
    if strange:
        raise InputError(
            f"--leave-out {strange[0]}: there is no such set among the data ({', '.join(names)}); a set is called after "
            "its folder"
        )


def _split_one(items: Sequence[Item], fold: str, select_share: float, seed: int, name: str) -> Split:
    folds = sorted({i.fold for i in items})
    if fold not in folds and fold != NO_FOLD:
        raise InputError(f"fold {fold} does not exist; {name} has {', '.join(folds)}")
    if not 0 < select_share < 1:
        raise ValueError(f"select_share must be between 0 and 1, got {select_share}")
    rest = [i for i in items if i.fold not in (fold, "test")]
    chosen = {i.group for i in rest if i.fold == SELECT_FOLD} or _draw(rest, select_share, seed)
    return Split(
        train=tuple(i for i in rest if i.group not in chosen),
        select=tuple(i for i in rest if i.group in chosen),
        report=tuple(i for i in items if i.fold == fold),
    )


def _draw(items: Sequence[Item], share: float, seed: int) -> set[str]:
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
    # Groups of different sets have nothing to do with each other, whatever they are called.
    shared = {(i.set, i.group) for i in split.report} & {(i.set, i.group) for i in (*split.train, *split.select)}
    if shared:
        names = ", ".join(group for _, group in sorted(shared)[:3])
        raise InputError(f"groups stand in several folds and would leak: {names}")
