"""``prepare``: each public layout becomes the same clean folder; nothing leaks, nothing depends on the listing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_coco import lengths

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.datasets.datalist import read_index
from ultrarefiner_monai.datasets.grouping import assign_folds, near_duplicate_groups, thumbnail
from ultrarefiner_monai.datasets.layouts import LAYOUTS, prepare
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.imaging.readers import read_image_file

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
        elif dataset == "COCO":
            save(image, root / "images" / f"{k:03d}.png")
            rows.append({"id": k, "image_id": k, "category_id": 1, "segmentation": lengths(mask > 0)})
        else:
            colour = np.zeros((*mask.shape, 3), np.uint8)
            colour[..., k % 2] = mask  # red, green, red ...
            save(np.stack([image] * 3, axis=-1), root / "images" / f"ABCD{k // 3}_{k:03d}.png")
            save(colour, root / "masks" / f"ABCD{k // 3}_{k:03d}.png")
    if dataset == "COCO":
        images = [{"id": k, "file_name": f"{k:03d}.png"} for k in range(COUNT)]
        values = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "benign"}]}
        (root / "instances.json").write_text(json.dumps(values))
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


# --- what pictures and masks mean -------------------------------------------------------------------------------------


def one_raw(root: Path, image: Image.Image, mask: Image.Image, number: int = 1, **options: object) -> None:
    """An image of BUSI with its mask."""
    for name in ("benign", "malignant", "normal"):
        (root / name).mkdir(parents=True, exist_ok=True)
    image.save(root / "benign" / f"benign ({number}).png", **options)
    mask.save(root / "benign" / f"benign ({number})_mask.png")


def written(out: Path, number: int = 1) -> tuple[np.ndarray, np.ndarray]:
    name = f"benign_{number:04d}.png"
    return tuple(np.asarray(Image.open(out / sub / name)) for sub in ("images", "masks"))  # type: ignore[return-value]


def test_wide_pixels_are_prepared_as_they_are_served(tmp_path: Path) -> None:
    """16 bits, 12 bits in 16, 32 bits and fractions: no white pictures; 8 bits and colours stay as they are."""
    p = phantom(0)
    mask, grey = Image.fromarray(p.mask * 255), p.image.astype(int)
    for number, pixels in enumerate(
        (grey.astype(np.uint16) * 257, grey.astype(np.uint16) * 16, (grey / 255).astype(np.float32)), start=1
    ):
        raw, out = tmp_path / f"raw{number}", tmp_path / f"out{number}"
        if pixels.dtype == np.float32:
            one_raw(raw, Image.fromarray(p.image), mask)
            (raw / "benign" / "benign (1).png").unlink()
            Image.fromarray(pixels).save(raw / "benign" / "benign (1).tif")
        else:
            one_raw(raw, Image.fromarray(pixels), mask)
        prepare("BUSI", raw, out)
        served = read_image_file(next((raw / "benign").glob("benign (1).*"))).frame(0)
        assert np.array_equal(written(out)[0], np.rint(served * 255))
        assert np.abs(written(out)[0].astype(int) - grey).max() <= 1
    colour = np.stack([p.image, p.image // 2, p.image // 3], axis=-1)
    one_raw(tmp_path / "raw", Image.fromarray(colour), mask, 1)
    one_raw(tmp_path / "raw", Image.fromarray(colour).convert("RGBA"), mask, 2)
    turn = Image.Exif()
    turn[0x0112] = 6
    one_raw(tmp_path / "raw", Image.fromarray(p.image), mask, 3, exif=turn)
    summary = prepare("BUSI", tmp_path / "raw", tmp_path / "out")
    assert np.array_equal(written(tmp_path / "out", 1)[0], colour)
    assert np.array_equal(written(tmp_path / "out", 2)[0], colour)
    assert np.array_equal(written(tmp_path / "out", 3)[0], p.image)
    assert summary.warnings == {"an EXIF orientation is not applied, as in serving": ["benign_0003"]}


def test_masks_mean_what_they_show(tmp_path: Path) -> None:
    p = phantom(0)
    palette = Image.fromarray(1 - p.mask).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0] + [0] * 762)
    soft = np.asarray(Image.fromarray(p.mask * 255).resize((20, 15)).resize((80, 60)))
    masks = [
        Image.fromarray(p.mask),
        palette,
        Image.fromarray(p.mask.astype(bool)),
        Image.fromarray(np.dstack([np.full((60, 80, 3), 255, np.uint8), p.mask * 255])),
        Image.fromarray(p.mask.astype(np.uint16) * 65535),
        Image.fromarray(soft),
        Image.fromarray((1 - p.mask) * 255),
    ]
    for number, mask in enumerate(masks, start=1):
        one_raw(tmp_path / "raw", Image.fromarray(np.roll(p.image, number)), mask, number)
    summary = prepare("BUSI", tmp_path / "raw", tmp_path / "out")
    for number in range(1, 6):
        assert np.array_equal(written(tmp_path / "out", number)[1], p.mask.astype(bool)), number
    assert np.array_equal(written(tmp_path / "out", 6)[1], soft > 127)
    [cut] = [names for words, names in summary.warnings.items() if "cut in the middle" in words]
    [inverted] = [names for words, names in summary.warnings.items() if "is it inverted?" in words]
    assert (cut, inverted) == (["benign_0006"], ["benign_0007"])


def test_coloured_classes(tmp_path: Path) -> None:
    """BUS-UCLM: green benign, red malignant, both at once, in a palette, as JPEG leaves them, grey."""
    p, other = phantom(0), np.roll(phantom(0).mask, 30, axis=1)
    both = np.zeros((60, 80, 3), np.uint8)
    both[..., 1], both[..., 0] = p.mask * 255, other * 255 * (1 - p.mask)
    both[:, :2, 0] = 255
    red = np.zeros((60, 80, 3), np.uint8)
    red[..., 0] = p.mask * 255
    masks = {
        "A_1": Image.fromarray(both),
        "A_2": Image.fromarray(red).quantize(2),
        "A_3": Image.fromarray(p.mask),
        "A_4": Image.fromarray(red),
    }
    for name, mask in masks.items():
        save(np.roll(p.image, int(name[-1]) * 7), tmp_path / "raw" / "images" / f"{name}.png")
        (tmp_path / "raw" / "masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "raw" / "masks" / f"{name}.png")
    prepare("BUS_UCLM", tmp_path / "raw", tmp_path / "out", keep_blank=True)
    rows = {r["id"]: r for r in csv.DictReader((tmp_path / "out" / "index.csv").open())}
    counts = {name: int(np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png")).sum()) for name in masks}
    assert counts == {
        "A_1": int(both.any(axis=-1).sum()),
        **{name: int(p.mask.sum()) for name in ("A_2", "A_3", "A_4")},
    }
    assert [rows[name]["class"] for name in ("A_2", "A_3", "A_4")] == ["malignant", "", "malignant"]


BAD = {
    "labels 1 and 2": lambda p: np.where(np.arange(80) < 5, 2, p.mask).astype(np.uint8),
    "a picture": lambda p: np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8),
    "colours against alpha": lambda p: np.dstack([p.mask * 255] * 3 + [np.tile(np.arange(80) % 2 * 255, (60, 1))]),
    "two greys": lambda p: (p.mask * 100 + 50).astype(np.uint8),
    "another size": lambda p: np.zeros((60, 81), np.uint8),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_mask_is_named_or_skipped(kind: str, tmp_path: Path) -> None:
    """One bad pair stops with words; with --skip-bad the others are written and it is listed."""
    write_raw("BUSI", tmp_path / "raw")
    bad = BAD[kind](phantom(3)).astype(np.uint8)
    save(bad, tmp_path / "raw" / "benign" / "benign (4)_mask.png")
    with pytest.raises(InputError, match=r"benign \(4\)_mask.png.*--skip-bad"):
        prepare("BUSI", tmp_path / "raw", tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "index.csv").exists()
    summary = prepare("BUSI", tmp_path / "raw", tmp_path / "out", skip_bad=True)
    assert summary.written == COUNT and [file for file, _ in summary.skipped] == ["benign/benign (4).png"]
    [row] = csv.DictReader((tmp_path / "out" / "skipped.csv").open())
    assert row["file"] == "benign/benign (4).png" and "_mask.png" in row["reason"]
    assert not (tmp_path / "out" / "images" / "benign_0004.png").exists()
    assert "benign_0004" not in {i.id for i in read_index(tmp_path / "out")}


def test_bad_images_rows_and_names_are_skipped(tmp_path: Path) -> None:
    write_raw("BUSBRA", tmp_path / "raw")
    images = sorted((tmp_path / "raw" / "Images").iterdir())
    images[0].write_bytes(b"junk")
    images[1].write_bytes(images[1].read_bytes()[:200])
    Image.fromarray(phantom(2).image).save(
        tmp_path / "two.tif", save_all=True, append_images=[Image.new("L", (80, 60))]
    )
    (tmp_path / "two.tif").rename(images[2])  # its name says PNG
    save(phantom(50).image, tmp_path / "raw" / "Images" / "bus_9999-x.png")  # no row in the table
    with pytest.raises(InputError, match="--skip-bad"):
        prepare("BUSBRA", tmp_path / "raw", tmp_path / "stopped")
    summary = prepare("BUSBRA", tmp_path / "raw", tmp_path / "out", skip_bad=True)
    reasons = dict(summary.skipped)
    assert len(reasons) == 4 and summary.written == COUNT - 3
    assert "no row for bus_9999-x" in reasons["Images/bus_9999-x.png"]
    assert "several pages" in reasons[f"Images/{images[2].name}"]
    for image in images:
        image.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"no images found.*13 cannot be read, see .*skipped.csv"):
        prepare("BUSBRA", tmp_path / "raw", tmp_path / "none", skip_bad=True)


def test_a_second_image_of_an_id_does_not_replace_the_first(tmp_path: Path) -> None:
    write_raw("BUS", tmp_path / "raw")
    for folder in ("original", "GT"):
        save(phantom(40).mask * 255, tmp_path / "raw" / folder / "a b.png")
        save(phantom(41).mask * 255, tmp_path / "raw" / folder / "a_b.png")
    summary = prepare("BUS", tmp_path / "raw", tmp_path / "out", skip_bad=True)
    assert [file for file, _ in summary.skipped] == ["original/a_b.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/a_b.png")), phantom(40).mask.astype(bool))


def test_the_command_says_what_was_left_out(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ultrarefiner_monai.cli.command import app

    write_raw("BUSI", tmp_path / "raw")
    save((1 - phantom(1).mask) * 255, tmp_path / "raw" / "benign" / "benign (2)_mask.png")
    (tmp_path / "raw" / "benign" / "benign (1).png").write_bytes(b"junk")
    options = ["prepare", "BUSI", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--skip-bad"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "is it inverted?: 1 (benign_0002)" in result.output
    assert "left out, not usable: 1 (benign/benign (1).png)" in result.output and "skipped.csv" in result.output
