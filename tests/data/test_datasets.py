"""``prepare``: each public layout becomes the same clean folder; nothing leaks, nothing depends on the listing."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ultrarefiner_monai.data.datalist import read_index
from ultrarefiner_monai.data.datasets import LAYOUTS, prepare
from ultrarefiner_monai.data.grouping import assign_folds, near_duplicate_groups, thumbnail
from ultrarefiner_monai.data.phantoms import make_phantom
from ultrarefiner_monai.types import InputError

COUNT = 12


def phantom(k: int, lesion: str = "benign"):
    return make_phantom(np.random.default_rng([7, k]), 60, 80, lesion)  # type: ignore[arg-type]


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_raw(dataset: str, root: Path) -> None:
    """COUNT lesion images in a dataset's own layout."""
    rows = []
    for k in range(COUNT):
        p = phantom(k)
        image, mask = p.image, p.mask * 255
        if dataset == "BUSI":
            save(image, root / "benign" / f"benign ({k + 1}).png")
            left = mask.copy()
            left[:, 40:] = 0
            save(left, root / "benign" / f"benign ({k + 1})_mask.png")
            save(mask - left, root / "benign" / f"benign ({k + 1})_mask_1.png")
        elif dataset == "BUSBRA":
            name = f"{k // 2:04d}-{'lr'[k % 2]}"
            save(image, root / "Images" / f"bus_{name}.png")
            save(mask, root / "Masks" / f"mask_{name}.png")
            rows.append({"ID": f"bus_{name}", "Case": k // 2, "Pathology": "benign"})
        elif dataset in ("BUS", "UDIAT"):
            save(image, root / "original" / f"{k:06d}.png")
            save(mask, root / "GT" / f"{k:06d}.png")
        elif dataset == "BUS_UC":
            save(image, root / "All" / "images" / f"{k:03d}.png")
            save(mask, root / "All" / "masks" / f"{k:03d}.png")
        else:
            colour = np.zeros((*mask.shape, 3), np.uint8)
            colour[..., k % 2] = mask  # red, green, red ...
            save(np.stack([image] * 3, axis=-1), root / "images" / f"ABCD{k // 3}_{k:03d}.png")
            save(colour, root / "masks" / f"ABCD{k // 3}_{k:03d}.png")
    if dataset == "BUSI":
        (root / "malignant").mkdir()
        save(phantom(99, "none").image, root / "normal" / "normal (1).png")
        save(np.zeros((60, 80), np.uint8), root / "normal" / "normal (1)_mask.png")
    if rows:
        with (root / "bus_data.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("dataset", sorted(LAYOUTS))
def test_every_layout(dataset: str, tmp_path: Path) -> None:
    write_raw(dataset, tmp_path / "raw")
    summary = prepare(dataset, tmp_path / "raw", tmp_path / "out")
    items = read_index(tmp_path / "out")
    assert len(items) == summary.written == COUNT + (dataset == "BUSI")
    masks = sorted(int((np.asarray(Image.open(i.mask)) > 0).sum()) for i in items if i.has_lesion)
    assert masks == sorted(int(phantom(k).mask.sum()) for k in range(COUNT))
    rows = {r["id"]: r for r in csv.DictReader((tmp_path / "out" / "index.csv").open())}
    if dataset in ("BUSBRA", "BUS_UCLM"):
        by_patient: dict[str, set[str]] = {}
        for row in rows.values():
            by_patient.setdefault(row["patient"], set()).add(row["fold"])
        assert len(by_patient) == (6 if dataset == "BUSBRA" else 4)
        assert all(len(folds) == 1 for folds in by_patient.values())
    if dataset == "BUS_UCLM":
        assert {r["class"] for r in rows.values()} == {"benign", "malignant"}
        assert Image.open(items[0].image).mode == "L"  # three equal channels are one


def test_pixels_are_kept(tmp_path: Path) -> None:
    write_raw("BUS", tmp_path / "raw")
    prepare("BUS", tmp_path / "raw", tmp_path / "out")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/images/000003.png")), phantom(3).image)


def test_blank_masks_are_counted_and_left_out_or_kept(tmp_path: Path) -> None:
    write_raw("BUS", tmp_path / "raw")
    save(np.zeros((60, 80), np.uint8), tmp_path / "raw" / "GT" / "000005.png")
    assert prepare("BUS", tmp_path / "raw", tmp_path / "a").blank_left_out == ["000005"]
    assert prepare("BUS", tmp_path / "raw", tmp_path / "b", keep_blank=True).written == COUNT


def test_prepare_is_reproducible_and_never_redraws(tmp_path: Path) -> None:
    write_raw("BUS", tmp_path / "raw")
    for name in ("a", "b"):
        prepare("BUS", tmp_path / "raw", tmp_path / name, seed=4)
    assert (tmp_path / "a/index.csv").read_text() == (tmp_path / "b/index.csv").read_text()
    with pytest.raises(InputError, match="never drawn again"):
        prepare("BUS", tmp_path / "raw", tmp_path / "a", seed=5)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown dataset 'FOO'; known: BUSI"):
        prepare("FOO", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="no folder"):
        prepare("BUS", tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(InputError, match="expected the folder"):
        prepare("BUS", tmp_path, tmp_path / "out")
    write_raw("BUS", tmp_path / "raw")
    save(np.full((60, 81), 255, np.uint8), tmp_path / "raw" / "GT" / "000002.png")
    with pytest.raises(InputError, match="81 x 60 pixels, its image 80 x 60"):
        prepare("BUS", tmp_path / "raw", tmp_path / "out2")
    (tmp_path / "raw" / "GT" / "000002.png").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read"):
        prepare("BUS", tmp_path / "raw", tmp_path / "out3")


def test_a_crop_is_a_near_duplicate_and_another_image_is_not() -> None:
    a, b = phantom(1).image, phantom(2).image
    thumbs = np.stack([thumbnail(a), thumbnail(a[1:, 2:]), thumbnail(b), thumbnail(np.zeros((5, 5), np.uint8))])
    assert near_duplicate_groups(thumbs) == [0, 0, 2, 3]
    assert near_duplicate_groups(thumbs, ["", "p", "p", ""]) == [0, 0, 0, 3]


def test_folds_are_balanced_and_ignore_the_order() -> None:
    groups = [f"g{k}" for k in range(200)]
    classes = ["benign" if k % 3 else "malignant" for k in range(200)]
    folds = assign_folds(groups, classes, 0)
    assert 36 <= folds.count("test") <= 44 and all(28 <= folds.count(str(k)) <= 36 for k in range(5))
    back = assign_folds(groups[::-1], classes[::-1], 0)[::-1]
    assert back == folds
