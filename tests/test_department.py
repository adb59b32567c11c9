"""benchmarks/hospital.py and department.py: who arrives when, how the radiologist's work is counted, how arms are compared."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ultrarefiner_monai.datasets.datalist import Item

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def hospital(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("hospital")


@pytest.fixture
def table(hospital: ModuleType) -> ModuleType:
    return importlib.import_module("department_table")


def items(patients: int = 12) -> list[Item]:
    nowhere = Path("nowhere")
    return [
        Item(f"i{p:02d}-{side}", nowhere, nowhere, f"patient{p}", str(p % 4), "benign", side != "n")
        for p in range(patients)
        for side in ("l", "r", "n")
    ]


def test_images_arrive_patient_by_patient_in_the_order_of_the_seed(hospital: ModuleType) -> None:
    order = hospital.arrivals(items(), 0)
    assert order == hospital.arrivals(list(reversed(items())), 0), "whatever the order of the index"
    assert len(order) == 18 and all(i.has_lesion and i.fold != "0" for i in order)
    groups = [i.group for i in order]
    assert groups[::2] == groups[1::2], "left and right of a patient follow each other"
    others = [tuple(i.id for i in hospital.arrivals(items(), seed)) for seed in range(4)]
    assert len(set(others)) == 4 and len({frozenset(o) for o in others}) == 1


def test_the_test_images_are_always_the_same_and_none_arrives(hospital: ModuleType) -> None:
    few, more, everyone = (hospital.tested(items(), n) for n in (3, 5, 0))
    assert {i.id for i in few} < {i.id for i in more} < {i.id for i in everyone}
    assert (len(few), len(more), len(everyone)) == (3, 5, 6)
    assert not {i.group for i in everyone} & {i.group for i in hospital.arrivals(items(), 0)}


def test_the_running_mean_looks_back(hospital: ModuleType) -> None:
    assert hospital.running_mean([4, 2, 0, 6], 2) == [4, 3, 1, 3]
    assert hospital.running_mean([4, 2], 9) == [4, 3]
    assert hospital.running_mean([], 3) == []


def test_a_folder_of_a_few_images_is_a_data_folder(hospital: ModuleType, tmp_path: Path) -> None:
    import csv

    from PIL import Image

    from ultrarefiner_monai.datasets.datalist import read_index

    data = tmp_path / "data"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
        for name in ("a", "b", "c"):
            Image.new("L", (8, 8), 255).save(data / folder / f"{name}.png")
    with (data / "index.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "class", "group", "fold", "n_masks"])
        rows.writerows([[n, "benign", f"p{n}", fold, 1] for n, fold in (("a", 1), ("b", 2), ("c", 0))])
    chosen = hospital.arrivals(hospital.lesion_items(data), "few")[:1]
    hospital.write_few(data, chosen, tmp_path / "few")
    (found,) = read_index(tmp_path / "few")
    assert (found.id, found.group, found.fold) == (chosen[0].id, chosen[0].group, chosen[0].fold) and found.has_lesion


def test_arms_are_compared_on_the_images_that_both_read(hospital: ModuleType) -> None:
    before = {"a": 4.0, "b": 2.0, "c": 9.0}
    found = hospital.paired_table(before, {"a": 1.0, "b": 2.0, "d": 0.0})
    assert (found["images"], found["before"], found["after"], found["difference"]) == (2, 3.0, 1.5, -1.5)
    assert found["relative"] == -0.5 and found["lower"] == 1
    with pytest.raises(ValueError, match="share no image"):
        hospital.paired_table(before, {"x": 1.0})


def test_a_row_that_was_cut_off_is_not_there(hospital: ModuleType, tmp_path: Path) -> None:
    rows = hospital.Rows(tmp_path / "rows.csv")
    assert rows.all() == []
    rows.add({"n": 1, "id": "a"})
    rows.add({"n": 2, "id": "b"})
    with rows.path.open("a") as file:
        file.write("3,c")
    assert [r["id"] for r in rows.all()] == ["a", "b"]
    rows.add({"n": 3, "id": "d"})
    assert [(r["n"], r["id"]) for r in rows.all()] == [("1", "a"), ("2", "b"), ("3", "d")]


def test_seeds_are_pooled_and_the_relative_change_is_of_the_pool(table: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for arm, factor in (("frozen", 2), ("quick", 1)):
        for seed in (0, 1):
            folder = tmp_path / f"{arm}-{seed}"
            folder.mkdir()
            for n in range(1, 101):
                row = {"n": n, "id": f"i{n}", "dice": 0.5, "clicks": factor * (1 + n % 3), "reached": 1}
                table.Rows(folder / "arrivals.csv").add(row)
            for labels in (0, 100):
                for k in range(5):
                    dice = 0.5 + (0.1 if labels and factor == 1 else 0) + 0.01 * k
                    row = {"labels": labels, "id": f"t{k}", "dice": dice, "clicks": int(rng.integers(3, 5))}
                    table.Rows(folder / "test.csv").add(row)
    text = table.report(tmp_path)
    assert "| quick, 2 | 1 to 40 | " in text and "-50 %" in text
    assert "| quick, 2 | 100 | 0.5200 | 0.6200 | +0.1000" in text
    assert (tmp_path / "curves.png").stat().st_size > 5000 and "101 to 200" not in text


@pytest.fixture
def strategies(hospital: ModuleType) -> ModuleType:
    return importlib.import_module("strategies")


def test_random_draws_a_blank_image_in_place_of_one_in_ten(strategies: ModuleType) -> None:
    found = np.arange(400) % 4 > 0  # a quarter is blank
    chosen = strategies.foreground_random(found, 200, np.random.default_rng(0))
    assert len(set(chosen)) == 200 and 8 <= (~found[chosen]).sum() <= 35
    assert chosen == strategies.foreground_random(found, 200, np.random.default_rng(0))
    assert sorted(strategies.foreground_random(found, 400, np.random.default_rng(1))) == list(range(400))
    assert len(strategies.foreground_random(np.zeros(5, bool), 3, np.random.default_rng(0))) == 3


def test_the_fewest_labels_that_reach_what_random_reaches(strategies: ModuleType, tmp_path: Path) -> None:
    rows = strategies.Rows(tmp_path / "rows.csv")
    for strategy, dices in (("random", (0.5, 0.6)), ("recommended", (0.62, 0.61)), ("diverse", (0.5, 0.55))):
        for labels, dice in zip((50, 200), dices):
            for seed in (0, 1):
                rows.add({"strategy": strategy, "seed": seed, "labels": labels, "id": "a", "dice": dice})
    text = strategies.report(rows, 200)
    assert "random with 200 labels: 0.6000" in text
    assert "recommended: 50 labels" in text and "diverse: never" in text
    assert "at 200 against random: +0.0100" in text


def test_labels_of_noise_are_blobs_and_mark_what_lesions_do(hospital: ModuleType) -> None:
    blobs = importlib.import_module("poisoned").blobs
    one, other = (blobs((90, 120), np.random.default_rng(n)) for n in (0, 1))
    assert 0.14 < one.mean() < 0.16 and (one != other).mean() > 0.1
    assert (one[1:] == one[:-1]).mean() > 0.95, "no salt and pepper"
