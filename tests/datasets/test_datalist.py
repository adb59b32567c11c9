from __future__ import annotations

import csv
import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import held_out, names_of, read_index, read_sets, split_fold, split_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("clean") / "d", 30)


def test_parts_are_disjoint_whole_groups_and_complete(folder: Path) -> None:
    items = read_index(folder)
    split = split_fold(items, 1, 0.3)
    parts = [split.train, split.select, split.report]
    assert sorted(i.id for p in parts for i in p) == [i.id for i in items]
    groups = [{i.group for i in p} for p in parts]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert {i.fold for i in split.report} == {"1"}


def test_the_order_of_the_file_does_not_matter(folder: Path, tmp_path: Path) -> None:
    before = split_fold(read_index(folder), 0)
    rows = list(csv.DictReader((folder / "index.csv").open()))
    random.Random(3).shuffle(rows)
    shuffled = tmp_path / "s"
    shuffled.mkdir()
    for sub in ("images", "masks"):
        (shuffled / sub).symlink_to(folder / sub)
    with (shuffled / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    after = split_fold(read_index(shuffled), 0)
    for name in ("train", "select", "report"):
        assert [i.id for i in getattr(before, name)] == [i.id for i in getattr(after, name)]


def test_seed_draws_another_selection_but_the_same_report(folder: Path) -> None:
    items = read_index(folder)
    a, b = split_fold(items, 0, 0.3, seed=0), split_fold(items, 0, 0.3, seed=1)
    assert a.report == b.report and a.select != b.select


def rewrite(folder: Path, change) -> None:
    rows = list(csv.DictReader((folder / "index.csv").open()))
    rows = change(rows)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [{k: v for k, v in r.items() if k != "group"} for r in rows], "lacks the column.*group"),
        (lambda rows: [*rows, rows[0]], "ids are not unique"),
        (lambda rows: [*rows, {**rows[0], "id": "ghost"}], "missing"),
        (lambda rows: [{**r, "group": "one"} for r in rows], "would leak|no image with a lesion"),
        (lambda rows: [{**r, "lesion_fraction": 0} for r in rows], "no image with a lesion"),
    ],
)
def test_unusable_indexes_are_refused(tmp_path: Path, write_clean_folder, change, words: str) -> None:
    folder = write_clean_folder(tmp_path / "d", 12)
    rewrite(folder, change)
    with pytest.raises(InputError, match=words):
        split_fold(read_index(folder), 0)


def test_missing_folder_and_fold_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="no index.csv"):
        read_index(tmp_path)
    with pytest.raises(InputError, match="fold 7 does not exist; this data has 0, 1, 2"):
        split_fold(read_index(folder), 7)


def test_an_index_may_fix_the_selection_itself_and_hold_nothing_out(folder: Path) -> None:
    items = [replace(i, fold="select" if i.group in ("g0", "g4") else "train") for i in read_index(folder)]
    split = split_fold(items, "none", 0.5)
    assert {i.group for i in split.select} == {"g0", "g4"} and not split.report
    assert len(split.train) + len(split.select) == len(items)


# --- several sets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory, write_clean_folder) -> list[Path]:
    """Two folders with the same ids, groups and folds."""
    root = tmp_path_factory.mktemp("sets")
    return [write_clean_folder(root / name, count, seed) for seed, (name, count) in enumerate((("b", 24), ("a", 18)))]


def test_one_folder_is_split_as_ever(folder: Path) -> None:
    items = read_index(folder)
    assert read_sets(folder) == read_sets([folder]) == items and names_of(items) == [i.id for i in items]
    for fold, seed in itertools.product((0, "1", "none"), (0, 7)):
        assert split_sets(items, fold, 0.2, seed) == split_fold(items, fold, 0.2, seed)
    # As the version before drew them: a changed draw would train new runs on images that judged the old ones.
    assert sorted({i.group for i in split_fold(items, 0, 0.2, 0).select}) == ["g1", "g8"]


def test_each_set_is_split_as_it_would_be_alone(sets: list[Path]) -> None:
    items = read_sets(sets)
    assert [i.key for i in items] == sorted(i.key for i in items) and len(items) == 42
    joint = split_sets(items, 1, 0.3, 3)
    for data in sets:
        own = split_fold(read_index(data), 1, 0.3, 3)
        for part in ("train", "select", "report"):
            assert [i for i in getattr(joint, part) if i.set == data.name] == list(getattr(own, part))
    assert len({*names_of(items)}) == len(items)
    assert split_sets(read_sets(sets[::-1]), 1, 0.3, 3) == joint


def test_a_set_left_out_is_reported_whole_and_only_that(sets: list[Path]) -> None:
    items = read_sets(sets)
    split = split_sets(items, 0, 0.3, 0, ["b"])
    assert {i.set for i in (*split.train, *split.select)} == {"a"}
    assert [i for i in split.report if i.set == "b"] == [i for i in items if i.set == "b"]
    assert {i.fold for i in split.report if i.set == "a"} == {"0"}
    assert held_out(items, 0, ["b"]) == sorted(split.report, key=lambda i: i.key)
    assert split_sets(items, "none", 0.3, 0, ["b"]).report == tuple(i for i in items if i.set == "b")
    # A left-out set needs no such fold, one that is trained on does.
    moved = [replace(i, fold="9") if i.set == "b" else i for i in items]
    assert len(split_sets(moved, 0, 0.3, 0, ["b"]).report) == len(split.report)
    with pytest.raises(InputError, match="fold 0 does not exist; b has 9"):
        split_sets(moved, 0)
    with pytest.raises(InputError, match="b has no image in fold 0; it has 9"):
        held_out(moved, 0)


def test_what_is_no_list_of_sets_is_refused(sets: list[Path], tmp_path: Path) -> None:
    items = read_sets(sets)
    with pytest.raises(InputError, match="no such set among the data .a, b."):
        split_sets(items, 0, leave_out=["c"])
    with pytest.raises(InputError, match=r"names every set \(a, b\): none is left to train on"):
        split_sets(items, 0, leave_out=["a", "b"])
    with pytest.raises(InputError, match="different names"):
        read_sets([sets[0], sets[0]])
    with pytest.raises(InputError, match="at least one"):
        read_sets([])
    (tmp_path / "a+c").symlink_to(sets[1])
    assert {i.set for i in read_sets([tmp_path / "a+c"])} == {"a"}  # a link is called after what it names
