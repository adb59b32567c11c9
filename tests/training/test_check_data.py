"""Faults in the data that are said before a run starts, each with the image's name."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.config import TrainConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index, split_fold
from ultrarefiner_monai.training.check_data import check_data
from ultrarefiner_monai.training.run import train


@pytest.fixture(scope="module")
def sound(tmp_path_factory, write_clean_folder) -> Path:
    return write_clean_folder(tmp_path_factory.mktemp("check") / "d", 24)


def several_values(path: Path) -> None:
    values = np.asarray(Image.open(path).convert("L")).copy()
    values[:4] = 100
    Image.fromarray(values).save(path)


def other_size(path: Path) -> None:
    Image.open(path).crop((0, 0, 40, 40)).save(path)


def empty(path: Path) -> None:
    Image.new("1", Image.open(path).size).save(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "several values": ("masks", several_values, r"p01: its label holds the values 0, 100, 255; expected 0 and one"),
    "other size": ("masks", other_size, r"p01: its label is 40 x 40 pixels, its image 65 x 48"),
    "empty": ("masks", empty, r"p01: index.csv says it shows a lesion, but its label is empty"),
    "truncated": ("images", truncated, r"p01: its image or label cannot be read"),
    "not a picture": ("masks", lambda p: p.write_text("junk") and None, r"p01: its image or label cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_before_anything_is_written(sound: Path, tmp_path: Path, fault: str) -> None:
    part, spoil, message = FAULTS[fault]
    data = tmp_path / "d"
    shutil.copytree(sound, data)
    spoil(data / part / "p01.png")
    with pytest.raises(InputError, match=message):
        train(TrainConfig(), data, 0, tmp_path / "r", device="cpu")
    assert not (tmp_path / "r").exists()


def test_sound_data_passes_and_a_fold_without_lesions_does_not(sound: Path, tmp_path: Path) -> None:
    check_data(split_fold(read_index(sound), 0))
    data = tmp_path / "d"
    shutil.copytree(sound, data)
    rows = list(csv.DictReader((data / "index.csv").open()))
    for row in rows:
        row["fold"] = row["fold"] if row["fold"] != "0" else "0" if row["class"] == "normal" else "1"
        row["group"] = row["id"]
    with (data / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(InputError, match=r"fold held out \(0\) holds no image with a lesion.*another --fold"):
        check_data(split_fold(read_index(data), 0))


def test_many_faults_are_counted(sound: Path, tmp_path: Path) -> None:
    data = tmp_path / "d"
    shutil.copytree(sound, data)
    for path in (data / "masks").iterdir():
        empty(path)
    with pytest.raises(InputError, match=r"p\d\d: .*; p\d\d: .*; 13 more$"):
        check_data(split_fold(read_index(data), 0))
